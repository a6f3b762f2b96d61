"""The tunables: one row each says all that may be written, how far, how fast, by whom. The gate knows nothing else.

Rows of third parties come as data (`tunables.toml` in their package, see bus.plugins), never as code, so that the
actuator runs nothing of theirs.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

INT_MAX = 2**31 - 1
"""Most sysctls are a C int; a larger value is refused by the kernel or, on some, wraps."""
PAGE_BYTES = resource.getpagesize()

Scope = Literal["host", "netns"]
Risk = Literal["safe", "careful", "manual"]
Backend = Literal["sysctl", "neightbl", "route"]
AT = "@"
"""Between a row and the destination, where a row is of many keys: route.congctl@10.1.2.0/24."""


class Tunable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One integer in the kernel. `name` is the sysctl's, with [index] where the sysctl holds several; that of a route's
    metric is ours."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]+(\.[a-zA-Z0-9_\-]+)+(\[[0-3]\])?\Z", max_length=128)]
    low: int
    high: int
    ram_share: Annotated[int, Meta(ge=0)] = 0
    """Where not 0, the upper bound is also at most the host's memory / ram_share (in the row's unit / unit_bytes)."""
    unit_bytes: Annotated[int, Meta(ge=1)] = 1
    """Bytes of memory that one unit can cost: for the memory bound only."""
    step: Annotated[float, Meta(gt=0, le=1)]
    """Largest change at once, relative to the value that stands."""
    dead_band: Annotated[float, Meta(ge=0, lt=1)] = 1 / 128
    """A smaller change than this, relative to the value that stands, is not worth a write, unless it leads to a bound
    or back to the original."""
    cooldown_s: Annotated[float, Meta(ge=0)]
    """At least so long between two changes."""
    per_hour: Annotated[int, Meta(ge=1)]
    unit: str
    scope: Scope
    risk: Risk = "safe"
    """careful: made like any other, and worth a second look. manual: only advised on, never written."""
    decider: str
    """The only decider that may ask."""
    backend: Backend = "sysctl"
    at_most: tuple[str, ...] = ()
    """Tunables of the same scope that this one may never pass."""
    at_least: tuple[str, ...] = ()
    """Tunables of the same scope that this one may never fall below."""
    twin: Annotated[str, Meta(pattern=r"^([a-z0-9_]+(\.[a-zA-Z0-9_\-]+)+)?\Z", max_length=128)] = ""
    """The other name of one knob: the kernel makes each of the two 0 when the other is written, as with vm.dirty_ratio
    and vm.dirty_bytes (dirty_bytes_handler, mm/page-writeback.c). A 0 says that the twin counts; from there no step can
    be measured, and the bounds alone limit a change."""
    guards: tuple[str, ...] = ()
    """Signals that must not get worse while a change is on trial."""
    words: tuple[str, ...] = ()
    """What the values are called where they are no amounts, from 0 on. Between them no step is measured."""
    instances: Annotated[int, Meta(ge=0)] = 0
    """Where not 0, the row is of many keys, NAME@PREFIX (bus.prefix), of which one namespace may have so many at once.
    A 0 is allowed whatever the bounds: nothing of ours is set. From there and to there no step is measured."""
    life_s: Annotated[int, Meta(ge=0)] = 0
    """Where not 0, a change is never confirmed for good: it stands on its decider's lease, and no longer than this."""
    summary: str

    @property
    def sysctl(self) -> str:
        """The sysctl's dotted name."""
        return self.name.partition("[")[0]

    @property
    def sysctls(self) -> tuple[str, ...]:
        """Its own dotted name and its twin's: whoever sets either has set it."""
        return (self.sysctl, *filter(None, (self.twin,)))

    @property
    def path(self) -> str:
        """Below /proc/sys. No row names a device, so a dot always parts two folders."""
        return self.sysctl.replace(".", "/")

    @property
    def index(self) -> int:
        """Which of the sysctl's integers; 0 where it has one."""
        return int(self.name[-2]) if self.name.endswith("]") else 0

    @property
    def prefix(self) -> str:
        """The destination, of a key; empty for the row itself."""
        return self.name.partition(AT)[2]

    @property
    def after(self) -> str:
        """What follows a value: a space and the unit, or nothing where values are words."""
        return "" if self.words or not self.unit else f" {self.unit}"

    def shown(self, value: int) -> str:
        """A value as people read it, without its unit."""
        if self.words:
            return self.words[value] if 0 <= value < len(self.words) else f"unknown ({value})"
        return "none" if self.instances and not value else f"{value}"

    @property
    def related(self) -> tuple[str, ...]:
        """The tunables whose values must be known before this one is changed."""
        return (*self.at_most, *self.at_least, *filter(None, (self.twin,)))


