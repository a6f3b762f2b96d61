// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * At each segment that is received (see tcp_probe.c). There are millions of them: each socket has its turn for some 60 ms
 * of each second (so that a window's ACKs do not miss it), by its hash, and all that the others cost is one read.
 */
#define FLOWS_PERIOD (SEC / TICK_NS)
#define FLOWS_OPEN (FLOWS_PERIOD / 16 + 1)

static inline __attribute__((always_inline)) int flows_going(u64 sk, u64 now, bool typed)
{
    struct flows_seen fresh = {.bytes = READ(typed, 64, sk, TP_BYTES_ACKED)}, none = {};
    if (fresh.bytes < BULK)
        return 0;
    struct flows_seen *seen = flows_sockets.lookup(&sk);
    if (seen && (now - seen->taken < FLOWS_PERIOD / 2 || fresh.bytes == seen->bytes))
        return 0;
    u64 net = READ(typed, 64, sk, SK_NET);
    struct flows_key key = {};
    struct flows_sum *sum = flows_of(sk, net, &key, typed);
    if (!sum)
        return 0;
    flows_look(sk, now, &fresh, typed);
    flows_add(sum, sk, &fresh, seen && seen->bytes <= fresh.bytes ? seen : &none, typed);
    flows_sockets.update(&sk, &fresh);
    flows_min_rtt(sum, sk, typed);
    FLOWS_TELL(flows_going, sum, &key, net, now);
    return 0;
}

static inline __attribute__((always_inline)) int flows_going_part(u64 sk, bool typed)
{
    u64 now = bpf_jiffies64();
    if ((now + READ(typed, 32, sk, SK_HASH)) % FLOWS_PERIOD >= FLOWS_OPEN)
        return 0;
    u64 tp = typed ? typed_tcp_sock((void *)sk) : sk;
    return tp ? flows_going(tp, now, typed) : 0;
}
