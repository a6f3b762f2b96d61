// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * inet_sock_set_state(sk, oldstate, newstate): include/trace/events/sock.h. A connection ends when it becomes CLOSE, all
 * that it has counted still in place (tcp_done in net/ipv4/tcp.c; its congestion control goes with the socket, later).
 */
#define FLOWS_TCP 6
#define FLOWS_CLOSE 7

int flows_ended_raw(struct bpf_raw_tracepoint_args *ctx)
{
    u64 sk = ctx->args[0];
    if ((u32)ctx->args[2] != FLOWS_CLOSE || PEEK(u16, sk, SK_PROTOCOL) != FLOWS_TCP)
        return 0;
    struct flows_seen now = {.bytes = PEEK(u64, sk, TP_BYTES_ACKED)}, none = {};
    /* A FIN counts for one. */
    if (now.bytes <= 1)
        return 0;
    u64 net = PEEK(u64, sk, SK_NET);
    struct flows_key key = {};
    struct flows_sum *sum = flows_of(sk, net, &key);
    if (!sum)
        return 0;
    flows_look(sk, bpf_jiffies64(), &now);
    if (now.bytes < BULK) {
        ADD(sum, short_connections, 1);
        ADD(sum, short_bytes, now.bytes);
        ADD(sum, short_busy_us, US(now.busy));
        ADD(sum, short_segments, now.segments);
        ADD(sum, short_resent, now.resent);
    } else {
        struct flows_seen *seen = flows_sockets.lookup(&sk);
        flows_add(sum, sk, &now, seen && seen->bytes <= now.bytes ? seen : &none);
        ADD(sum, connections, 1);
        flows_sockets.delete(&sk);
    }
    flows_min_rtt(sum, sk);
    FLOWS_TELL(flows_ended, sum, &key, net);
    return 0;
}
