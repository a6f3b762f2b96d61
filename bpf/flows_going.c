// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tcp_probe: net/ipv4/tcp_input.c, each segment that an established connection receives, so on a sender each ACK. There
 * are millions of them: each socket has its turn for some 60 ms of each second (so that a window's ACKs do not miss it),
 * by its hash, and all that the others cost are two reads.
 */
#define FLOWS_PERIOD (SEC / TICK_NS)
#define FLOWS_OPEN (FLOWS_PERIOD / 16 + 1)

static inline __attribute__((always_inline)) int flows_going(u64 sk, u64 now)
{
    struct flows_seen fresh = {.bytes = PEEK(u64, sk, TP_BYTES_ACKED)}, none = {};
    if (fresh.bytes < BULK)
        return 0;
    struct flows_seen *seen = flows_sockets.lookup(&sk);
    if (seen && (now - seen->taken < FLOWS_PERIOD / 2 || fresh.bytes == seen->bytes))
        return 0;
    u64 net = PEEK(u64, sk, SK_NET);
    struct flows_key key = {};
    struct flows_sum *sum = flows_of(sk, net, &key);
    if (!sum)
        return 0;
    flows_look(sk, now, &fresh);
    flows_add(sum, sk, &fresh, seen && seen->bytes <= fresh.bytes ? seen : &none);
    flows_sockets.update(&sk, &fresh);
    flows_min_rtt(sum, sk);
    FLOWS_TELL(flows_going, sum, &key, net);
    return 0;
}

int flows_going_typed(u64 *ctx)
{
    u64 sk = TYPED_U64(ctx, 0), now = bpf_jiffies64();
    if ((now + TYPED_U32(sk, SK_HASH)) % FLOWS_PERIOD >= FLOWS_OPEN)
        return 0;
    return flows_going(sk, now);
}

int flows_going_raw(struct bpf_raw_tracepoint_args *ctx)
{
    u64 sk = ctx->args[0], now = bpf_jiffies64();
    if ((now + PEEK(u32, sk, SK_HASH)) % FLOWS_PERIOD >= FLOWS_OPEN)
        return 0;
    return flows_going(sk, now);
}
