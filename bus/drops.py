"""Why the kernel drops packets, in an operator's words, and which tunable can cure it: a row for each reason.

Names as in enum skb_drop_reason (include/net/dropreason-core.h, which has a line on each), without its prefix. A reason
that a kernel does not have is never told of; one without a row here is shown by its name alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Reason(Struct, frozen=True):
    """One reason."""

    name: str
    meaning: str
    """What has happened, in half a sentence."""
    cure: tuple[str, ...] = ()
    """The sysctls of which a higher value can stop it; none where it is a rule's, a program's or the wire's doing."""
    by_hand: str = ""
    """What else an administrator can look at."""


_RULE = "meant so: see the rule"
_BROKEN = "damaged on its way, or made wrong: see the card, the cable, the sender"
_QUEUE = "the link is slower than what is sent; a queue that is longer only delays"

REASONS: tuple[Reason, ...] = (
    # enqueue_to_backlog() in net/core/dev.c; a flow that has too much of the queue is dropped under this name, too.
    Reason(
        "CPU_BACKLOG",
        "a CPU's queue of received packets was full",
        ("net.core.netdev_max_backlog",),
        "more CPUs for the device: RPS, RSS",
    ),
    Reason(
        "SOCKET_RCVBUFF",
        "a socket's receive buffer was full: its program reads too slowly",
        ("net.core.rmem_max", "net.core.rmem_default"),
        "the SO_RCVBUF that the program sets",
    ),
    Reason(
        "PROTO_MEM",
        "all sockets of the protocol together hold as much memory as they may",
        ("net.ipv4.tcp_mem", "net.ipv4.udp_mem"),
    ),
    # tcp_add_backlog() in net/ipv4/tcp_ipv4.c: twice the receive buffer and half the send buffer.
    Reason(
        "SOCKET_BACKLOG",
        "a TCP socket was busy, and what waited for it was full",
        ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
    ),
    Reason(
        "TCP_LISTEN_OVERFLOW",
        "connections that no program accepted in time",
        ("net.core.somaxconn",),
        "the backlog that the program gives listen(2)",
    ),
    Reason("TCP_OFO_QUEUE_PRUNE", "segments after a hole, given up for want of buffer", ("net.ipv4.tcp_rmem",)),
    Reason("TCP_OFO_DROP", "a segment after a hole found no buffer", ("net.ipv4.tcp_rmem",)),
    Reason("TCP_ZEROWINDOW", "sent although the program had no room left", (), "the program reads too slowly"),
    Reason("TCP_OVERWINDOW", "sent beyond what there was room for", (), "the sender"),
    Reason(
        "NEIGH_CREATEFAIL",
        "no room for one more neighbour",
        ("net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"),
    ),
    Reason(
        "NEIGH_QUEUEFULL",
        "too much waited for a neighbour's address",
        ("net.ipv4.neigh.default.unres_qlen_bytes", "net.ipv6.neigh.default.unres_qlen_bytes"),
        "a neighbour that answers late",
    ),
    Reason("NEIGH_FAILED", "a neighbour does not answer", (), "whether it is there"),
    Reason("FRAG_TOO_FAR", "fragments too far out of order", ("net.ipv4.ipfrag_max_dist",)),
    Reason("FRAG_REASM_TIMEOUT", "a packet of which a fragment never came", (), "losses on the way; a smaller MTU"),
    Reason("DUP_FRAG", "a fragment that came twice", (), "the sender"),
    Reason("NOMEM", "the kernel had no memory at that moment", ("vm.min_free_kbytes",)),
    Reason("PFMEMALLOC", "it stood in memory kept for emergencies", ("vm.min_free_kbytes",)),
    Reason("FULL_RING", "a virtual device's ring was full: its reader is slow", (), "txqueuelen of that device"),
    Reason("QDISC_DROP", "a device's queue dropped it", (), _QUEUE),
    Reason("QDISC_OVERLIMIT", "a device's queue was full", (), _QUEUE),
    Reason("QDISC_CONGESTED", "a device's queue saw congestion, and told the sender so", (), _QUEUE),
    Reason("FQ_FLOW_LIMIT", "one flow had filled its share of a device's queue", (), "flow_limit of tc-fq(8)"),
    Reason("FQ_BAND_LIMIT", "a device's queue was full", (), "limit of tc-fq(8)"),
    Reason("FQ_HORIZON_LIMIT", "to be sent too far in the future", (), "horizon of tc-fq(8)"),
    Reason("CAKE_FLOOD", "a flow that does not slow down", (), _QUEUE),
    Reason("NETFILTER_DROP", "a firewall's rule", (), _RULE),
    Reason("TC_INGRESS", "a rule of tc(8), at its coming in", (), _RULE),
    Reason("TC_EGRESS", "a rule of tc(8), at its going out", (), _RULE),
    Reason("XDP", "an XDP program", (), _RULE),
    Reason("BPF_CGROUP_EGRESS", "a BPF program of a control group", (), _RULE),
    Reason("SOCKET_FILTER", "a socket's own filter", (), _RULE),
    Reason("SECURITY_HOOK", "a security module", (), _RULE),
    Reason("XFRM_POLICY", "an IPsec policy", (), _RULE),
    Reason("IP_RPFILTER", "its sender is to be reached by another way", (), "rp_filter of that device, and the routes"),
    Reason("NO_SOCKET", "nobody listens at that port", (), "who sends there"),
    Reason("SOCKET_CLOSE", "the socket was being closed"),
    Reason("TCP_CLOSE", "the connection was closed"),
    Reason("TCP_RESET", "the connection was reset"),
    Reason("TCP_ABORT_ON_DATA", "the program closed the connection with data unread", (), "the program"),
    Reason("TCP_OLD_DATA", "it had come before: no loss"),
    Reason("TCP_OFOMERGE", "it had come before: no loss"),
    Reason("TCP_OLD_SEQUENCE", "it had come before: no loss"),
    Reason("TCP_INVALID_SEQUENCE", "outside of what the connection expects", (), "who else sends as that peer"),
    Reason("TCP_INVALID_ACK_SEQUENCE", "acknowledges what was never sent", (), "who else sends as that peer"),
    Reason("TCP_OLD_ACK", "an acknowledgement overtaken by others: no loss"),
    Reason("OTHERHOST", "it was for another host", (), "promiscuous mode, or a bridge that learns"),
    Reason("IP_INNOROUTES", "no route for what came in", (), "the routes"),
    Reason("IP_OUTNOROUTES", "no route for what was to go out", (), "the routes"),
    Reason("PKT_TOO_BIG", "larger than the device takes", (), "the MTU"),
    Reason("PKT_TOO_SMALL", "shorter than its headers", (), _BROKEN),
    Reason("IP_CSUM", "wrong IP checksum", (), _BROKEN),
    Reason("TCP_CSUM", "wrong TCP checksum", (), _BROKEN),
    Reason("UDP_CSUM", "wrong UDP checksum", (), _BROKEN),
    Reason("ICMP_CSUM", "wrong ICMP checksum", (), _BROKEN),
    Reason("SKB_CSUM", "wrong checksum", (), _BROKEN),
    Reason("HDR_TRUNC", "its headers were cut off", (), _BROKEN),
    Reason("UNHANDLED_PROTO", "a protocol that nobody here speaks", (), "who sends it"),
    Reason("IPV6DISABLED", "IPv6 is off here", (), "disable_ipv6 of that device"),
    Reason("DEV_READY", "the device was not up"),
    Reason("QUEUE_PURGE", "what still waited when its socket or device went: no loss"),
    Reason("NOT_SPECIFIED", "the kernel does not say"),
)


def _by_name() -> Mapping[str, Reason]:
    return {reason.name: reason for reason in REASONS}


BY_NAME = _by_name()
NO_LOSS = frozenset(reason.name for reason in REASONS if reason.meaning.endswith("no loss"))
CURABLE = frozenset(reason.name for reason in REASONS if reason.cure)
"""The reasons that a tunable can do something about."""
