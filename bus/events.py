"""The events: one frozen struct per topic; a struct's name is its topic and its tag on the wire.

Every event's first field is `t_ns`, CLOCK_MONOTONIC nanoseconds, the clock of bpf_ktime_get_ns. Names carry units.
`netns` is a network namespace's cookie (SO_NETNS_COOKIE, never reused while the host is up), `netns_ino` its inode as
a hint for finding it; netns 0 means "the host as a whole".

Evolution: append a field with a default. Anything else raises bus.schema.VERSION and adds a migration.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=400)]
Count = Annotated[int, Meta(ge=0)]
Names = Annotated[tuple[Name, ...], Meta(max_length=16)]


class Event(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, omit_defaults=False, gc=False, tag=True):
    """Something that happened or is so, at t_ns."""

    t_ns: Count


# --- what the collectors say ------------------------------------------------------------------------------------


class Tick(Event, frozen=True):
    """Time passes: the only clock that a decider has. Once a second."""

    seq: Count


class Host(Event, frozen=True):
    """Facts about this host, republished every few seconds."""

    boot_id: Name
    release: Name
    machine: Name
    cpus: Count
    mem_bytes: Count
    page_bytes: Count
    tai_offset_s: int
    """TAI - UTC as the kernel has it; 0 where nobody has set it."""


class Probe(Event, frozen=True):
    """Which road a probe took into the kernel, or why it took none."""

    name: Name
    road: Name
    """raw tracepoint, tracepoint, fentry, kprobe, cgroup, /proc, netlink; empty when the probe is off."""
    reason: Text
    """Why a better road, or any, was not to be had; empty when all is well."""
    offsets_bytes: dict[Name, Count] = {}
    """Where in this kernel's structures it reads: "sock.sk_rcvbuf" -> bytes from the structure's start."""


class Netns(Event, frozen=True):
    """A network namespace that is there (level state), or has gone."""

    netns: Count
    netns_ino: Count
    name: Name
    """The name under /run/netns, "host" for the initial one, else empty."""
    alive: bool


class TcpRcvBuf(Event, frozen=True):
    """A TCP socket whose receive buffer is near tcp_rmem[2] of its namespace, or was a moment ago."""

    netns: Count
    netns_ino: Count
    socket: Count
    """Stable id of the socket while it lives: its cookie, or its address hashed where it has none."""
    family: Count
    sport: Count
    dport: Count
    rcvbuf_bytes: Count
    limit_bytes: Count
    """tcp_rmem[2] of the socket's namespace at that moment."""
    locked: bool
    """The application set SO_RCVBUF, so the limit does not concern this socket."""
    rcv_wnd_bytes: Count
    window_clamp_bytes: Count
    wscale: Count
    """The receive window scale agreed at connection set-up: this socket's window never passes 65535 << wscale."""
    copied_per_rtt_bytes: Count
    rcv_rtt_us: Count
    srtt_us: Count
    received_bytes: Count
    """Received since the connection began."""


class TcpSndBuf(Event, frozen=True):
    """A TCP socket whose send buffer is near tcp_wmem[2] of its namespace, or was a moment ago."""

    netns: Count
    netns_ino: Count
    socket: Count
    family: Count
    sport: Count
    dport: Count
    sndbuf_bytes: Count
    limit_bytes: Count
    locked: bool
    srtt_us: Count
    min_rtt_us: Count
    cwnd_packets: Count
    mss_bytes: Count
    in_flight_packets: Count
    snd_wnd_bytes: Count
    queued_bytes: Count
    acked_bytes: Count
    """Acknowledged since the connection began."""
    delivered_packets: Count
    delivered_us: Count
    """The kernel's last delivery rate sample: delivered_packets in delivered_us."""
    limited_by: Count
    """What the kernel says holds this flow back now: 0 nothing, 1 network, 2 peer's window, 3 send buffer."""
    retransmits: Count


class TcpEnd(Event, frozen=True):
    """A TCP connection that has ended, and what it used of its buffers: one a second of each service (the lower port)
    in a namespace."""

    netns: Count
    netns_ino: Count
    family: Count
    sport: Count
    dport: Count
    rcvbuf_bytes: Count
    sndbuf_bytes: Count
    copied_per_rtt_bytes: Count
    """The most that its program took in one round trip."""
    cwnd_packets: Count
    mss_bytes: Count
    received_bytes: Count
    acked_bytes: Count
    ended: Count
    """Connections of this service that have ended since one was last told of, this one included."""
    rcvbuf_initial_bytes: Count
    """tcp_rmem[1] of its namespace at that moment, ..."""
    rcvbuf_limit_bytes: Count
    """... and tcp_rmem[2]."""
    sndbuf_initial_bytes: Count
    """The same of tcp_wmem."""
    sndbuf_limit_bytes: Count
    rcvbuf_locked: bool
    """Its program set SO_RCVBUF."""
    sndbuf_locked: bool
    moderated: bool
    """The kernel sizes receive buffers by itself there (tcp_moderate_rcvbuf)."""


