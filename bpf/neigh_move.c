// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * neigh_update(n, lladdr, new, flags, nlmsg_pid): net/core/neighbour.c, at its beginning. The network says that a known
 * neighbour has another address of its link layer now: gratuitous ARP, unsolicited advertisements, which the kernel
 * believes unless drop_gratuitous_arp or drop_unsolicited_na is set (net/ipv4/arp.c, net/ipv6/ndisc.c). Whoever moves to
 * another card says so once; a flood of it is somebody who takes over others' traffic, or two hosts with one address.
 *
 * Counted by namespace, family and device; told of once a second while there are ten or more in a second.
 */
#include <trimtab.h>

#define OVERRIDE 1 /* NEIGH_UPDATE_F_OVERRIDE, include/net/neighbour.h */
#define NUD_KNOWN (0x02 | 0x04 | 0x08 | 0x10) /* linux/neighbour.h: REACHABLE, STALE, DELAY, PROBE */
#define MOVES 10

struct neigh_move_record {
    u64 t_ns, netns, netns_ino, family, ifindex, moves;
};

struct neigh_move_key {
    u64 netns;
    u32 family, ifindex;
};

struct neigh_move_count {
    u64 moves, since_ns, since;
};

BPF_TABLE("lru_hash", struct neigh_move_key, struct neigh_move_count, neigh_move_counts, 1024);

int neigh_move_raw(struct bpf_raw_tracepoint_args *ctx)
{
    u64 n = ctx->args[0], lladdr = ctx->args[1], before = 0, after = 0;
    /* Six bytes are an Ethernet address; nobody but the network asks with no netlink pid. */
    if (!lladdr || !(ctx->args[3] & OVERRIDE) || ctx->args[4] || !(PEEK(u8, n, NEIGH_STATE) & NUD_KNOWN))
        return 0;
    read_kernel(&before, 6, (const void *)(n + OFF_NEIGH_HA));
    read_kernel(&after, 6, (const void *)lladdr);
    u64 tbl = PEEK(u64, n, NEIGH_TBL), dev = PEEK(u64, n, NEIGH_DEV);
    u32 family = PEEK(u32, tbl, TBL_FAMILY);
    if (before == after || (family != AF_INET && family != AF_INET6))
        return 0;
    u64 net = PEEK(u64, dev, DEV_NET), now = bpf_ktime_get_ns();
    struct neigh_move_key key = {
        .netns = netns_of(net),
        .family = family,
        .ifindex = NOT_NEGATIVE(PEEK(s32, dev, DEV_IFINDEX)),
    };
    struct neigh_move_count fresh = {.since_ns = now}, *count = neigh_move_counts.lookup_or_try_init(&key, &fresh);
    if (!count)
        return 0;
    __sync_fetch_and_add(&count->moves, 1);
    if (now - count->since_ns < SEC)
        return 0;
    bool many = now - count->since_ns < 2 * SEC && count->moves - count->since >= MOVES;
    count->since_ns = now;
    count->since = count->moves;
    if (!many)
        return 0;
    struct neigh_move_record *record = RESERVE(neigh_move, record);
    if (!record)
        return 0;
    record->t_ns = now;
    record->netns = key.netns;
    record->netns_ino = PEEK(u32, net, NET_INUM);
    record->family = family;
    record->ifindex = key.ifindex;
    record->moves = count->moves;
    bpf_ringbuf_submit(record, 0);
    return 0;
}
