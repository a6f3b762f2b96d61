// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tcp_rcv_space_adjust: net/ipv4/tcp_input.c, each time an application has copied data out, before the kernel grows the
 * buffer; so rcvbuf is what the kernel chose a round trip ago.
 */
#define SOCK_RCVBUF_LOCK 2 /* include/net/sock.h */

struct tcp_rcvbuf {
    u64 t_ns, netns, netns_ino, socket, family, sport, dport, rcvbuf, limit;
    u8 locked, unused[7];
    u64 rcv_wnd, window_clamp, wscale, copied_per_rtt, rcv_rtt_us, srtt_us, received;
};

static inline __attribute__((always_inline)) int tcp_rcvbuf_send(u64 sk, u64 net, u64 size, u64 limit,
                                                                 struct verdict *verdict)
{
    struct tcp_rcvbuf *record = RESERVE(tcp_rcvbuf, record);
    if (!record)
        return 0;
    FILL_SOCKET(record, sk, net, verdict);
    record->t_ns = bpf_ktime_get_ns();
    record->rcvbuf = size;
    record->limit = limit;
    record->rcv_wnd = PEEK(u32, sk, TP_RCV_WND);
    record->window_clamp = PEEK(u32, sk, TP_WINDOW_CLAMP);
    record->wscale = PEEK_BITS(sk, TP_RCV_WSCALE);
    record->copied_per_rtt = NOT_NEGATIVE(PEEK(s32, sk, TP_RCVQ_SPACE));
    record->rcv_rtt_us = PEEK(u32, sk, TP_RCV_RTT) >> 3;
    record->received = PEEK(u64, sk, TP_BYTES_RECEIVED);
    bpf_ringbuf_submit(record, 0);
    return 0;
}

static inline __attribute__((always_inline)) int tcp_rcvbuf(u64 sk, bool typed)
{
    u64 net = READ(typed, 64, sk, SK_NET), limit = READ(typed, 32, net, NET_TCP_RMEM_MAX);
    u64 size = READ(typed, 32, sk, SK_RCVBUF);
    struct verdict verdict;
    if (!due(sk, net, RECEIVE, size, limit, SOCK_RCVBUF_LOCK, typed, &verdict))
        return 0;
    return tcp_rcvbuf_send(sk, net, size, limit, &verdict);
}

int tcp_rcvbuf_typed(u64 *ctx)
{
    return tcp_rcvbuf(TYPED_U64(ctx, 0), true);
}

int tcp_rcvbuf_raw(struct bpf_raw_tracepoint_args *ctx)
{
    return tcp_rcvbuf(ctx->args[0], false);
}