class NeighEntries(Event, frozen=True):
    """A neighbour table that is filling, at the moment an entry is made (or refused)."""

    family: Count
    entries: Count
    """Entries that count against the thresholds."""
    total_entries: Count
    gc_thresh1: Count
    gc_thresh2: Count
    gc_thresh3: Count
    netns: Count
    netns_ino: Count
    ifindex: Count
    refused: Count
    """Entries that the kernel refused since the probe was loaded."""


class SysctlWrite(Event, frozen=True):
    """Somebody wrote a sysctl: trimtab itself, or anybody else, in any namespace."""

    netns: Count
    netns_ino: Count
    pid: Count
    uid: Count
    comm: Name
    name: Name
    """As under /proc/sys, with slashes."""
    old: Text
    new: Text


class Drops(Event, frozen=True):
    """Packets that the kernel dropped in one namespace, at one device, for one reason: told at the first one, then at
    most every 100 ms while it goes on."""

    netns: Count
    """0: known to belong to no namespace."""
    netns_ino: Count
    ifindex: Count
    """0 where a socket dropped it."""
    reason: Name
    """As the kernel names it (enum skb_drop_reason, without its prefix): SOCKET_RCVBUFF, CPU_BACKLOG, ..."""
    dropped: Count
    """Since the probe was loaded."""


class ListenQueues(Event, frozen=True):
    """How connections are set up in a namespace where some could not be within the last minute: the namespace's totals,
    first as they stood before, then about once a second."""

    netns: Count
    netns_ino: Count
    overflows: Count
    """TcpExt.ListenOverflows: an accept queue was full."""
    drops: Count
    """TcpExt.ListenDrops: connections dropped for this or another reason."""
    full_cookies: Count
    """TcpExt.TCPReqQFullDoCookies: a SYN queue was full, and a cookie was sent instead."""
    full_drops: Count
    """TcpExt.TCPReqQFullDrop: the same where cookies are off."""
    cookies_sent: Count
    cookies_valid: Count
    cookies_failed: Count
    opened: Count
    """Tcp.PassiveOpens: connections that were set up."""
    somaxconn: Count = 0
    """As it stood then; 0: was not looked at."""
    max_syn_backlog: Count = 0


class Listener(Event, frozen=True):
    """A TCP socket that listens in such a namespace."""

    netns: Count
    netns_ino: Count
    socket: Count
    """Its cookie."""
    port: Count
    backlog: Count
    """What listen(2) gave it: what its program asked for, at most somaxconn at that moment."""
    queued: Count
    """Connections that wait for accept(2)."""
    dropped: Count
    """Connections it could not take since it began."""
    pid: Count = 0
    """A process that has it; 0: not looked for, or not found."""
    program: Name = ""


class UdpDrop(Event, frozen=True):
    """A UDP socket could not take a datagram: told at the first one, then at most every 100 ms of a namespace, a reason
    and a size while it goes on."""

    netns: Count
    netns_ino: Count
    socket: Count
    """As in TcpRcvBuf."""
    family: Count
    port: Count
    rcvbuf_bytes: Count
    """As the kernel keeps it: twice what SO_RCVBUF asked for."""
    locked: bool
    """The application set SO_RCVBUF."""
    reason: Name
    """SOCKET_RCVBUFF: its own buffer was full; PROTO_MEM: the memory of all UDP sockets."""
    dropped: Count
    """By sockets of this namespace for this reason with a buffer of this size, since the probe was loaded."""


class FragMemory(Event, frozen=True):
    """IP fragments that wait in one namespace for the rest of their datagram, near or above what may: at most every
    100 ms. Where a fragment can be seen only when it is dropped, it is told of only then."""

    netns: Count
    netns_ino: Count
    family: Count
    """2: IPv4, 10: IPv6."""
    held_bytes: Count
    """With all that the kernel needs for them."""
    high_bytes: Count
    """ipfrag_high_thresh or ip6frag_high_thresh of that namespace: above it every fragment is dropped."""
    refused: Count
    """Fragments so dropped in that namespace since the probe was loaded."""


class Ports(Event, frozen=True):
    """Local ports and TIME_WAITs of one namespace: told when a connect() found no port, or a connection ended while
    tcp_max_tw_buckets was three quarters used; at most every 100 ms."""

    netns: Count
    netns_ino: Count
    low: Count
    """ip_local_port_range of that namespace; 0 and 0 where the probe cannot read it."""
    high: Count
    exhausted: Count
    """Calls that found no port since the probe was loaded."""
    tw_reuse: Count
    """tcp_tw_reuse, and ..."""
    timestamps: Count
    """... tcp_timestamps, of that namespace."""
    tw: Count
    """Connections in TIME_WAIT, or in FIN_WAIT2 with no program."""
    tw_max: Count
    """tcp_max_tw_buckets of that namespace."""
    tw_full: Count
    """Connections that ended while there were so many, since the probe was loaded."""


