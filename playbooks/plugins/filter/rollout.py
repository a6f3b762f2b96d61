# Apache-2.0 (see LICENSE)
"""What a rollout makes of what its steps on hosts returned: where each host stands, and whether a wave may stay."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rollout
short_description: Where hosts stand in a rollout, and the gate of a wave
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - C(broken) says why the first of some results that went wrong did. C(gate) decides about a wave. C(outcome) is the
    table of all hosts.
options:
  _input:
    description: See above.
    type: raw
    required: true
"""

from ansible_collections.trimtab.fleet.plugins.plugin_utils.words import by_number, line

COLUMNS = ("host", "outcome", "reason")
# What became of a host, as people read it.
WORDS = {
    "done": "rolled out",
    "already": "had it already",
    "returned": "returned",
    "sick": "SICK, NOT RETURNED",
    "left out": "left out",
    "untouched": "untouched",
}
NAMED_MAX = 10


def broken(results):
    """In one line, why the first of these (as registered, in order) went wrong; empty where none did."""
    for one in results:
        words = line(one.get("msg") or one.get("sick") or "")
        if one.get("unreachable"):
            return f"unreachable: {words}"
        if one.get("failed") or one.get("sick"):
            return words or "failed without a word"
    return ""


def tried(noted, steps):
    """A host's row when the candidate has been placed: left out (nothing was touched), already, trying, or sick."""
    why = broken([noted])
    if why:
        return {"state": "left out", "reason": why}
    why = broken(steps)
    if why:
        return {"state": "sick", "reason": why}
    return {"state": "already" if (noted.get("memo") or {}).get("state") == "accepted" else "trying", "reason": ""}


def gate(rows, canary, tolerated):
    """rows: host -> row, of one wave. canary: nobody may be sick, and somebody must have been tried. tolerated: how
    many may be sick in other waves, or which share as "1%"."""
    touched = {host: row for host, row in rows.items() if row["state"] in ("trying", "sick")}
    sick = ["{}: {}".format(host, row["reason"]) for host, row in sorted(touched.items()) if row["state"] == "sick"]
    text = str(tolerated).strip()
    limit = int(float(text[:-1]) * len(touched) / 100) if text.endswith("%") else int(text)
    limit = 0 if canary else limit
    stop = ""
    if len(sick) > limit:
        stop = f"{len(sick)} of {len(touched)} hosts sick in a wave, {limit} allowed: {_named(sick)}"
    elif canary and not touched and all(row["state"] == "left out" for row in rows.values()):
        out = ["{}: {}".format(host, row["reason"]) for host, row in sorted(rows.items())]
        stop = f"the canary could not be tried: {_named(out)}"
    trying = sum(row["state"] == "trying" for row in rows.values())
    return {"stop": stop, "sick": sick, "trying": trying, "touched": len(touched)}


def outcome(rows):
    """Host -> row, as lines for people; then how many of which."""
    cells = [list(COLUMNS)]
    cells += [
        [host, WORDS.get(row["state"], row["state"]), row["reason"]]
        for host, row in sorted(rows.items(), key=lambda pair: by_number(pair[0]))
    ]
    widths = [max(len(row[number]) for row in cells) for number in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    states = [row["state"] for row in rows.values()]
    counts = [f"{states.count(state)} {WORDS[state]}" for state in WORDS if state in states]
    return [*lines, f"{len(rows)} hosts: {', '.join(counts) or 'none'}"]


def _named(words):
    return "; ".join(words[:NAMED_MAX]) + (f"; and {len(words) - NAMED_MAX} more" if len(words) > NAMED_MAX else "")


class FilterModule:
    """Ansible finds the filters by this."""

    def filters(self):
        return {"broken": broken, "tried": tried, "gate": gate, "outcome": outcome}
