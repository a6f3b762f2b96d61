"""The probes: one row each says what is compiled, what it hangs on, what it needs of the kernel, what it emits.

Standard library only: the daemons read these rows in trimtab's environment, the loader under the system's python.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal, NamedTuple

HERE = Path(__file__).resolve().parent
"""The folder of the sources. bcc is told that it is a kernel tree (BCC_KERNEL_SOURCE), for its include/."""

Kind = Literal["tp_btf", "raw_tracepoint", "cgroup_sysctl", "fentry"]

ROAD_NAMES: dict[Kind, str] = {
    "tp_btf": "raw tracepoint, typed",
    "raw_tracepoint": "raw tracepoint",
    "cgroup_sysctl": "cgroup",
    "fentry": "fentry",
}
"""What the operator reads."""


class Road(NamedTuple):
    """One way of attaching a probe."""

    kind: Kind
    target: str
    """The tracepoint's name; empty for a cgroup."""
    function: str
    """The C function that is loaded for it."""
    source: str = ""
    """A file put behind the probes' own, whose function runs the parts of all probes that take this road: a tracepoint
    then calls one program and not one for each. It knows them by PART_<probe>. Whoever names such roads names them in
    the same order, so that all take the same one."""
    refused: str = ""
    """A function that the kernel must refuse to load, or the road is not taken: its verifier would let us do harm."""


class Field(NamedTuple):
    """A member of a kernel structure whose place BTF tells: OFF_<macro>, for bits also SHIFT_ and BITS_<macro>."""

    macro: str
    of: str
    """The structure's name."""
    path: str
    """a.b[2].c: through named and anonymous members and arrays, never through a pointer."""
    size: int
    """In bytes, as the C code reads it. BITS: a bit field or a whole byte. ANY: only its place counts."""
    essential: bool = True
    """Without it there is no probe; otherwise the record holds 0 there."""


BITS = 0
ANY = -1


class Names(NamedTuple):
    """The enumeration whose names stand for the numbers in a field of the record."""

    enumeration: str
    prefix: str
    """Left out."""
    field: int
    """Which field of the record, from 0."""
    constants: tuple[str, ...] = ()
    """Those that the C code goes by, as NAMED_<name>: without one of them there is no probe."""


class Probe(NamedTuple):
    """One probe: a source, the roads to try in this order, its own ring."""

    name: str
    sources: tuple[str, ...]
    """Files in HERE, compiled as one text in this order. One that several probes name is taken once."""
    roads: tuple[Road, ...]
    fields: tuple[Field, ...]
    topic: str
    """The event that its records become (bus.schema)."""
    record: struct.Struct
    """One record: the event's fields in their order."""
    ring_bytes: int
    """A power of two of at least a page. Each probe has its own ring: a flood of one cannot push out another's events,
    and one map cannot have several producers contending for its lock."""
    summary: str
    without: str
    """What is lost when it cannot be attached."""
    names: Names | None = None
    """Where a number in the record is one of an enumeration of the kernel's, which differ from release to release."""


_NETNS = (
    # net_cookie is a plain u64 since 5.12; before, the namespace goes by its inode (as in bus.netns).
    Field("NET_COOKIE", "net", "net_cookie", 8, essential=False),
    Field("NET_INUM", "net", "ns.inum", 4),
)
_SOCKET = (
    *_NETNS,
    Field("SK_NET", "sock", "__sk_common.skc_net.net", 8),
    Field("SK_COOKIE", "sock", "__sk_common.skc_cookie.counter", 8, essential=False),
    Field("SK_FAMILY", "sock", "__sk_common.skc_family", 2),
    Field("SK_NUM", "sock", "__sk_common.skc_num", 2),
    Field("SK_DPORT", "sock", "__sk_common.skc_dport", 2),
    Field("SK_HASH", "sock", "__sk_common.skc_hash", 4),
    Field("SK_USERLOCKS", "sock", "sk_userlocks", BITS),
    Field("TP_SRTT", "tcp_sock", "srtt_us", 4, essential=False),
)

