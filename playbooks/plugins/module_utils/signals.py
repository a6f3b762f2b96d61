# Apache-2.0 (see LICENSE)
"""How well a host does, whether or not trimtab runs, in a few numbers: stalls, and what the network loses."""

from __future__ import annotations

import time

from ansible_collections.trimtab.fleet.plugins.module_utils.host import read

PRESSURES = ("cpu", "memory", "io")
# Parts of a whole, which are the network namespace's own: what was sent again, and what could not be taken.
SHARES = {
    "segments sent again": (("Tcp.RetransSegs",), ("Tcp.OutSegs",)),
    "segments dropped": (("TcpExt.TCPRcvQDrop", "TcpExt.TCPBacklogDrop", "TcpExt.PruneCalled"), ("Tcp.InSegs",)),
    "datagrams dropped": (("Udp.RcvbufErrors",), ("Udp.InDatagrams",)),
    "connections refused": (("TcpExt.ListenDrops",), ("Tcp.PassiveOpens",)),
}
STALLED = "time stalled on "
# Of fewer than so many, one cannot tell.
ENOUGH = 500


def sample():
    """Totals of counters (netstat and snmp, proc_pid_net(5)) and of stalled time in us (PSI), and their moment."""
    found = {}
    for file in ("snmp", "netstat"):
        lines = read("/proc/net/" + file).splitlines()
        for names, values in zip(lines[::2], lines[1::2]):
            kind, _, rest = names.partition(":")
            pairs = zip(rest.split(), values.partition(":")[2].split())
            found.update({f"{kind}.{name}": int(value) for name, value in pairs})
    wanted = {name for parts, whole in SHARES.values() for name in parts + whole}
    totals = {name: found.get(name, 0) for name in sorted(wanted)}
    for kind in PRESSURES:
        some = read("/proc/pressure/" + kind).splitlines()[:1]
        if some:
            totals["stalled." + kind] = int(some[0].rpartition("=")[2])
    return {"at_s": time.clock_gettime(time.CLOCK_BOOTTIME), "totals": totals}


def rates(first, last):
    """Name -> share of one, between two samples; None where too little has happened, or the host has booted between."""
    took_s = last["at_s"] - first["at_s"]
    gone = {name: last["totals"].get(name, 0) - value for name, value in first["totals"].items()}
    if took_s <= 0 or any(value < 0 for value in gone.values()):
        return {}
    found = {}
    for name, (parts, whole) in SHARES.items():
        part = sum(gone[each] for each in parts)
        of = part + sum(gone[each] for each in whole)
        found[name] = part / of if of >= ENOUGH else None
    for kind in PRESSURES:
        if "stalled." + kind in gone:
            found[STALLED + kind] = gone["stalled." + kind] / 1e6 / took_s
    return found


def worse(before, now, ratio, share, pressure):
    """Which signals are worse than before: above RATIO times what they were, and by more than SHARE of all, or PRESSURE
    of the time."""
    words = []
    for name, value in sorted(now.items()):
        was = before.get(name) or 0.0
        if (
            value is not None
            and value > was * ratio
            and value - was > (pressure if name.startswith(STALLED) else share)
        ):
            words.append(f"{name} {value * 100:.1f} % (was {was * 100:.1f} %)")
    return words
