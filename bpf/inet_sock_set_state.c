// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * inet_sock_set_state(sk, oldstate, newstate): include/trace/events/sock.h, ten times in the life of a connection. One
 * program for all probes that look at it: what they want to know of is that a TCP socket becomes CLOSE, and calling a
 * second one to find that it does not costs more than all the rest. PART_x is defined for those that are to be in it.
 */
#define TCP_CLOSE_ 7
#define IPPROTO_TCP_ 6

static inline __attribute__((always_inline)) int inet_sock_set_state_parts(u64 sk, u32 old, bool typed)
{
#ifdef PART_ports
    ports_part(sk, old, typed);
#endif
#ifdef PART_flows_ended
    flows_ended_part(sk, typed);
#endif
    return 0;
}

int inet_sock_set_state_typed(u64 *ctx)
{
    if ((u32)TYPED_U64(ctx, 16) != TCP_CLOSE_)
        return 0;
    u64 sk = typed_tcp_sock((void *)TYPED_U64(ctx, 0));
    return sk ? inet_sock_set_state_parts(sk, TYPED_U64(ctx, 8), true) : 0;
}

int inet_sock_set_state_raw(struct bpf_raw_tracepoint_args *ctx)
{
    u64 sk = ctx->args[0];
    if ((u32)ctx->args[2] != TCP_CLOSE_ || PEEK(u16, sk, SK_PROTOCOL) != IPPROTO_TCP_)
        return 0;
    return inet_sock_set_state_parts(sk, ctx->args[1], false);
}