_FLOWS = (
    *_NETNS,
    Field("SK_NET", "sock", "__sk_common.skc_net.net", 8),
    Field("SK_FAMILY", "sock", "__sk_common.skc_family", 2),
    Field("SK_DADDR", "sock", "__sk_common.skc_daddr", 4),
    Field("SK_V6_DADDR", "sock", "__sk_common.skc_v6_daddr", ANY),
    Field("SK_V6_MAPPED", "sock", "__sk_common.skc_v6_daddr.in6_u.u6_addr32[2]", 4),
    Field("ICSK_CA_OPS", "inet_connection_sock", "icsk_ca_ops", 8),
    Field("CA_NAME", "tcp_congestion_ops", "name", ANY),
    Field("TP_BYTES_ACKED", "tcp_sock", "bytes_acked", 8),
    Field("TP_CHRONO_BUSY", "tcp_sock", "chrono_stat[0]", 4),
    Field("TP_CHRONO_RWND", "tcp_sock", "chrono_stat[1]", 4),
    Field("TP_CHRONO_SNDBUF", "tcp_sock", "chrono_stat[2]", 4),
    Field("TP_CHRONO_START", "tcp_sock", "chrono_start", 4),
    Field("TP_CHRONO_TYPE", "tcp_sock", "chrono_type", BITS),
    Field("TP_DATA_SEGS_OUT", "tcp_sock", "data_segs_out", 4),
    Field("TP_TOTAL_RETRANS", "tcp_sock", "total_retrans", 4),
    Field("TP_SRTT", "tcp_sock", "srtt_us", 4),
    Field("TP_MIN_RTT", "tcp_sock", "rtt_min.s[0].v", 4),
)
_FLOWS_RECORD = struct.Struct("=4Q16s16s14Q")

_KFREE_SKB = (
    Road("tp_btf", "kfree_skb", "kfree_skb_to_socket_typed", "kfree_skb.c", "kfree_skb_untested"),
    Road("raw_tracepoint", "kfree_skb", "kfree_skb_to_socket", "kfree_skb.c"),
    Road("tp_btf", "kfree_skb", "kfree_skb_typed", "kfree_skb.c"),
    Road("raw_tracepoint", "kfree_skb", "kfree_skb_raw", "kfree_skb.c"),
)
"""The first two are told which socket was to receive the packet."""
_TCP_PROBE = (
    Road("tp_btf", "tcp_probe", "tcp_probe_typed", "tcp_probe.c"),
    Road("raw_tracepoint", "tcp_probe", "tcp_probe_raw", "tcp_probe.c"),
)
_SET_STATE = (
    Road("tp_btf", "inet_sock_set_state", "inet_sock_set_state_typed", "inet_sock_set_state.c"),
    Road("raw_tracepoint", "inet_sock_set_state", "inet_sock_set_state_raw", "inet_sock_set_state.c"),
)

