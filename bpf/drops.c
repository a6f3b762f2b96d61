// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Packets that are dropped (see kfree_skb.c), counted by namespace, device and reason; told of at the first of a kind,
 * then at most ten times a second while it goes on.
 *
 * Whose namespace: that of the receiving socket, else of the packet's own, else of its device. In that order, since UDP
 * keeps something else in skb->dev once a packet is on its way into a socket (udp_set_dev_scratch). But a packet of a
 * veth pair has its sender's socket (____dev_forward_skb keeps it) through a CPU's queue until ip_rcv_core has found it
 * whole, so there the device alone tells.
 */
#include <trimtab.h>

struct drops_record {
    u64 t_ns, netns, netns_ino, ifindex, reason, dropped;
};

struct drops_key {
    u64 netns;
    u32 ifindex, reason;
};

struct drops_count {
    u64 dropped, sent; /* in ticks; 0: never */
};

/* The kinds forgotten first are those silent longest; one that comes again counts from 0. */
BPF_TABLE("lru_hash", struct drops_key, struct drops_count, drops_counts, 4096);

static inline __attribute__((always_inline)) int drops_count(struct drops_key *key, u64 net)
{
    struct drops_count fresh = {}, *count = drops_counts.lookup_or_try_init(key, &fresh);
    if (!count)
        return 0;
    __sync_fetch_and_add(&count->dropped, 1);
    u64 now = bpf_jiffies64();
    if (now - count->sent < TICKS(100 * MSEC))
        return 0;
    count->sent = now;
    struct drops_record *record = RESERVE(drops, record);
    if (!record)
        return 0;
    record->t_ns = bpf_ktime_get_ns();
    record->netns = key->netns;
    record->netns_ino = net ? PEEK(u32, net, NET_INUM) : 0;
    record->ifindex = key->ifindex;
    record->reason = key->reason;
    record->dropped = count->dropped;
    bpf_ringbuf_submit(record, 0);
    return 0;
}

static inline __attribute__((always_inline)) bool has_senders_socket(u32 reason)
{
    return reason == NAMED_CPU_BACKLOG || reason == NAMED_OTHERHOST || reason == NAMED_IP_CSUM ||
           reason == NAMED_IP_INHDR;
}

/*
 * sk: the receiving socket, where it is known. The packet's own is read by the helper on each road: of some kernels the
 * verifier takes it for a socket, or none, where in a fragment that waits it is a number (ip_defrag_offset, until 6.9).
 */
static inline __attribute__((always_inline)) int drops_part(u64 skb, u32 reason, u64 sk, bool typed)
{
    u64 net = 0, own = sk || has_senders_socket(reason) ? 0 : PEEK(u64, skb, SKB_SK);
    struct drops_key key = {.reason = reason};
    if (own) {
        net = PEEK(u64, own, SK_NET);
        key.netns = net ? netns_of(net) : 0;
    } else if (sk) {
        net = READ(typed, 64, sk, SK_NET);
        key.netns = net ? netns_by(typed, net) : 0;
    } else {
        u64 dev = READ(typed, 64, skb, SKB_DEV);
        net = dev ? READ(typed, 64, dev, DEV_NET) : 0;
        key.netns = net ? netns_by(typed, net) : 0;
        key.ifindex = dev ? NOT_NEGATIVE((s32)READ(typed, 32, dev, DEV_IFINDEX)) : 0;
    }
    return drops_count(&key, net);
}
