// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tcp_destroy_sock: net/ipv4/tcp_ipv4.c, once in the life of each TCP socket, when all that it has counted still stands.
 * inet_num does not: a socket that was given its port has handed it back by then; inet_sport stays.
 *
 * Told of one connection a second of each service in each namespace, ten a second of a namespace in all, with how many
 * there have been since the last one; connections that moved next to nothing do not count. The service is the lower of
 * the two ports: the local one at a server, the remote one at a client.
 */
#include <trimtab.h>

#define TCP_END_BYTES 16384
#define TCP_END_SERVICE TICKS(1 * SEC)
#define TCP_END_NETNS TICKS(100 * MSEC)
#define TCP_END_SNDBUF_LOCK 1 /* SOCK_SNDBUF_LOCK, include/net/sock.h */
#define TCP_END_RCVBUF_LOCK 2

struct tcp_end_record {
    u64 t_ns, netns, netns_ino, family, sport, dport, rcvbuf, sndbuf, copied_per_rtt, cwnd, mss, received, acked, ended,
        rcvbuf_initial, rcvbuf_limit, sndbuf_initial, sndbuf_limit;
    u8 rcvbuf_locked, sndbuf_locked, moderated, unused[5];
};

struct tcp_end_key {
    u64 netns, port; /* port 0: the namespace as a whole */
};

struct tcp_end_count {
    u64 ended, next; /* in ticks */
};

BPF_TABLE("lru_hash", struct tcp_end_key, struct tcp_end_count, tcp_end_counts, 4096);

static inline __attribute__((always_inline)) int tcp_end(u64 sk, bool typed)
{
    u64 received = READ(typed, 64, sk, TP_BYTES_RECEIVED), acked = READ(typed, 64, sk, TP_BYTES_ACKED);
    if (received + acked < TCP_END_BYTES)
        return 0;
    u64 net = READ(typed, 64, sk, SK_NET), now = bpf_jiffies64();
    u16 sport = bpf_ntohs(READ(typed, 16, sk, INET_SPORT)), dport = bpf_ntohs(READ(typed, 16, sk, SK_DPORT));
    struct tcp_end_key all = {.netns = netns_by(typed, net)};
    struct tcp_end_key key = {.netns = all.netns, .port = sport < dport ? sport : dport};
    struct tcp_end_count fresh = {}, *whole = tcp_end_counts.lookup_or_try_init(&all, &fresh);
    struct tcp_end_count *count = tcp_end_counts.lookup_or_try_init(&key, &fresh);
    if (!key.port || !whole || !count)
        return 0;
    __sync_fetch_and_add(&count->ended, 1);
    if (now < count->next || now < whole->next)
        return 0;
    count->next = now + TCP_END_SERVICE;
    whole->next = now + TCP_END_NETNS;
    struct tcp_end_record *record = RESERVE(tcp_end, record);
    if (!record)
        return 0;
    u8 locks = PEEK_BITS(sk, SK_USERLOCKS);
    record->t_ns = bpf_ktime_get_ns();
    record->netns = all.netns;
    record->netns_ino = PEEK(u32, net, NET_INUM);
    record->family = PEEK(u16, sk, SK_FAMILY);
    record->sport = sport;
    record->dport = dport;
    record->rcvbuf = NOT_NEGATIVE(PEEK(s32, sk, SK_RCVBUF));
    record->sndbuf = NOT_NEGATIVE(PEEK(s32, sk, SK_SNDBUF));
    record->copied_per_rtt = NOT_NEGATIVE(PEEK(s32, sk, TP_RCVQ_SPACE));
    record->cwnd = PEEK(u32, sk, TP_SND_CWND);
    record->mss = PEEK(u32, sk, TP_MSS);
    record->received = received;
    record->acked = acked;
    record->ended = count->ended;
    count->ended = 0;
    record->rcvbuf_initial = PEEK(u32, net, NET_TCP_RMEM_FIRST);
    record->rcvbuf_limit = PEEK(u32, net, NET_TCP_RMEM_MAX);
    record->sndbuf_initial = PEEK(u32, net, NET_TCP_WMEM_FIRST);
    record->sndbuf_limit = PEEK(u32, net, NET_TCP_WMEM_MAX);
    record->moderated = OFF_NET_MODERATE < 0 || PEEK(u8, net, NET_MODERATE);
    record->rcvbuf_locked = !!(locks & TCP_END_RCVBUF_LOCK);
    record->sndbuf_locked = !!(locks & TCP_END_SNDBUF_LOCK);
    bpf_ringbuf_submit(record, 0);
    return 0;
}

int tcp_end_typed(u64 *ctx)
{
    u64 sk = typed_tcp_sock((void *)TYPED_U64(ctx, 0));
    return sk ? tcp_end(sk, true) : 0;
}

int tcp_end_raw(struct bpf_raw_tracepoint_args *ctx)
{
    return tcp_end(ctx->args[0], false);
}
