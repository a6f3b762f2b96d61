# Apache-2.0 (see LICENSE)
"""What the plays make of what hosts say: TOML, one row per host, one table for the fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet
short_description: TOML, a host's row, and the table of all of them
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - C(to_toml) writes a dictionary as TOML. C(health) makes a row of what M(trimtab.fleet.trimtab_info) returned.
    C(table) writes rows for people.
options:
  _input:
    description: See above.
    type: raw
    required: true
"""

import json
import re

from ansible_collections.trimtab.fleet.plugins.plugin_utils.words import by_number, line

COLUMNS = ("host", "state", "mode", "release", "trial", "confirmed", "held", "reason")
LOST = "unreachable: "
BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document, place=()):
    """A dictionary of plain values and dictionaries as TOML: https://toml.io/en/v1.0.0."""
    plain = {key: value for key, value in document.items() if not isinstance(value, dict)}
    lines = ["[{}]".format(".".join(_key(word) for word in place))] if place and (plain or not document) else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    text = "".join(f"{line}\n" for line in lines)
    for key, value in document.items():
        if isinstance(value, dict):
            below = to_toml(value, (*place, key))
            text += f"\n{below}" if text else below
    return text


def _key(word):
    return str(word) if BARE.fullmatch(str(word)) else json.dumps(str(word), ensure_ascii=False)


def _value(value):
    # JSON's numbers, strings, booleans and lists of them are TOML's.
    return json.dumps(value, ensure_ascii=False)


def health(seen):
    """The row of one host, from what trimtab_info registered. state: fine, sick, off, absent, failed, unreachable."""
    facts = seen.get("trimtab") or {}
    row = {
        "state": "fine",
        "mode": facts.get("mode") or "",
        "release": (seen.get("installed") or {}).get("release", ""),
        "trial": sum(change["state"] == "trial" for change in facts.get("standing", [])),
        "confirmed": sum(change["state"] == "confirmed" for change in facts.get("standing", [])),
        "held": len(facts.get("held", [])),
        "reason": "",
        "facts": facts,
    }
    if seen.get("unreachable"):
        row.update(state="unreachable", reason=line(seen.get("msg", "")))
    elif seen.get("failed"):
        # Where the module did not even start, what did is in module_stderr.
        words = line(": ".join(str(seen[key]) for key in ("msg", "module_stderr") if seen.get(key)))
        lost = words.startswith(LOST)
        row.update(state="unreachable" if lost else "failed", reason=words.removeprefix(LOST))
    elif seen.get("problem"):
        row.update(state="sick", reason=line(seen["problem"]))
    elif not facts:
        row.update(state="absent", reason="not installed")
    elif seen.get("off") and not facts.get("roles"):
        row.update(state="off", reason=line(seen["off"]))
    elif not facts.get("ready"):
        row.update(state="sick", reason=line(facts.get("problem") or "starting or stopping"))
    return row


def table(rows):
    """Host -> row, as lines for people; then what the fleet is in sum."""
    cells = [list(COLUMNS)]
    for host in sorted(rows, key=by_number):
        row = dict(rows[host], host=host)
        cells.append([str(row.get(column, "")) for column in COLUMNS])
    widths = [max(len(row[number]) for row in cells) for number in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    states = [row.get("state", "unreachable") for row in rows.values()]
    counts = [f"{states.count(state)} {state}" for state in sorted(set(states))]
    return [*lines, f"{len(rows)} hosts: {', '.join(counts) or 'none'}"]


class FilterModule:
    """Ansible finds the filters by this."""

    def filters(self):
        return {"to_toml": to_toml, "health": health, "table": table}
