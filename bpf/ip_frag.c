// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Fragments that wait for the rest of their datagram, near what a namespace allows for them (ipfrag_high_thresh,
 * ip6frag_high_thresh): above it inet_frag_find() gives no queue, old or new, and the fragment is dropped
 * (net/ipv4/inet_fragment.c, ip_defrag(), ipv6_frag_rcv()).
 *
 * From inet_frag_find(fqdir, key) where the kernel lets a function be watched: ahead of the first loss, at 60 %. Else
 * from kfree_skb.c: at the first fragment refused. Told at most ten times a second of each namespace and family.
 */
#include <trimtab.h>

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define NEXTHDR_FRAGMENT 44
#define IP_FRAGMENT 0x3fff /* more to come, or not the first: IP_MF | IP_OFFSET */
#define BE16(value) ((u16)((value) << 8 | ((value) >> 8 & 0xff)))

struct ip_frag_record {
    u64 t_ns, netns, netns_ino, family, held_bytes, high_bytes, refused;
};

struct ip_frag_key {
    u64 netns, family;
};

struct ip_frag_count {
    u64 refused, sent; /* in ticks; 0: never */
};

/* Those silent longest are forgotten first, and count from 0 when they come again. */
BPF_TABLE("lru_hash", struct ip_frag_key, struct ip_frag_count, ip_frag_counts, 4096);

static inline __attribute__((always_inline)) int ip_frag_told(u64 net, u64 family, u64 held, u64 high, bool refused)
{
    struct ip_frag_key key = {.netns = netns_of(net), .family = family};
    struct ip_frag_count fresh = {}, *count = ip_frag_counts.lookup_or_try_init(&key, &fresh);
    if (!count)
        return 0;
    if (refused)
        __sync_fetch_and_add(&count->refused, 1);
    u64 now = bpf_jiffies64();
    if (now - count->sent < TICKS(100 * MSEC))
        return 0;
    count->sent = now;
    struct ip_frag_record *record = RESERVE(ip_frag, record);
    if (!record)
        return 0;
    record->t_ns = bpf_ktime_get_ns();
    record->netns = key.netns;
    record->netns_ino = PEEK(u32, net, NET_INUM);
    record->family = family;
    record->held_bytes = held;
    record->high_bytes = high;
    record->refused = count->refused;
    bpf_ringbuf_submit(record, 0);
    return 0;
}

/* The third user of these queues, conntrack's own for IPv6, has another limit. */
int ip_frag_find(struct bpf_raw_tracepoint_args *ctx)
{
    u64 fqdir = ctx->args[0], net = PEEK(u64, fqdir, FQDIR_NET);
    u64 four = PEEK(u64, net, NET_FRAG4), six = PEEK(u64, net, NET_FRAG6);
    if (fqdir != four && fqdir != six)
        return 0;
    u64 held = NOT_NEGATIVE(PEEK(s64, fqdir, FQDIR_MEM)), high = NOT_NEGATIVE(PEEK(s64, fqdir, FQDIR_HIGH));
    if (held * 5 < high * 3)
        return 0;
    return ip_frag_told(net, fqdir == four ? AF_INET : AF_INET6, held, high, held > high || !high);
}

static inline __attribute__((always_inline)) bool ip_frag_is_one(u64 skb, u64 family, bool typed)
{
    u64 header = READ(typed, 64, skb, SKB_HEAD) + READ(typed, 16, skb, SKB_NETWORK);
    u16 offset = 0;
    u8 next = 0;
    if (family == AF_INET) {
        read_kernel(&offset, sizeof(offset), (const void *)(header + 6));
        return offset & BE16(IP_FRAGMENT);
    }
    read_kernel(&next, sizeof(next), (const void *)(header + 6));
    return next == NEXTHDR_FRAGMENT;
}

/* First whether the namespace has room, which is rarely so and cheap to see, then what the packet is. */
static inline __attribute__((always_inline)) int ip_frag_part(u64 skb, u64 sk, bool typed)
{
    /* What gets to a socket is whole. */
    if (sk)
        return 0;
    u16 protocol = READ(typed, 16, skb, SKB_PROTOCOL);
    if (protocol != BE16(ETH_P_IP) && protocol != BE16(ETH_P_IPV6))
        return 0;
    u64 family = protocol == BE16(ETH_P_IP) ? AF_INET : AF_INET6;
    u64 dev = READ(typed, 64, skb, SKB_DEV), net = dev ? READ(typed, 64, dev, DEV_NET) : 0;
    if (!net)
        return 0;
    u64 fqdir = family == AF_INET ? READ(typed, 64, net, NET_FRAG4) : READ(typed, 64, net, NET_FRAG6);
    /* In a fragment that waited, the place of skb->dev is a tree's node (rbnode): then this is no namespace. */
    if (!fqdir || READ(typed, 64, fqdir, FQDIR_NET) != net)
        return 0;
    s64 held = READ(typed, 64, fqdir, FQDIR_MEM), high = READ(typed, 64, fqdir, FQDIR_HIGH);
    if ((held <= high && high > 0) || !ip_frag_is_one(skb, family, typed))
        return 0;
    return ip_frag_told(net, family, NOT_NEGATIVE(held), NOT_NEGATIVE(high), true);
}
