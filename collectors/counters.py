"""The counters and gauges under /proc, as Counters events: one row per file, one parser per format.

Keys, by source (all as in the kernel's file unless said):

    net/netstat, net/snmp      TcpExt.ListenOverflows, IpExt.InOctets, Tcp.RetransSegs, Udp.RcvbufErrors
    net/snmp6                  Ip6InReceives, Udp6RcvbufErrors
    net/sockstat[6]            TCP.inuse, TCP.mem (pages), UDP.mem (pages), FRAG.memory (bytes)
    net/softnet_stat           processed, dropped, time_squeeze, received_rps, flow_limit, backlog: sums over CPUs
    net/stat/nf_conntrack      entries; drop, early_drop, insert_failed, ...: sums over CPUs
    net/stat/arp_cache         entries; allocs, res_failed, table_fulls, ...: sums over CPUs; ndisc_cache: the same
    vmstat, meminfo            the selections below; meminfo in kB, as in the file
    pressure/*                 some.total_us, full.total_us: stall time since boot (Documentation/accounting/psi.rst)

The files under net/ but softnet_stat speak for one network namespace, the collector's own; the others for the host.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from bus.schema import Counters

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What MessagePack can carry."""
READ_BYTES = 64 << 10

VMSTAT = frozenset(
    b"""allocstall_dma allocstall_dma32 allocstall_normal allocstall_movable compact_fail compact_stall compact_success
    kswapd_high_wmark_hit_quickly kswapd_low_wmark_hit_quickly nr_dirty nr_dirty_background_threshold
    nr_dirty_threshold nr_writeback oom_kill pgmajfault pgscan_direct pgscan_kswapd pgsteal_direct pgsteal_kswapd
    pswpin pswpout workingset_refault_anon workingset_refault_file""".split()
)
MEMINFO = frozenset(
    b"""MemTotal: MemFree: MemAvailable: Buffers: Cached: SwapTotal: SwapFree: Dirty: Writeback: AnonPages: Shmem:
    Slab: SReclaimable: CommitLimit: Committed_AS:""".split()
)
# Columns of net/softnet_stat (softnet_seq_show in net/core/net-procfs.c); older kernels have fewer.
SOFTNET = {0: "processed", 1: "dropped", 2: "time_squeeze", 9: "received_rps", 10: "flow_limit", 11: "backlog"}


def line_pairs(raw: bytes) -> dict[str, int]:
    """net/netstat, net/snmp: a line of names above a line of numbers, both beginning with the group's name."""
    values: dict[str, int] = {}
    lines = raw.splitlines()
    for above, below in zip(lines[::2], lines[1::2], strict=True):
        group, keys = _keys(above)
        same, *numbers = below.split()
        if group != same:
            raise ValueError(f"{same.decode('ascii')!r} stands below {group.decode('ascii')!r}")
        values.update(zip(keys, map(int, numbers), strict=True))
    return values


