// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * At each segment that is received (see tcp_probe.c), before it is processed; sndbuf is what tcp_sndbuf_expand() made of
 * the ACKs before.
 */
#define SOCK_SNDBUF_LOCK 1 /* include/net/sock.h */

struct tcp_sndbuf {
    u64 t_ns, netns, netns_ino, socket, family, sport, dport, sndbuf, limit;
    u8 locked, unused[7];
    u64 srtt_us, min_rtt_us, cwnd, mss, in_flight, snd_wnd, queued, acked, delivered, delivered_us, limited_by, retransmits;
};

static inline __attribute__((always_inline)) int tcp_sndbuf_send(u64 sk, u64 net, u64 size, u64 limit,
                                                                 struct verdict *verdict)
{
    struct tcp_sndbuf *record = RESERVE(tcp_sndbuf, record);
    if (!record)
        return 0;
    u32 min_rtt = PEEK(u32, sk, TP_MIN_RTT);
    FILL_SOCKET(record, sk, net, verdict);
    record->t_ns = bpf_ktime_get_ns();
    record->sndbuf = size;
    record->limit = limit;
    record->min_rtt_us = min_rtt == ~0u ? 0 : min_rtt; /* ~0: no sample yet */
    record->cwnd = PEEK(u32, sk, TP_SND_CWND);
    record->mss = PEEK(u32, sk, TP_MSS);
    record->in_flight = PEEK(u32, sk, TP_PACKETS_OUT);
    record->snd_wnd = PEEK(u32, sk, TP_SND_WND);
    record->queued = NOT_NEGATIVE(PEEK(s32, sk, SK_WMEM_QUEUED));
    record->acked = PEEK(u64, sk, TP_BYTES_ACKED);
    record->delivered = PEEK(u32, sk, TP_RATE_DELIVERED);
    record->delivered_us = PEEK(u32, sk, TP_RATE_INTERVAL);
    record->limited_by = PEEK_BITS(sk, TP_CHRONO_TYPE);
    record->retransmits = PEEK(u32, sk, TP_TOTAL_RETRANS);
    bpf_ringbuf_submit(record, 0);
    return 0;
}

static inline __attribute__((always_inline)) int tcp_sndbuf_part(u64 sk, bool typed)
{
    u64 net = READ(typed, 64, sk, SK_NET), limit = READ(typed, 32, net, NET_TCP_WMEM_MAX);
    u64 size = READ(typed, 32, sk, SK_SNDBUF);
    struct verdict verdict;
    if (!due(sk, net, SEND, size, limit, SOCK_SNDBUF_LOCK, typed, &verdict))
        return 0;
    return tcp_sndbuf_send(sk, net, size, limit, &verdict);
}