PROBES: tuple[Probe, ...] = (
    Probe(
        name="tcp_rcvbuf",
        sources=("tcp_buffer.c", "tcp_rcvbuf.c"),
        roads=(
            Road("tp_btf", "tcp_rcv_space_adjust", "tcp_rcvbuf_typed"),
            Road("raw_tracepoint", "tcp_rcv_space_adjust", "tcp_rcvbuf_raw"),
        ),
        fields=(
            *_SOCKET,
            Field("SK_RCVBUF", "sock", "sk_rcvbuf", 4),
            Field("NET_TCP_RMEM_MAX", "net", "ipv4.sysctl_tcp_rmem[2]", 4),
            Field("TP_RCV_WND", "tcp_sock", "rcv_wnd", 4, essential=False),
            Field("TP_WINDOW_CLAMP", "tcp_sock", "window_clamp", 4, essential=False),
            Field("TP_RCV_WSCALE", "tcp_sock", "rx_opt.rcv_wscale", BITS, essential=False),
            Field("TP_RCVQ_SPACE", "tcp_sock", "rcvq_space.space", 4, essential=False),
            Field("TP_RCV_RTT", "tcp_sock", "rcv_rtt_est.rtt_us", 4, essential=False),
            Field("TP_BYTES_RECEIVED", "tcp_sock", "bytes_received", 8, essential=False),
        ),
        topic="TcpRcvBuf",
        record=struct.Struct("=9Q?7x7Q"),
        ring_bytes=256 * 1024,
        summary="TCP sockets whose receive buffer nears tcp_rmem[2] of their namespace",
        without="tcp_rmem[2] is not tuned: nothing else tells how near one socket is to it at the moment it matters",
    ),
    Probe(
        name="tcp_sndbuf",
        sources=("tcp_buffer.c", "tcp_sndbuf.c"),
        roads=_TCP_PROBE,
        fields=(
            *_SOCKET,
            Field("SK_SNDBUF", "sock", "sk_sndbuf", 4),
            Field("NET_TCP_WMEM_MAX", "net", "ipv4.sysctl_tcp_wmem[2]", 4),
            Field("SK_WMEM_QUEUED", "sock", "sk_wmem_queued", 4, essential=False),
            Field("TP_MIN_RTT", "tcp_sock", "rtt_min.s[0].v", 4, essential=False),
            Field("TP_SND_CWND", "tcp_sock", "snd_cwnd", 4, essential=False),
            Field("TP_MSS", "tcp_sock", "mss_cache", 4, essential=False),
            Field("TP_PACKETS_OUT", "tcp_sock", "packets_out", 4, essential=False),
            Field("TP_SND_WND", "tcp_sock", "snd_wnd", 4, essential=False),
            Field("TP_BYTES_ACKED", "tcp_sock", "bytes_acked", 8, essential=False),
            Field("TP_RATE_DELIVERED", "tcp_sock", "rate_delivered", 4, essential=False),
            Field("TP_RATE_INTERVAL", "tcp_sock", "rate_interval_us", 4, essential=False),
            Field("TP_CHRONO_TYPE", "tcp_sock", "chrono_type", BITS, essential=False),
            Field("TP_TOTAL_RETRANS", "tcp_sock", "total_retrans", 4, essential=False),
        ),
        topic="TcpSndBuf",
        record=struct.Struct("=9Q?7x12Q"),
        ring_bytes=256 * 1024,
        summary="TCP sockets whose send buffer nears tcp_wmem[2] of their namespace",
        without="tcp_wmem[2] is not tuned: nothing else tells how near one socket is to it at the moment it matters",
    ),
    Probe(
        name="tcp_end",
        sources=("tcp_end.c",),
        roads=(
            Road("tp_btf", "tcp_destroy_sock", "tcp_end_typed"),
            Road("raw_tracepoint", "tcp_destroy_sock", "tcp_end_raw"),
        ),
        fields=(
            *_NETNS,
            Field("SK_NET", "sock", "__sk_common.skc_net.net", 8),
            Field("SK_FAMILY", "sock", "__sk_common.skc_family", 2),
            Field("SK_DPORT", "sock", "__sk_common.skc_dport", 2),
            Field("INET_SPORT", "inet_sock", "inet_sport", 2),
            Field("SK_USERLOCKS", "sock", "sk_userlocks", BITS),
            Field("SK_RCVBUF", "sock", "sk_rcvbuf", 4),
            Field("SK_SNDBUF", "sock", "sk_sndbuf", 4),
            Field("TP_RCVQ_SPACE", "tcp_sock", "rcvq_space.space", 4, essential=False),
            Field("TP_SND_CWND", "tcp_sock", "snd_cwnd", 4, essential=False),
            Field("TP_MSS", "tcp_sock", "mss_cache", 4, essential=False),
            Field("TP_BYTES_RECEIVED", "tcp_sock", "bytes_received", 8, essential=False),
            Field("TP_BYTES_ACKED", "tcp_sock", "bytes_acked", 8, essential=False),
            Field("NET_TCP_RMEM_FIRST", "net", "ipv4.sysctl_tcp_rmem[1]", 4),
            Field("NET_TCP_RMEM_MAX", "net", "ipv4.sysctl_tcp_rmem[2]", 4),
            Field("NET_TCP_WMEM_FIRST", "net", "ipv4.sysctl_tcp_wmem[1]", 4),
            Field("NET_TCP_WMEM_MAX", "net", "ipv4.sysctl_tcp_wmem[2]", 4),
            Field("NET_MODERATE", "net", "ipv4.sysctl_tcp_moderate_rcvbuf", 1, essential=False),
        ),
        topic="TcpEnd",
        record=struct.Struct("=18Q3?5x"),
        ring_bytes=128 * 1024,
        summary="what TCP connections have used of their buffers, when they end, by service",
        without="tcp_rmem[1] and tcp_wmem[1] are not tuned: nothing else tells what connections use that are soon over",
    ),
    Probe(
        name="neigh_create",
        sources=("neigh_create.c",),
        roads=(Road("raw_tracepoint", "neigh_create", "neigh_create_raw"),),
        fields=(
            *_NETNS,
            Field("TBL_FAMILY", "neigh_table", "family", 4),
            Field("TBL_GC_ENTRIES", "neigh_table", "gc_entries.counter", 4),
            Field("TBL_ENTRIES", "neigh_table", "entries.counter", 4, essential=False),
            Field("TBL_GC_THRESH1", "neigh_table", "gc_thresh1", 4),
            Field("TBL_GC_THRESH2", "neigh_table", "gc_thresh2", 4),
            Field("TBL_GC_THRESH3", "neigh_table", "gc_thresh3", 4),
            Field("DEV_NET", "net_device", "nd_net.net", 8, essential=False),
            Field("DEV_IFINDEX", "net_device", "ifindex", 4, essential=False),
        ),
        topic="NeighEntries",
        record=struct.Struct("=11Q"),
        ring_bytes=64 * 1024,
        summary="neighbour tables that fill up, at the entry that fills them",
        without="a neighbour table is seen only when it is polled, so a burst of neighbours can be refused before",
    ),
    Probe(
        name="neigh_move",
        sources=("neigh_move.c",),
        roads=(Road("raw_tracepoint", "neigh_update", "neigh_move_raw"),),
        fields=(
            *_NETNS,
            Field("NEIGH_TBL", "neighbour", "tbl", 8),
            Field("NEIGH_DEV", "neighbour", "dev", 8),
            Field("NEIGH_HA", "neighbour", "ha", ANY),
            Field("NEIGH_STATE", "neighbour", "nud_state", 1),
            Field("TBL_FAMILY", "neigh_table", "family", 4),
            Field("DEV_NET", "net_device", "nd_net.net", 8),
            Field("DEV_IFINDEX", "net_device", "ifindex", 4, essential=False),
        ),
        topic="NeighMoves",
        record=struct.Struct("=6Q"),
        ring_bytes=64 * 1024,
        summary="floods of neighbours that claim another address of their link layer, unasked",
        without="a flood of gratuitous ARP is not seen, and drop_gratuitous_arp never advised",
    ),
    Probe(
        name="drops",
        sources=("drops.c",),
        roads=_KFREE_SKB,
        fields=(
            *_NETNS,
            Field("SKB_SK", "sk_buff", "sk", 8),
            Field("SKB_DEV", "sk_buff", "dev", 8),
            Field("SK_NET", "sock", "__sk_common.skc_net.net", 8),
            Field("DEV_NET", "net_device", "nd_net.net", 8),
            Field("DEV_IFINDEX", "net_device", "ifindex", 4, essential=False),
        ),
        topic="Drops",
        record=struct.Struct("=6Q"),
        ring_bytes=64 * 1024,
        summary="packets that the kernel drops, by namespace, device and reason",
        without="what is dropped, and why, is known only as far as the counters under /proc tell",
        names=Names("skb_drop_reason", "SKB_DROP_REASON_", 4, ("CPU_BACKLOG", "OTHERHOST", "IP_CSUM", "IP_INHDR")),
    ),
    Probe(
        name="udp_drop",
        sources=("udp_drop.c",),
        roads=(*_KFREE_SKB[:2], Road("raw_tracepoint", "udp_fail_queue_rcv_skb", "udp_drop_failed")),
        fields=(
            *_NETNS,
            Field("SK_NET", "sock", "__sk_common.skc_net.net", 8),
            Field("SK_COOKIE", "sock", "__sk_common.skc_cookie.counter", 8, essential=False),
            Field("SK_FAMILY", "sock", "__sk_common.skc_family", 2),
            Field("SK_NUM", "sock", "__sk_common.skc_num", 2),
            Field("SK_PROTOCOL", "sock", "sk_protocol", 2),
            Field("SK_USERLOCKS", "sock", "sk_userlocks", BITS),
            Field("SK_RCVBUF", "sock", "sk_rcvbuf", 4),
        ),
        topic="UdpDrop",
        record=struct.Struct("=7Q?7x2Q"),
        ring_bytes=64 * 1024,
        summary="UDP sockets that could not take a datagram, and how large their buffers are",
        without="which UDP socket drops, and whether a larger default would help it, is not known: rmem_default and"
        " rmem_max are not tuned",
        names=Names("skb_drop_reason", "SKB_DROP_REASON_", 8, ("SOCKET_RCVBUFF", "PROTO_MEM")),
    ),
    Probe(
        name="ip_frag",
        sources=("ip_frag.c",),
        roads=(Road("fentry", "inet_frag_find", "ip_frag_find"), *_KFREE_SKB),
        fields=(
            *_NETNS,
            Field("NET_FRAG4", "net", "ipv4.fqdir", 8),
            Field("NET_FRAG6", "net", "ipv6.fqdir", 8, essential=False),
            Field("FQDIR_NET", "fqdir", "net", 8),
            Field("FQDIR_MEM", "fqdir", "mem.counter", 8),
            Field("FQDIR_HIGH", "fqdir", "high_thresh", 8),
            Field("SKB_DEV", "sk_buff", "dev", 8),
            Field("SKB_HEAD", "sk_buff", "head", 8),
            Field("SKB_NETWORK", "sk_buff", "network_header", 2),
            Field("SKB_PROTOCOL", "sk_buff", "protocol", 2),
            Field("DEV_NET", "net_device", "nd_net.net", 8),
        ),
        topic="FragMemory",
        record=struct.Struct("=7Q"),
        ring_bytes=64 * 1024,
        summary="IP fragments that wait, near what their namespace allows for them",
        without="ipfrag_high_thresh is tuned in the initial namespace and in those with a change on trial only",
    ),
    Probe(
        name="ports",
        sources=("ports.c",),
        roads=_SET_STATE,
        fields=(
            *_NETNS,
            Field("SK_NET", "sock", "__sk_common.skc_net.net", 8),
            Field("SK_PROTOCOL", "sock", "sk_protocol", 2),
            Field("INET_SPORT", "inet_sock", "inet_sport", 2),
            Field("NET_PORTS", "net", "ipv4.ip_local_ports.range", ANY, essential=False),
            Field("NET_TW_REUSE", "net", "ipv4.sysctl_tcp_tw_reuse", 1, essential=False),
            Field("NET_TIMESTAMPS", "net", "ipv4.sysctl_tcp_timestamps", 1, essential=False),
            Field("NET_TW_COUNT", "net", "ipv4.tcp_death_row.tw_refcount.refs.counter", 4, essential=False),
            Field("NET_TW_MAX", "net", "ipv4.tcp_death_row.sysctl_max_tw_buckets", 4, essential=False),
        ),
        topic="Ports",
        record=struct.Struct("=11Q"),
        ring_bytes=64 * 1024,
        summary="connect() calls that find no local port, and namespaces whose TIME_WAITs near their limit",
        without="ip_local_port_range, tcp_max_tw_buckets and tcp_tw_reuse are not tuned: no counter tells of a"
        " connect() that found no port",
    ),
    Probe(
        name="flows_ended",
        sources=("flows.c", "flows_ended.c"),
        roads=_SET_STATE,
        fields=(*_FLOWS, Field("SK_PROTOCOL", "sock", "sk_protocol", 2)),
        topic="Flows",
        record=_FLOWS_RECORD,
        ring_bytes=256 * 1024,
        summary="how fast TCP was towards each destination with each congestion control, as connections end",
        without="that is sampled from sock_diag, and connections between two samples are not seen: no initcwnd is"
        " tuned",
    ),
    Probe(
        name="flows_going",
        sources=("flows.c", "flows_going.c"),
        roads=_TCP_PROBE,
        fields=(*_FLOWS, Field("SK_HASH", "sock", "__sk_common.skc_hash", 4)),
        topic="Flows",
        record=_FLOWS_RECORD,
        ring_bytes=256 * 1024,
        summary="the same once a second while a connection goes on",
        without="a connection counts only when it ends",
    ),
    Probe(
        name="sysctl_write",
        sources=("sysctl_write.c",),
        roads=(Road("cgroup_sysctl", "", "sysctl_write"),),
        fields=(
            *_NETNS,
            Field("TASK_NSPROXY", "task_struct", "nsproxy", 8),
            Field("NSPROXY_NET", "nsproxy", "net_ns", 8),
            Field("SYSCTL_HEAD", "bpf_sysctl_kern", "head", 8, essential=False),
            Field("HEAD_SET", "ctl_table_header", "set", 8, essential=False),
            Field("SET_IS_SEEN", "ctl_table_set", "is_seen", 8, essential=False),
            Field("NET_SYSCTLS", "net", "sysctls", ANY, essential=False),
        ),
        topic="SysctlWrite",
        record=struct.Struct("=5Q16s128s128s128s"),
        ring_bytes=256 * 1024,
        summary="writes to sysctls by anyone, in any namespace",
        without="a foreign write is noticed only when the value is next compared, and not who wrote it",
    ),
)