class Flows(Event, frozen=True):
    """How TCP fared towards one destination with one congestion control: told at most every 100 ms, where connections
    ended or went on. Totals since the probe was loaded; where it is missing, sampled from sock_diag."""

    netns: Count
    netns_ino: Count
    family: Count
    prefix: Name
    """/24 or /48: 10.1.2.0/24, 2001:db8:1::/48."""
    algorithm: Name
    """As the kernel calls it: bbr, cubic, ..."""
    connections: Count
    """Of 128 KiB or more that have ended. What follows is of these, and of those that go on."""
    delivered_bytes: Count
    busy_us: Count
    """How long there was something to send, all connections added up, ..."""
    limited_us: Count
    """... and how long of it the peer's window or the send buffer was in the way."""
    segments: Count
    resent: Count
    """Of the segments."""
    samples: Count
    srtt_sum_us: Count
    """Of so many samples."""
    min_rtt_us: Count
    """Since it was last told; 0: not known."""
    short_connections: Count = 0
    """Of less, that have ended."""
    short_bytes: Count = 0
    short_busy_us: Count = 0
    short_segments: Count = 0
    short_resent: Count = 0


class Algorithms(Event, frozen=True):
    """Congestion control in a namespace where flows were told of: told at once, then every few seconds."""

    netns: Count
    netns_ino: Count
    available: Names
    """tcp_available_congestion_control."""
    standing: Name
    """tcp_congestion_control: what connections have unless a route or their program says otherwise."""


class Owner(Event, frozen=True):
    """A process that has a socket, for the operator, told once a minute while there is something to say of it: a UDP
    socket that drops, or a TCP socket whose program has set the size of a buffer."""

    netns: Count
    port: Count
    """The local one."""
    pid: Count
    program: Name
    protocol: Count = 17
    """IPPROTO_UDP, or IPPROTO_TCP (6)."""
    socket: Count = 0
    """Of TCP, where the kernel tells: its cookie."""


class NeighTable(Event, frozen=True):
    """Level state of one neighbour table of the host (family 2: ARP, 10: ND), from netlink."""

    family: Count
    entries: Count
    gc_thresh1: Count
    gc_thresh2: Count
    gc_thresh3: Count
    table_fulls: Count
    forced_gc_runs: Count
    allocs: Count
    destroys: Count


class NeighMoves(Event, frozen=True):
    """Known neighbours claim another address of their link layer, unasked, ten times or more within a second: told once
    a second while it goes on."""

    netns: Count
    netns_ino: Count
    family: Count
    """2: gratuitous ARP, 10: unsolicited advertisements."""
    ifindex: Count
    moves: Count
    """On that device since the probe was loaded."""


class Attached(Event, frozen=True):
    """How many neighbours the networks attached to one namespace can hold, and over how many prefixes."""

    netns: Count
    family: Count
    hosts: Count
    prefixes: Count


class Counters(Event, frozen=True):
    """One /proc source of counters or gauges, as it stands: net/netstat, net/snmp, net/sockstat, net/softnet_stat."""

    netns: Count
    source: Name
    values: dict[str, int]


# --- what the actuator says --------------------------------------------------------------------------------------


class Value(Event, frozen=True):
    """A tunable as it stands, with the bounds in force. Republished every few seconds and after every change."""

    tunable: Name
    netns: Count
    netns_ino: Count
    value: int
    original: int
    """What stood there before trimtab's first write; equal to value where it wrote nothing."""
    low: int
    high: int
    held: bool
    """Hands off: the administrator's, ceded, parked, or rolled back."""


class Trial(Event, frozen=True):
    """A change on trial, republished every few seconds until it ends."""

    change: Count
    decider: Name
    tunable: Name
    netns: Count
    netns_ino: Count
    old: int
    new: int
    since_ns: Count
    """When it was written, CLOCK_MONOTONIC."""
    guards: Names = ()
    """The signals that must not get worse meanwhile, as the tunable's row names them."""


class Outcome(Event, frozen=True):
    """What became of a wish, or of a change later on."""

    decider: Name
    tunable: Name
    netns: Count
    believed: int
    want: int
    verdict: Literal["written", "advised", "refused", "failed", "reverted", "confirmed", "ceded"]
    reason: Text
    value: int
    """The value that stands now."""
    change: Count
    """The journal's id, 0 where nothing was journaled."""


# --- what the bus itself says ------------------------------------------------------------------------------------


class Gap(Event, frozen=True):
    """Events of a publisher that never arrived, counted by their numbers."""

    publisher: Name
    lost: Count
    restarted: bool
    """The publisher began anew; what it said in between is not known."""


AnyEvent = (
    Tick
    | Host
    | Probe
    | Netns
    | TcpRcvBuf
    | TcpSndBuf
    | TcpEnd
    | NeighEntries
    | SysctlWrite
    | Drops
    | ListenQueues
    | Listener
    | UdpDrop
    | Owner
    | FragMemory
    | Ports
    | Flows
    | Algorithms
    | NeighTable
    | NeighMoves
    | Attached
    | Counters
    | Value
    | Trial
    | Outcome
    | Gap
)

TOPICS: dict[str, type[Event]] = {topic.__name__: topic for topic in AnyEvent.__args__}
