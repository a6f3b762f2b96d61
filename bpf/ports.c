// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * From where a socket becomes CLOSE (see inet_sock_set_state.c).
 *
 * A connect() that finds no local port: tcp_v4_connect() and tcp_v6_connect() set SYN_SENT, look for a port
 * (inet_hash_connect(), which fails with EADDRNOTAVAIL), and set CLOSE again. Nothing else closes a socket in SYN_SENT
 * before inet_sport is set; inet_num would not do, as a refused connection has given its port back by then. A socket that
 * was bound to a port, and finds just that one in use towards its peer, has inet_sport.
 *
 * A connection that ends here and not at its peer leaves FIN_WAIT1, FIN_WAIT2 or CLOSING for CLOSE when its TIME_WAIT
 * begins (tcp_time_wait()), or when there are tcp_max_tw_buckets of them and it gets none (TCPTimeWaitOverflow).
 *
 * Told of at once, then at most ten times a second for each namespace.
 */
#include <trimtab.h>

#define FIN_WAIT1_ 4
#define FIN_WAIT2_ 5
#define SYN_SENT_ 2
#define CLOSING_ 11

struct ports_record {
    u64 t_ns, netns, netns_ino, low, high, exhausted, tw_reuse, timestamps, tw, tw_max, tw_full;
};

struct ports_count {
    u64 exhausted, full, sent; /* in ticks; 0: never */
};

BPF_TABLE("lru_hash", u64, struct ports_count, ports_counts, 4096);

static inline __attribute__((always_inline)) int ports_send(struct ports_count *count, u64 net, u64 tw, u64 tw_max)
{
    u64 now = bpf_jiffies64();
    if (now - count->sent < TICKS(100 * MSEC))
        return 0;
    count->sent = now;
    struct ports_record *record = RESERVE(ports, record);
    if (!record)
        return 0;
    /* One number of 32 bits since 6.8, high << 16 | low; before, an array of two. */
    u32 range = PEEK(u32, net, NET_PORTS);
    bool packed = range > 0xffff;
    record->t_ns = bpf_ktime_get_ns();
    record->netns = netns_of(net);
    record->netns_ino = PEEK(u32, net, NET_INUM);
    record->low = packed ? range & 0xffff : range;
    record->high = packed ? range >> 16 : PEEK(u64, net, NET_PORTS) >> 32;
    record->exhausted = count->exhausted;
    record->tw_reuse = PEEK(u8, net, NET_TW_REUSE);
    record->timestamps = PEEK(u8, net, NET_TIMESTAMPS);
    record->tw = tw;
    record->tw_max = tw_max;
    record->tw_full = count->full;
    bpf_ringbuf_submit(record, 0);
    return 0;
}

static inline __attribute__((always_inline)) int ports_part(u64 sk, u32 old, bool typed)
{
    bool connecting = old == SYN_SENT_;
    if (!connecting && old != FIN_WAIT1_ && old != FIN_WAIT2_ && old != CLOSING_)
        return 0;
    if (connecting && READ(typed, 16, sk, INET_SPORT))
        return 0;
    u64 net = READ(typed, 64, sk, SK_NET);
    s64 tw = (s64)(s32)READ(typed, 32, net, NET_TW_COUNT) - 1; /* one is the namespace's own */
    s64 tw_max = (s32)READ(typed, 32, net, NET_TW_MAX);
    if (!connecting && tw * 4 < tw_max * 3)
        return 0;
    u64 key = netns_by(typed, net);
    struct ports_count fresh = {}, *count = ports_counts.lookup_or_try_init(&key, &fresh);
    if (!count)
        return 0;
    if (connecting)
        __sync_fetch_and_add(&count->exhausted, 1);
    else if (tw >= tw_max)
        __sync_fetch_and_add(&count->full, 1);
    return ports_send(count, net, NOT_NEGATIVE(tw), NOT_NEGATIVE(tw_max));
}