@functools.lru_cache(maxsize=64)
def _keys(above: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The group of a line of names, and its keys. The same line comes again and again."""
    group, *names = above.decode("ascii").split()
    if not group.endswith(":"):
        raise ValueError(f"{group!r} is no group's name")
    return group.encode(), tuple(f"{group[:-1]}.{name}" for name in names)


def columns(raw: bytes) -> dict[str, int]:
    """net/snmp6: a name and a number on each line."""
    return {name.decode("ascii"): int(number) for name, number in map(bytes.split, raw.splitlines())}


def sockstat(raw: bytes) -> dict[str, int]:
    """net/sockstat, net/sockstat6: a protocol, then names and numbers by turns."""
    values: dict[str, int] = {}
    for line in raw.decode("ascii").splitlines():
        group, *rest = line.split()
        prefix = group.removesuffix(":") + "."
        values.update((prefix + name, int(number)) for name, number in zip(rest[::2], rest[1::2], strict=True))
    return values


def softnet(raw: bytes) -> dict[str, int]:
    """net/softnet_stat: hexadecimal columns, one line per CPU that is online; summed."""
    cpus = [[int(word, 16) for word in line.split()] for line in raw.splitlines()]
    width = min(map(len, cpus))
    return {name: sum(cpu[column] for cpu in cpus) for column, name in SOFTNET.items() if column < width}


def percpu(raw: bytes) -> dict[str, int]:
    """net/stat/*: a line of names, then hexadecimal columns for each CPU; `entries` is the same in all."""
    names, *cpus = (line.split() for line in raw.decode("ascii").splitlines())
    values = dict.fromkeys(names, 0)
    for cpu in cpus:
        for name, word in zip(names, cpu, strict=True):
            values[name] = int(word, 16) if name == "entries" else values[name] + int(word, 16)
    return values


def selection(wanted: frozenset[bytes]) -> Callable[[bytes], dict[str, int]]:
    """vmstat, meminfo: those lines whose first word is wanted; what the kernel does not have is not there."""

    def parse(raw: bytes) -> dict[str, int]:
        found = (words for line in raw.splitlines() if (words := line.split(None, 2)) and words[0] in wanted)
        return {words[0].decode("ascii").removesuffix(":"): int(words[1]) for words in found}

    return parse


def pressure(raw: bytes) -> dict[str, int]:
    """pressure/*: `some avg10=0.00 ... total=123`; only the totals, which lose nothing between two readings."""
    values: dict[str, int] = {}
    for line in raw.decode("ascii").splitlines():
        kind, *fields = line.split()
        values[f"{kind}.total_us"] = int(dict(field.split("=") for field in fields)["total"])
    return values


class File(Struct, frozen=True):
    """One file under /proc."""

    name: str
    parse: Callable[[bytes], dict[str, int]]
    per_netns: bool = False
    optional: bool = False
    """Of a module that many hosts do without: where it is not there, nothing is missing."""


FILES: tuple[File, ...] = (
    File("net/netstat", line_pairs, per_netns=True),
    File("net/snmp", line_pairs, per_netns=True),
    File("net/snmp6", columns, per_netns=True),
    File("net/sockstat", sockstat, per_netns=True),
    File("net/sockstat6", sockstat, per_netns=True),
    File("net/softnet_stat", softnet),
    File("net/stat/nf_conntrack", percpu, per_netns=True, optional=True),
    File("net/stat/arp_cache", percpu, optional=True),
    File("net/stat/ndisc_cache", percpu, optional=True),
    File("vmstat", selection(VMSTAT)),
    File("meminfo", selection(MEMINFO)),
    File("pressure/cpu", pressure),
    File("pressure/io", pressure),
    File("pressure/memory", pressure),
)


def read(file: File, raw: bytes, t_ns: int, netns: int) -> Counters:
    """The event that the bytes of `file` make. ValueError says what is wrong with them."""
    try:
        values = file.parse(raw)
    except (IndexError, KeyError) as error:
        raise ValueError(f"has not the shape it should have ({error!r})") from None
    if not values:
        raise ValueError("holds no numbers")
    if min(values.values()) < INT_MIN or max(values.values()) > INT_MAX:
        raise ValueError("holds a number of more than 64 bits")
    return Counters(t_ns, netns if file.per_netns else 0, file.name, values)


class OpenFile:
    """A file under /proc, opened once and read from its beginning each time (4 times as fast as opening it anew)."""

    def __init__(self, root: Path, file: File) -> None:
        """Raises OSError when it cannot be opened."""
        self.file = file
        self._fd = os.open(root / file.name, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, t_ns: int, netns: int) -> Counters:
        """As it stands. Raises OSError, or ValueError for content that cannot be understood."""
        return read(self.file, read_all(self._fd), t_ns, netns)

    def close(self) -> None:
        os.close(self._fd)


def read_all(fd: int) -> bytes:
    """The whole file from its beginning. A short read is no end: seq_file hands out a page or so at a time."""
    parts: list[bytes] = []
    offset = 0
    while part := os.pread(fd, READ_BYTES, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
