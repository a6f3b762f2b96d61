// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * kfree_skb(skb, location, reason, rx_sk): net/core/skbuff.c, for each packet that is dropped and not merely done with
 * (since 5.17 with the reason, since 6.11 with the receiving socket). Counted by namespace, device and reason; told of
 * at the first of a kind, then at most ten times a second while it goes on.
 *
 * Whose namespace: that of the receiving socket, else of the packet's own, else of its device. In that order, since UDP
 * keeps something else in skb->dev once a packet is on its way into a socket (udp_set_dev_scratch). But in a CPU's queue
 * a packet of a veth pair still has its sender's socket (____dev_forward_skb keeps it), so there the device alone tells.
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
    u64 dropped, sent_ns;
};

/* The kinds forgotten first are those silent longest; one that comes again counts from 0. */
BPF_TABLE("lru_hash", struct drops_key, struct drops_count, drops_counts, 4096);

static inline __attribute__((always_inline)) int drops_count(u64 skb, u32 reason, u64 sk)
{
    u64 dev = 0, net = 0;
    if (!sk && reason != NAMED_CPU_BACKLOG)
        sk = PEEK(u64, skb, SKB_SK);
    if (sk)
        net = PEEK(u64, sk, SK_NET);
    else {
        dev = PEEK(u64, skb, SKB_DEV);
        net = dev ? PEEK(u64, dev, DEV_NET) : 0;
    }
    struct drops_key key = {
        .netns = net ? netns_of(net) : 0,
        .ifindex = dev ? NOT_NEGATIVE(PEEK(s32, dev, DEV_IFINDEX)) : 0,
        .reason = reason,
    };
    struct drops_count fresh = {}, *count = drops_counts.lookup_or_try_init(&key, &fresh);
    if (!count)
        return 0;
    __sync_fetch_and_add(&count->dropped, 1);
    u64 now = bpf_ktime_get_ns(), sent = count->sent_ns;
    if (now - sent < 100 * MSEC)
        return 0;
    count->sent_ns = now;
    struct drops_record *record = RESERVE(drops, record);
    if (!record)
        return 0;
    record->t_ns = now;
    record->netns = key.netns;
    record->netns_ino = net ? PEEK(u32, net, NET_INUM) : 0;
    record->ifindex = key.ifindex;
    record->reason = reason;
    record->dropped = count->dropped;
    bpf_ringbuf_submit(record, 0);
    return 0;
}

int drops_to_socket(struct bpf_raw_tracepoint_args *ctx)
{
    return drops_count(ctx->args[0], ctx->args[2], ctx->args[3]);
}

int drops_raw(struct bpf_raw_tracepoint_args *ctx)
{
    return drops_count(ctx->args[0], ctx->args[2], 0);
}
