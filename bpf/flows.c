// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * What flows.c, flows_ended.c and flows_going.c share: how TCP fares towards each destination (/24, /48) with each
 * congestion control. Added up by namespace, prefix and algorithm, and told of at most ten times a second for each.
 *
 * A rate is bytes over the time in which there was something to send: the kernel keeps that itself (tcp_chrono_start in
 * net/ipv4/tcp_output.c), with the part of it in which the peer's window or the send buffer was in the way. So a
 * program that sends now and then does not look like a slow path.
 *
 * A connection of less than BULK bytes has hardly left slow start: it counts among the short ones, when it ends. A
 * longer one counts when it ends, and about once a second while it goes on, each time what has come since the last.
 *
 * Not a header: bcc rewrites table.lookup() in the main text only, so the loader puts the sources one after another.
 */
#include <trimtab.h>

#define BULK (128 * 1024)
#define NO_SAMPLE (~0u) /* tcp_min_rtt(): none yet */

/* enum tcp_chrono in linux/tcp.h; what stands in the array begins with BUSY, and each second counts in one of them. */
#define RWND_LIMITED 2

struct flows_record {
    u64 t_ns, netns, netns_ino, family, prefix[2], algorithm[2];
    u64 connections, bytes, busy_us, limited_us, segments, resent, samples, srtt_sum_us, min_rtt_us;
    u64 short_connections, short_bytes, short_busy_us, short_segments, short_resent;
};

struct flows_key {
    u64 netns, family, prefix, algorithm[2];
};

struct flows_sum {
    u64 connections, bytes, busy_us, limited_us, segments, resent, samples, srtt_sum_us, min_rtt_us;
    u64 short_connections, short_bytes, short_busy_us, short_segments, short_resent;
    u64 sent; /* in ticks; 0: never */
};

/* What of a connection has been counted. Ticks; by the socket's address, until it closes. */
struct flows_seen {
    u64 bytes, taken;
    u32 busy, limited, segments, resent;
};

/* Those forgotten first are those silent longest; one that comes again counts from 0. */
BPF_TABLE("lru_hash", struct flows_key, struct flows_sum, flows_sums, 4096);
BPF_TABLE("lru_hash", u64, struct flows_seen, flows_sockets, 16384);

/* Where to; false: to nobody that a route could be for. */
static inline __attribute__((always_inline)) bool flows_where(u64 sk, struct flows_key *key, bool typed)
{
    u8 *address = (u8 *)&key->prefix;
    key->family = READ(typed, 16, sk, SK_FAMILY);
    if (key->family == AF_INET6) {
        key->prefix = READ(typed, 64, sk, SK_V6_DADDR);
        if (key->prefix) {
            address[6] = address[7] = 0;
            return (address[0] || address[1]) && address[0] < 0xfe; /* not ::/16, fe80::/10, ff00::/8 */
        }
        if (READ(typed, 32, sk, SK_V6_MAPPED) != bpf_htonl(0xffff))
            return false;
        key->family = AF_INET; /* skc_daddr holds it, too */
    }
    if (key->family != AF_INET)
        return false;
    u32 four = READ(typed, 32, sk, SK_DADDR);
    __builtin_memcpy(address, &four, 3);
    return address[0] && address[0] != 127 && address[0] < 224 && !(address[0] == 169 && address[1] == 254);
}

static inline __attribute__((always_inline)) struct flows_sum *flows_of(u64 sk, u64 net, struct flows_key *key,
                                                                        bool typed)
{
    u64 ops = READ(typed, 64, sk, ICSK_CA_OPS);
    key->netns = netns_by(typed, net);
    if (!ops || !flows_where(sk, key, typed))
        return 0;
    read_kernel(key->algorithm, 16, (const void *)(ops + OFF_CA_NAME));
    struct flows_sum fresh = {};
    return flows_sums.lookup_or_try_init(key, &fresh);
}

/* How it stands with a connection now. */
static inline __attribute__((always_inline)) void flows_look(u64 sk, u64 now, struct flows_seen *seen, bool typed)
{
    u32 going = READ_BITS(typed, sk, TP_CHRONO_TYPE), busy = READ(typed, 32, sk, TP_CHRONO_BUSY);
    u32 limited = READ(typed, 32, sk, TP_CHRONO_RWND) + READ(typed, 32, sk, TP_CHRONO_SNDBUF);
    u32 lately = going ? (u32)now - READ(typed, 32, sk, TP_CHRONO_START) : 0;
    seen->taken = now;
    seen->limited = limited + (going >= RWND_LIMITED ? lately : 0);
    seen->busy = busy + limited + lately;
    seen->segments = READ(typed, 32, sk, TP_DATA_SEGS_OUT);
    seen->resent = READ(typed, 32, sk, TP_TOTAL_RETRANS);
}

#define ADD(sum, field, more) __sync_fetch_and_add(&(sum)->field, more)
#define US(ticks) ((u64)(ticks) * TICK_NS / 1000)

static inline __attribute__((always_inline)) void flows_add(struct flows_sum *sum, u64 sk, struct flows_seen *now,
                                                            struct flows_seen *before, bool typed)
{
    u32 srtt = READ(typed, 32, sk, TP_SRTT) >> 3;
    ADD(sum, bytes, now->bytes - before->bytes);
    ADD(sum, busy_us, US(now->busy - before->busy));
    ADD(sum, limited_us, US(now->limited - before->limited));
    ADD(sum, segments, now->segments - before->segments);
    ADD(sum, resent, now->resent - before->resent);
    if (srtt) {
        ADD(sum, samples, 1);
        ADD(sum, srtt_sum_us, srtt);
    }
}

static inline __attribute__((always_inline)) void flows_min_rtt(struct flows_sum *sum, u64 sk, bool typed)
{
    u32 rtt = READ(typed, 32, sk, TP_MIN_RTT);
    if (rtt && rtt != NO_SAMPLE && (!sum->min_rtt_us || rtt < sum->min_rtt_us))
        sum->min_rtt_us = rtt;
}

/* The least round trip is that since it was last told: it may become longer. */
#define FLOWS_TELL(probe, sum, key, net, now)                                                              \
    do {                                                                                                   \
        if ((now) - (sum)->sent < TICKS(100 * MSEC))                                                       \
            break;                                                                                         \
        (sum)->sent = (now);                                                                               \
        struct flows_record *record_ = RESERVE(probe, record_);                                            \
        if (!record_)                                                                                      \
            break;                                                                                         \
        record_->t_ns = bpf_ktime_get_ns();                                                                \
        record_->netns = (key)->netns;                                                                     \
        record_->netns_ino = PEEK(u32, net, NET_INUM);                                                     \
        record_->family = (key)->family;                                                                   \
        record_->prefix[0] = (key)->prefix;                                                                \
        record_->prefix[1] = 0;                                                                            \
        record_->algorithm[0] = (key)->algorithm[0];                                                       \
        record_->algorithm[1] = (key)->algorithm[1];                                                       \
        __builtin_memcpy(&record_->connections, sum, 14 * sizeof(u64));                                    \
        (sum)->min_rtt_us = 0;                                                                             \
        bpf_ringbuf_submit(record_, 0);                                                                    \
    } while (0)
