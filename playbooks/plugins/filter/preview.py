# Apache-2.0 (see LICENSE)
"""What previews on many hosts come to: one sentence, a line for each that differs, and whether the policy may go on."""

from __future__ import annotations

DOCUMENTATION = r"""
name: preview
short_description: A policy's preview on many hosts, in sum
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - C(preview) takes a dictionary of host to what M(trimtab.fleet.trimtab_preview) returned, and limits, and returns
    C(lines) for people, C(over) with what is beyond the limits, and C(sum) for programs.
options:
  _input:
    description: See above.
    type: raw
    required: true
"""

from ansible_collections.trimtab.fleet.plugins.plugin_utils.words import line

HEAD = ("host", "tunable", "where", "changes", "highest", "reverted", "reversals")
SHOWN_MAX = 40
UNUSABLE = "cannot be used"
# What trimtab says where a decider does not take the candidate's policy.
BLIND = "cannot be compared"


def preview(seen, limits=None):
    """limits: hosts and less (a number, or a share as "5%"), changes, highest (tunable -> value), reverted."""
    answered = {host: one for host, one in seen.items() if one.get("candidate") and not _failed(one)}
    played = {host: one for host, one in answered.items() if one["segments"]}
    found = {
        "hosts": len(seen),
        "played": len(played),
        "changed": sorted(host for host, one in played.items() if one["rows"]),
        "changes": sum(one["candidate"]["changes"] for one in played.values()),
        "changes_were": sum(one["recorded"]["changes"] for one in played.values()),
        "reverted": sum(one["candidate"]["reverted"] for one in played.values()),
        "reverted_were": sum(one["recorded"]["reverted"] for one in played.values()),
        "events": sum(one["events"] for one in played.values()),
        "highest": _highest(played, "candidate"),
        "highest_were": _highest(played, "recorded"),
        "without": sorted(set(answered) - set(played)),
        "failed": {host: _reason(one) for host, one in sorted(seen.items()) if host not in answered},
    }
    return {"sum": found, "lines": _lines(found, played), "over": _over(found, played, limits or {})}


def share(limit, of):
    """A number, or a share of so many, rounded down."""
    text = str(limit).strip()
    return int(float(text[:-1]) * of / 100) if text.endswith("%") else int(text)


def _failed(one):
    return bool(one.get("failed") or one.get("unreachable"))


def _reason(one):
    words = line(one.get("msg") or "not asked")
    return f"unreachable: {words}" if one.get("unreachable") else words


def _highest(played, side):
    """Tunable -> the highest value that it would have had on any of these hosts, where anything differs."""
    found = {}
    for one in played.values():
        for row in one["rows"]:
            found[row["tunable"]] = max(found.get(row["tunable"], 0), row[side]["peak"])
    return found


def _lines(found, played):
    cells = [list(HEAD)]
    for host in found["changed"]:
        for row in played[host]["rows"]:
            both = [_both(row, key) for key in ("changes", "peak", "reverted", "reversals")]
            cells.append([host, row["tunable"], row["namespace"], *both])
    widths = [max(len(row[number]) for row in cells) for number in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    if len(lines) > SHOWN_MAX + 1:
        lines[SHOWN_MAX + 1 :] = [f"and {len(cells) - SHOWN_MAX - 1} more"]
    lines = lines if found["changed"] else []
    lines += [f"on {_names(hosts)}: {word}" for word, hosts in _words(played).items()][:SHOWN_MAX]
    lines += [f"LESS THAN WAS NEEDED: {words}" for words in _less(played)]
    if found["without"]:
        lines.append("without recordings of these hours: {}".format(", ".join(found["without"])))
    lines += ["not previewed: {}: {}".format(*row) for row in found["failed"].items()]
    return [*lines, _sentence(found)]


def _both(row, key):
    one, other = row["recorded"][key], row["candidate"][key]
    return str(one) if one == other else f"{one} -> {other}"


def _sentence(found):
    said = "{changes} changes (were {changes_were}), by recordings of {played} of {hosts} hosts".format(**found)
    if not found["changed"]:
        return "no difference: " + said
    peaks = [f"{key} {value} (was {found['highest_were'][key]})" for key, value in sorted(found["highest"].items())]
    differ = f"{len(found['changed'])} of {found['hosts']} hosts would differ"
    return f"{differ}: {said}; none above {', '.join(peaks)}"


def _over(found, played, limits):
    """What is beyond a limit, each in words; empty where the policy may go on."""
    over = []
    hosts = limits.get("hosts")
    if hosts not in (None, "") and len(found["changed"]) > share(hosts, found["hosts"]):
        over.append(f"{len(found['changed'])} hosts would differ; the limit is {hosts}")
    changes = limits.get("changes")
    if changes not in (None, "") and found["changes"] > int(changes):
        over.append(f"{found['changes']} changes; the limit is {changes}")
    for key, value in sorted((limits.get("highest") or {}).items()):
        names = [
            host
            for host in found["changed"]
            if any(row["tunable"] == key and row["candidate"]["peak"] > int(value) for row in played[host]["rows"])
        ]
        if names:
            over.append(f"{key} would be above {value} on {_names(names)}")
    reverted = limits.get("reverted")
    if reverted not in (None, "") and found["reverted"] - found["reverted_were"] > int(reverted):
        over.append("{reverted} changes would be reverted (were {reverted_were})".format(**found))
    # What cannot be played proves nothing.
    blind = {word: hosts for word, hosts in _words(played).items() if BLIND in word}
    over += [f"cannot be told for {_names(hosts)}: {word}" for word, hosts in blind.items()]
    less = sorted({host for host, one in played.items() if any(map(_lower, one["rows"]))})
    fewer = limits.get("less")
    if fewer not in (None, "") and len(less) > share(fewer, found["hosts"]):
        over.append(f"less than was needed on {_names(less)}; the limit is {fewer} hosts")
    # A host that is down, or has no trimtab, is named; what it is not is a reason against the policy.
    refused = {host: why for host, why in found["failed"].items() if UNUSABLE in why}
    if refused:
        over.append(f"refused by {_names(list(refused))}: {next(iter(refused.values()))}")
    recorded = limits.get("recorded")
    if recorded not in (None, "") and found["played"] < share(recorded, found["hosts"]):
        over.append(f"only {found['played']} hosts have recordings; needed are {recorded}")
    return over


def _words(played):
    """What could not be read or compared -> the hosts that said it. A host's own name before it is left out."""
    found = {}
    for host, one in sorted(played.items()):
        for word in one["words"]:
            found.setdefault(word.partition(": ")[2] if BLIND in word else word, []).append(host)
    return found


def _lower(row):
    return row["candidate"]["peak"] < row["recorded"]["peak"]


def _less(played):
    """Where recorded evidence took a tunable higher than the candidate would have: a bound that may hurt."""
    found = {}
    for host, one in sorted(played.items()):
        for row in filter(_lower, one["rows"]):
            found.setdefault(row["tunable"], []).append((host, row["candidate"]["peak"], row["recorded"]["peak"]))
    lines = []
    for key, rows in sorted(found.items()):
        hosts, peaks, were = zip(*rows)
        lines.append(f"{key} would not get above {max(peaks)}, and was taken to {max(were)} on {_names(hosts)}")
    return lines


def _names(names):
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


class FilterModule:
    """Ansible finds the filters by this."""

    def filters(self):
        return {"preview": preview}