class Bounds(Struct, frozen=True):
    """A row's bounds as they stand on this host."""

    low: int
    high: int


def resolve(row: Tunable, mem_bytes: int) -> Bounds:
    """The bounds of a row on a host with mem_bytes of memory. Never above the row's own."""
    if not row.ram_share:
        return Bounds(row.low, row.high)
    return Bounds(row.low, max(row.low, min(row.high, mem_bytes // row.ram_share // row.unit_bytes)))


def _tcp_buffer(name: str, what: str, loss: str) -> Tunable:
    """loss: the signal that losses give at that end."""
    # The kernel's own default ceiling is memory / 128, at most 32 MiB (tcp_init in net/ipv4/tcp.c).
    return Tunable(
        name=name,
        low=65536,
        high=512 << 20,
        ram_share=64,
        step=0.5,
        # Sockets are heard of every 100 ms; a flow that waits at its limit for longer seldom takes a raised one.
        cooldown_s=0.1,
        per_hour=120,
        unit="bytes",
        scope="netns",
        decider="tcp_buffer",
        at_least=(name.replace("[2]", "[1]"),),
        guards=(loss, "srtt_us", "tcp_memory", "drops"),
        summary=f"largest {what} buffer that the kernel gives a TCP socket by itself",
    )


def _tcp_initial(name: str, what: str) -> Tunable:
    """What every connection has room for before anything is known of it: so it is a fraction of what one may have."""
    # The kernel's default is 128 KiB and 16 KiB (tcp_init in net/ipv4/tcp.c); the least is 4 KiB, a page.
    return Tunable(
        name=name,
        low=4096,
        high=4 << 20,
        ram_share=8192,
        step=0.5,
        cooldown_s=10.0,
        per_hour=60,
        unit="bytes",
        scope="netns",
        decider="tcp_buffer",
        at_most=(name.replace("[1]", "[2]"),),
        at_least=(name.replace("[1]", "[0]"),),
        guards=("tcp_memory", "psi_memory", "drops"),
        summary=f"{what} buffer that a TCP socket begins with",
    )


def _neigh(family: str, table: str, level: int) -> Tunable:
    prefix = f"net.{family}.neigh.default.gc_thresh"
    what = {
        1: "below which nothing is collected",
        2: "soft limit",
        3: "hard limit, above which entries are refused",
    }
    return Tunable(
        name=f"{prefix}{level}",
        low=16,
        high=1 << 20,
        # An entry costs under 1 KiB with its device's private part; at most 1/64 of memory for a full table.
        ram_share=64,
        unit_bytes=1024,
        step=1.0,
        # A table can be full milliseconds after it was half empty: growth must not wait.
        cooldown_s=0.0,
        per_hour=60,
        unit="entries",
        scope="host",
        decider="neigh_table",
        backend="neightbl",
        at_most=(f"{prefix}{level + 1}",) if level < 3 else (),
        at_least=(f"{prefix}{level - 1}",) if level > 1 else (),
        guards=("neigh_table_fulls",),
        summary=f"{table} table: {what[level]}",
    )


def _receive(name: str, low: int, high: int, unit: str, **more: Any) -> Tunable:
    """A key of the receive path; the kernel has one for the whole host."""
    same: dict[str, Any] = {"step": 0.5, "cooldown_s": 4.0, "per_hour": 30, "guards": ("softnet_drops", "psi_cpu")}
    return Tunable(
        name=f"net.core.{name}", low=low, high=high, unit=unit, scope="host", decider="receive_path", **(same | more)
    )


def _fragments(name: str, family: str) -> Tunable:
    return Tunable(
        name=name,
        # One fragment of 1500 bytes takes 2304: below this not even one datagram of the largest size waits.
        low=65536,
        # The kernel's default is 4 MiB in each namespace (ipv4_frags_init_net in net/ipv4/ip_fragment.c); all of it can
        # be filled from outside, and stays so for 30 s. The kernel refuses what lies below ipfrag_low_thresh, which
        # means nothing else any more (Documentation/networking/ip-sysctl.rst): no original does.
        high=256 << 20,
        ram_share=128,
        step=1.0,
        # Above it every fragment is refused: up to the default, growth must not wait.
        cooldown_s=0.0,
        per_hour=60,
        unit="bytes",
        scope="netns",
        decider="ip_frag",
        guards=("psi_memory",),
        summary=f"memory for {family} fragments that wait for the rest of their datagram",
    )


def _tcp_mem(level: int) -> Tunable:
    # Of memory, in pages: tcp_init_mem (net/ipv4/tcp.c) begins with 1/16 for [1], 3/4 and 3/2 of that for the others.
    what = ("from which pressure ends", "at which TCP is under pressure", "that TCP may hold, all namespaces together")
    name = "net.ipv4.tcp_mem"
    return Tunable(
        name=f"{name}[{level}]",
        low=(96, 128, 192)[level],
        high=INT_MAX,
        ram_share=(16, 8, 4)[level],
        unit_bytes=PAGE_BYTES,
        step=0.5,
        # Packets are refused until it has grown.
        cooldown_s=0.0,
        per_hour=60,
        unit="pages",
        scope="host",
        decider="tcp_memory",
        at_most=(f"{name}[{level + 1}]",) if level < 2 else (),
        at_least=(f"{name}[{level - 1}]",) if level else (),
        guards=("psi_memory",),
        summary=f"memory {what[level]}",
    )


def _queue(name: str, high: int, unit_bytes: int, summary: str) -> Tunable:
    """How much may wait to be connected. No longer than memory has room for: all of it full, 1/64 at most."""
    return Tunable(
        name=name,
        low=16,
        high=high,
        ram_share=64,
        unit_bytes=unit_bytes,
        step=1.0,
        # A rush is over in a second, and goes from 128 to 4096 in five steps.
        cooldown_s=0.0,
        per_hour=60,
        unit="connections",
        scope="netns",
        decider="listen_queue",
        guards=("tcp_memory",),
        summary=summary,
    )


def _port_range(index: int) -> Tunable:
    name = "net.ipv4.ip_local_port_range"
    return Tunable(
        name=f"{name}[{index}]",
        # Below 1024 are the ports that need a privilege (ip_unprivileged_port_start).
        low=1024,
        high=65535,
        step=1.0,
        # A hundred more ports may be what lacks, however high they are.
        dead_band=0.0,
        cooldown_s=0.0,
        per_hour=60,
        unit="port",
        scope="netns",
        # A port that is given out is not there for a service that starts later.
        risk="careful",
        decider="ports",
        at_most=() if index else (f"{name}[1]",),
        at_least=(f"{name}[0]",) if index else (),
        guards=("psi_memory",),
        summary=f"{'last' if index else 'first'} of the ports that connections from here are given",
    )


def _udp_mem(place: int) -> Tunable:
    # Of memory, in pages: udp_init (net/ipv4/udp.c) begins with 1/8 of it for [1], 3/4 and 3/2 of that for the others.
    what = ("above which UDP takes no more", "that UDP ignores", "that UDP never passes")
    name = "net.ipv4.udp_mem"
    return Tunable(
        name=f"{name}[{place}]",
        low=(96, 128, 192)[place],
        high=INT_MAX,
        ram_share=(6, 5, 4)[place],
        unit_bytes=PAGE_BYTES,
        step=0.5,
        # Datagrams are dropped until it has grown.
        cooldown_s=0.0,
        per_hour=60,
        unit="pages",
        scope="host",
        decider="udp_buffer",
        at_most=(f"{name}[{place + 1}]",) if place < 2 else (),
        at_least=(f"{name}[{place - 1}]",) if place else (),
        guards=("psi_memory",),
        summary=f"memory of all UDP sockets {what[place]}",
    )


def _udp_buffer(name: str, high: int, ram_share: int, unit_bytes: int, summary: str) -> Tunable:
    """Of one socket. What lies unread is pinned, so a few of them must not take what the host needs."""
    return Tunable(
        name=name,
        # The kernel's own least is 2304 (SOCK_MIN_RCVBUF in include/net/sock.h).
        low=4096,
        high=high,
        ram_share=ram_share,
        unit_bytes=unit_bytes,
        step=1.0,
        # A burst is over in less than a second.
        cooldown_s=0.0,
        per_hour=60,
        unit="bytes",
        scope="host",
        decider="udp_buffer",
        guards=("psi_memory",),
        summary=summary,
    )


ALGORITHMS = (
    *("none", "reno", "cubic", "bbr", "dctcp", "htcp", "vegas", "westwood", "illinois"),
    *("bic", "cdg", "highspeed", "hybla", "lp", "nv", "scalable", "veno", "yeah"),
)
"""As the kernel calls them (tcp_available_congestion_control). Recordings and journals hold the numbers: new ones are
added at the end."""


def _route(name: str, low: int, high: int, unit: str, **more: Any) -> Tunable:
    """A metric of a route to one destination, which the kernel takes for connections that begin. A route has a next
    hop, and one that is copied must not outlive the route that it was copied from: hence life_s."""
    return Tunable(
        name=f"route.{name}",
        low=low,
        high=high,
        step=1.0,
        cooldown_s=5.0,
        per_hour=12,
        unit=unit,
        scope="netns",
        risk="careful",
        decider="congestion",
        backend="route",
        guards=("retransmit_share", "srtt_us"),
        instances=64,
        life_s=3600,
        **more,
    )


TUNABLES: tuple[Tunable, ...] = (
    _tcp_buffer("net.ipv4.tcp_rmem[2]", "receive", "out_of_order_share"),
    _tcp_buffer("net.ipv4.tcp_wmem[2]", "send", "retransmit_share"),
    _tcp_initial("net.ipv4.tcp_rmem[1]", "receive"),
    _tcp_initial("net.ipv4.tcp_wmem[1]", "send"),
    Tunable(
        name="net.ipv4.tcp_moderate_rcvbuf",
        low=0,
        high=1,
        step=1.0,
        cooldown_s=0.0,
        per_hour=12,
        unit="switch",
        scope="netns",
        # 1 since Linux 2.6.17, everywhere: where it is 0, somebody wants it so.
        risk="manual",
        decider="tcp_buffer",
        guards=("tcp_memory",),
        summary="whether the kernel sizes receive buffers by itself, up to tcp_rmem[2]",
    ),
    *(_neigh("ipv4", "ARP", level) for level in (1, 2, 3)),
    *(_neigh("ipv6", "ND", level) for level in (1, 2, 3)),
    _fragments("net.ipv4.ipfrag_high_thresh", "IPv4"),
    _fragments("net.ipv6.ip6frag_high_thresh", "IPv6"),
    *(_tcp_mem(level) for level in (0, 1, 2)),
    Tunable(
        name="net.ipv4.tcp_max_orphans",
        low=64,
        high=1 << 20,
        # Up to 64 KiB each (tcp_max_orphans in Documentation/networking/ip-sysctl.rst). What they really hold is also
        # part of tcp_mem, which ends at a quarter of memory.
        ram_share=2,
        unit_bytes=65536,
        step=0.5,
        cooldown_s=0.0,
        per_hour=60,
        unit="sockets",
        scope="host",
        risk="careful",
        decider="tcp_memory",
        guards=("psi_memory",),
        summary="TCP sockets that no program holds any more; those above it are reset",
    ),
    _queue(
        "net.core.somaxconn",
        # Kept in 16 bits by kernels before 5.0 (sk_max_ack_backlog in include/net/sock.h). A connection that waits has
        # a socket, of some 3 KiB.
        high=65535,
        unit_bytes=4096,
        summary="connections that may wait for accept(2), and as many that are being set up, of each socket",
    ),
    _queue(
        "net.ipv4.tcp_max_syn_backlog",
        # A request takes some 300 bytes (struct tcp6_request_sock), until it is given up after a minute.
        high=262144,
        unit_bytes=512,
        summary="connections that may be half open, of each socket, where tcp_syncookies is 0",
    ),
    _udp_buffer(
        "net.core.rmem_default",
        # Every socket but TCP's has it, and there may be hundreds: 1/512 of memory each.
        high=64 << 20,
        ram_share=512,
        unit_bytes=1,
        summary="receive buffer of a socket whose program sets none (TCP has its own)",
    ),
    _udp_buffer(
        "net.core.rmem_max",
        # Anyone may ask for it, and the kernel doubles it: 1/64 of memory in one socket.
        high=256 << 20,
        ram_share=64,
        unit_bytes=2,
        summary="largest receive buffer that a program may ask for",
    ),
    *(_udp_mem(place) for place in (0, 1, 2)),
    _receive(
        "netdev_max_backlog",
        # One poll of the queue takes 64 packets (dev_weight): below that it never has enough.
        low=64,
        # A CPU takes about a million packets a second: this many are 65 ms of it, and more would be delay, not room.
        high=65536,
        # A packet of up to 1500 bytes takes 2 KiB with its sk_buff. There is a queue per CPU, and the decider divides
        # by their number; the row alone keeps one of them below 1/64 of memory.
        ram_share=64,
        unit_bytes=2048,
        unit="packets",
        step=1.0,
        cooldown_s=0.5,
        per_hour=60,
        guards=("softnet_drops", "psi_memory"),
        summary="received packets that may wait for each CPU, where no card's own ring is polled",
    ),
    _receive(
        "netdev_budget",
        # No less than one device's share of a run (dev_weight); as many as the longest netdev_budget_usecs is for.
        low=64,
        high=2400,
        unit="packets",
        summary="packets that one run of the receive softirq may handle",
    ),
    _receive(
        "netdev_budget_usecs",
        # The kernel's default is two ticks (net_hotdata in net/core/hotdata.c), and it takes no less: 2000 to 20000. A
        # task on that CPU waits so long: more than 20 ms would be seen.
        low=2000,
        high=20000,
        unit="us",
        summary="time that one run of the receive softirq may take",
    ),
    _port_range(0),
    _port_range(1),
    Tunable(
        name="net.ipv4.tcp_tw_reuse",
        low=0,
        high=2,
        step=1.0,
        cooldown_s=0.0,
        per_hour=12,
        unit="mode",
        scope="netns",
        # It takes timestamps at both ends, and a clock that no host behind an address translator sets back.
        risk="careful",
        decider="ports",
        guards=("psi_memory",),
        summary="whether a port in TIME_WAIT may serve a new connection: 0 no, 1 yes, 2 on the loopback device",
    ),
    Tunable(
        name="net.ipv4.tcp_max_tw_buckets",
        low=64,
        high=1 << 22,
        # One costs under 512 bytes (struct tcp_timewait_sock and its bind buckets); at most 1/64 of memory.
        ram_share=64,
        unit_bytes=512,
        step=1.0,
        cooldown_s=0.0,
        per_hour=60,
        unit="sockets",
        scope="netns",
        decider="ports",
        guards=("psi_memory",),
        summary="connections in TIME_WAIT; those above it end without",
    ),
    Tunable(
        name="net.netfilter.nf_conntrack_max",
        low=1024,
        high=1 << 24,
        # struct nf_conn takes 256 bytes (nf_conntrack in /proc/slabinfo), its extensions up to as much again.
        ram_share=64,
        unit_bytes=512,
        step=1.0,
        cooldown_s=0.5,
        per_hour=60,
        unit="connections",
        # One value for all namespaces, each of which may have so many; it can be written in the initial one alone.
        scope="host",
        decider="conntrack",
        guards=("psi_memory",),
        summary="connections that each network namespace may track",
    ),
    Tunable(
        name="net.netfilter.nf_conntrack_buckets",
        low=1024,
        high=1 << 24,
        ram_share=256,
        unit_bytes=8,
        step=1.0,
        cooldown_s=3600.0,
        per_hour=2,
        unit="buckets",
        scope="host",
        # Nobody asks for it: the whole table is copied while no connection can be looked up.
        risk="manual",
        decider="conntrack",
        guards=("psi_memory",),
        summary="size of the hash table of tracked connections",
    ),
    _route(
        "congctl",
        low=0,
        high=len(ALGORITHMS) - 1,
        unit="algorithm",
        words=ALGORITHMS,
        summary="congestion control of new TCP connections to a destination, of those that are available",
    ),
    _route(
        "initcwnd",
        # Below 4 a request and its answer take a round trip more; the kernel's own is 10 (TCP_INIT_CWND), and 64 are
        # what a path of 1 Gbit/s and 0.7 ms holds at once.
        low=4,
        high=64,
        unit="segments",
        summary="how much a new TCP connection to a destination sends before it hears anything",
    ),
    _route(
        "rto_min",
        # Below two ticks of a slow kernel's clock it is no measure; the kernel's own is 200 ms (TCP_RTO_MIN).
        low=20,
        high=1000,
        unit="ms",
        summary="least time that TCP waits for a destination's acknowledgement before it sends again",
    ),
)


def table(more: Iterable[Tunable] = ()) -> Mapping[str, Tunable]:
    """Every row by name: ours and then `more`, which may add rows but never replace one (ValueError)."""
    rows: dict[str, Tunable] = {}
    for row in (*TUNABLES, *more):
        if row.name in rows:
            raise ValueError(f"tunable {row.name} has two rows")
        if row.low > row.high:
            raise ValueError(f"tunable {row.name}: low {row.low} is above high {row.high}")
        _check_kind(row)
        rows[row.name] = row
    for row in filter(lambda row: row.twin, rows.values()):
        _check_twin(row, rows.get(row.twin))
    return rows


def row_of(rows: Mapping[str, Tunable], key: str) -> Tunable | None:
    """The row of a key, by the key's whole name: what stands before the @ finds it, and it then bears that name.
    Whether the prefix may be had is for the gate to say."""
    name, at, _ = key.partition(AT)
    row = rows.get(name)
    if row is None or not at:
        return row
    return msgspec.structs.replace(row, name=key) if row.instances else None


def base(key: str) -> str:
    """The name of a key's row."""
    return key.partition(AT)[0]


def _check_kind(row: Tunable) -> None:
    if bool(row.instances) != (row.backend == "route"):
        raise ValueError(f"tunable {row.name}: instances are for the route backend, and it for them")
    if row.words and not 0 <= row.low <= row.high < len(row.words):
        raise ValueError(f"tunable {row.name}: {row.low} to {row.high} have no {len(row.words)} words")


def _check_twin(row: Tunable, other: Tunable | None) -> None:
    if row.low < 1:
        raise ValueError(f"tunable {row.name}: low {row.low} is below 1, and 0 means that its twin counts")
    if row.twin == row.name or row.name != row.sysctl:
        raise ValueError(f"tunable {row.name}: it cannot have {row.twin} as its twin")
    if other and (other.twin, other.scope) != (row.name, row.scope):
        raise ValueError(f"tunable {row.name}: its twin {row.twin} does not say so, or is of another scope")
