"""What the deciders of a busy host hear: all topics, in the proportions in which the collectors tell of them.

About 2 700 events a second: 200 TCP sockets near their limits in 20 namespaces, told of every 100 ms, with round trips,
windows and rates that move; TCP towards 20 destinations; packets dropped, datagrams lost, fragments that wait and ports
that run out, every 100 ms where it happens; neighbour tables that fill and empty; each second the host's counters and
those of the namespaces with something on trial; every five seconds the level state of everything. The same each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from bus.schema import (
    Algorithms,
    AnyEvent,
    Attached,
    Counters,
    Drops,
    Flows,
    FragMemory,
    Host,
    Listener,
    ListenQueues,
    NeighEntries,
    NeighTable,
    Netns,
    Outcome,
    Ports,
    Probe,
    TcpEnd,
    TcpRcvBuf,
    TcpSndBuf,
    Tick,
    Trial,
    UdpDrop,
    Value,
)
from bus.tunables import TUNABLES, Tunable

NAMESPACES = 20
FLOWS = 200
TRIALS = 5
"""Namespaces with a change on trial, one each; number 1 is the host's own."""
LEVEL_S = 5
MSEC = 1_000_000
MEMORY_BYTES = 64 << 30
SOURCES: dict[str, tuple[int, tuple[str, ...]]] = {
    "net/netstat": (229, ("TcpExt.TCPHPHits", "TcpExt.TCPOFOQueue", "TcpExt.TCPMemoryPressures", "TcpExt.PruneCalled",
                          "TcpExt.TCPRcvCollapsed", "TcpExt.ListenOverflows", "TcpExt.TCPBacklogDrop")),
    "net/snmp": (83, ("Tcp.OutSegs", "Tcp.RetransSegs", "Ip.ReasmReqds", "Ip.ReasmOKs", "Ip.ReasmFails")),
    "net/snmp6": (90, ("Ip6ReasmReqds", "Ip6ReasmOKs", "Ip6ReasmFails")),
    "net/sockstat": (12, ("TCP.mem", "TCP.orphan", "TCP.tw", "UDP.mem", "FRAG.memory")),
    "net/sockstat6": (6, ("FRAG6.memory",)),
    "net/stat/nf_conntrack": (17, ("entries", "drop", "early_drop")),
    "net/softnet_stat": (6, ("processed", "dropped", "time_squeeze", "flow_limit")),
    "pressure/cpu": (2, ("some.total_us",)),
    "pressure/io": (2, ("some.total_us",)),
    "pressure/memory": (2, ("some.total_us",)),
    "meminfo": (15, ("MemTotal", "MemAvailable")),
    "vmstat": (23, ()),
}  # fmt: skip
"""Source -> how many counters it has, and those that somebody reads."""
GROWN = ("net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]")
"""What is far above its original, so that at each event there is a way down to be thought of."""
OTHERS = tuple(f"counter{number}" for number in range(229))
PROBES = ("tcp_rcvbuf", "tcp_sndbuf", "neigh", "drops", "udp_drop", "ip_frag", "ports", "flows", "listen", "sysctl")


def events(count: int) -> list[AnyEvent]:
    """`count` events in order of time."""
    source = _seconds(random.Random(1))
    return [next(source) for _ in range(count)]


def _seconds(chance: random.Random) -> Iterator[AnyEvent]:
    total = dict.fromkeys(range(FLOWS), 0)
    t_ns = 1_000_000_000
    for second in range(1, 1 << 30):
        yield Tick(t_ns, second)
        yield from _counters(t_ns, second)
        yield from _each_second(t_ns, second)
        if second % LEVEL_S == 1:
            yield from _level(t_ns)
        for tenth in range(10):
            for flow in range(FLOWS):
                t_ns += 100 * MSEC // FLOWS
                total[flow] += chance.randrange(300_000, 500_000)
                yield _receiver(t_ns, flow, total[flow]) if flow % 2 else _sender(t_ns, flow, total[flow])
            yield from _each_tenth(t_ns, 10 * second + tenth)


def _limit(netns: int) -> int:
    return 262144 << (netns % 4)


