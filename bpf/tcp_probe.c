// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * tcp_probe(sk, skb): net/ipv4/tcp_input.c, each segment that an established connection receives, so on a sender each
 * ACK, before it is processed. One program for all probes that look at it, since calling one costs more than what they
 * find in most calls, which is nothing. PART_x is defined for those that are to be in it.
 */
static inline __attribute__((always_inline)) int tcp_probe_parts(u64 sk, bool typed)
{
#ifdef PART_tcp_sndbuf
    tcp_sndbuf_part(sk, typed);
#endif
#ifdef PART_flows_going
    flows_going_part(sk, typed);
#endif
    return 0;
}

int tcp_probe_typed(u64 *ctx)
{
    return tcp_probe_parts(TYPED_U64(ctx, 0), true);
}

int tcp_probe_raw(struct bpf_raw_tracepoint_args *ctx)
{
    return tcp_probe_parts(ctx->args[0], false);
}
