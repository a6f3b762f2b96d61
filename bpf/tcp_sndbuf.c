// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tcp_probe: net/ipv4/tcp_input.c, each segment that an established connection receives, so on a sender each ACK, before
 * the ACK is processed; sndbuf is what tcp_sndbuf_expand() made of the ACKs before.
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

/* The typed road: the verifier knows what ctx[0] points to. Ten times cheaper for the sockets that are not near. */
int tcp_sndbuf_typed(u64 *ctx)
{
    u64 sk = TYPED_U64(ctx, 0);
    u64 size = TYPED_U32(sk, SK_SNDBUF), net = TYPED_U64(sk, OFF_SK_NET), limit = TYPED_U32(net, NET_TCP_WMEM_MAX);
    struct verdict verdict;
    if (!due(sk, net, SEND, size, limit, SOCK_SNDBUF_LOCK, true, &verdict))
        return 0;
    return tcp_sndbuf_send(sk, net, size, limit, &verdict);
}

int tcp_sndbuf_raw(struct bpf_raw_tracepoint_args *ctx)
{
    u64 sk = ctx->args[0];
    u64 size = PEEK(u32, sk, SK_SNDBUF), net = PEEK(u64, sk, SK_NET), limit = PEEK(u32, net, NET_TCP_WMEM_MAX);
    struct verdict verdict;
    if (!due(sk, net, SEND, size, limit, SOCK_SNDBUF_LOCK, false, &verdict))
        return 0;
    return tcp_sndbuf_send(sk, net, size, limit, &verdict);
}