def _receiver(t_ns: int, flow: int, total: int) -> TcpRcvBuf:
    netns, rtt_us = flow % NAMESPACES + 1, 20_000 + total % 3000
    limit = _limit(netns)
    window = limit * 2 // 3
    about = (netns, netns, flow, 2, 5201, 40000 + flow, limit, limit, False, window, window, 7)
    return TcpRcvBuf(t_ns, *about, window // 2, rtt_us, rtt_us, total)


def _sender(t_ns: int, flow: int, total: int) -> TcpSndBuf:
    netns, rtt_us = flow % NAMESPACES + 1, 20_000 + total % 3000
    limit = _limit(netns)
    packets = limit // 2200
    about = (netns, netns, flow, 2, 40000 + flow, 5201, limit, limit, False, rtt_us, 20_000, 3 * packets, 1448, packets)
    return TcpSndBuf(t_ns, *about, limit, limit * 3 // 4, total, packets, rtt_us, flow % 4, 0)


def _counters(t_ns: int, second: int) -> Iterator[AnyEvent]:
    for source in SOURCES:
        yield Counters(t_ns, 1, source, _values(source, second))
    for netns in range(2, TRIALS + 1):
        for source in ("net/netstat", "net/snmp"):
            yield Counters(t_ns, netns, source, _values(source, second))


def _values(source: str, second: int) -> dict[str, int]:
    size, read = SOURCES[source]
    names = (*read, *OTHERS[: size - len(read)])
    return {name: (place + 1) * 1000 + second * (10 + place) for place, name in enumerate(names)}


def _each_second(t_ns: int, second: int) -> Iterator[AnyEvent]:
    yield NeighTable(t_ns, 2 + 8 * (second % 2), 300, 128, 512, 1024, second // 10, second, 40 * second, 39 * second)
    for netns in (2, 3):
        full = 20 * second
        yield ListenQueues(t_ns, netns, netns, full, full, full, 0, full, full, 0, 100 * second, 4096, 4096)
        for port in (80, 443, 5432):
            yield Listener(t_ns, netns, netns, port, port, 128, port % 128, full // 3, 100 + port, "server")
    for netns in range(1, NAMESPACES + 1):
        used = (64 << 10) + 4096 * (second % 9)
        about = (netns, netns, 2, 443, 40000, 3 * used, 2 * used, used, 40, 1448, 9_000_000, 3_000_000, 12)
        yield TcpEnd(t_ns, *about, 131072, _limit(netns), 16384, _limit(netns), False, False, True)
    yield Outcome(t_ns, "tcp_buffer", "net.ipv4.tcp_rmem[2]", 2, 1, 2, "refused", "the bus is being measured", 1, 0)


def _each_tenth(t_ns: int, tenth: int) -> Iterator[AnyEvent]:
    for entry in range(10):
        entries = 300 + 5 * entry + 20 * (tenth % 10)
        yield NeighEntries(t_ns + entry, 2, entries, entries, 128, 512, 1024, 1, 1, 2, 0)
    for path in range(20):
        netns, sent = path % NAMESPACES + 1, 1000 * tenth
        about = (netns, netns, 2, f"10.1.{path}.0/24", ("cubic", "bbr")[path % 2], tenth, 1448 * sent, 90_000 * tenth)
        yield Flows(t_ns, *about, 9_000 * tenth, sent, sent // 50, tenth, 30_000 * tenth, 20_000)
    for netns, reason in ((1, "CPU_BACKLOG"), (2, "SOCKET_RCVBUFF"), (3, "NO_SOCKET"), (4, "PROTO_MEM")):
        yield Drops(t_ns, netns, netns, 2 if netns == 1 else 0, reason, 3 * tenth)
    for netns in (2, 3):
        yield UdpDrop(t_ns, netns, netns, 9, 2, 5353, 212992, False, "SOCKET_RCVBUFF", 5 * tenth)
    yield FragMemory(t_ns, 2, 2, 2, (3 << 20) + 40_000 * (tenth % 30), 4 << 20, 7 * tenth)
    yield Ports(t_ns, 3, 3, 32768, 60999, tenth, 2, 1, 20_000 + tenth % 1000, 65536, tenth // 10)


def _level(t_ns: int) -> Iterator[AnyEvent]:
    yield Host(t_ns, "7" * 36, "6.18.0", "x86_64", 16, MEMORY_BYTES, 4096, 37)
    for name in PROBES:
        yield Probe(t_ns, name, "raw tracepoint", "", {"sock.sk_rcvbuf": 280, "sock.sk_sndbuf": 332})
    for netns in range(1, NAMESPACES + 1):
        yield Netns(t_ns, netns, netns, "host" if netns == 1 else f"web{netns}", True)
        yield Attached(t_ns, netns, 2, 254, 1)
        yield Algorithms(t_ns, netns, netns, ("reno", "cubic", "bbr"), "cubic")
    for row in TUNABLES:
        if not row.instances:
            places = (0,) if row.scope == "host" else range(1, NAMESPACES + 1)
            for netns in places:
                yield _value(t_ns, row, netns)
    for netns in range(1, TRIALS + 1):
        row = TUNABLES[netns % 2]
        yield Trial(t_ns, netns, row.decider, row.name, netns, netns, 1, 2, 1_000_000_000, row.guards)


def _value(t_ns: int, row: Tunable, netns: int) -> Value:
    if row.name in GROWN:
        return Value(t_ns, row.name, netns, netns, _limit(netns), 65536, 65536, 64 << 20, False)
    value = row.low + (row.high - row.low) // 50
    return Value(t_ns, row.name, netns, netns, value, value, row.low, row.high, False)
