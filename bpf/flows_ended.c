// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * A connection ends when it becomes CLOSE (see inet_sock_set_state.c), all that it has counted still in place (tcp_done in
 * net/ipv4/tcp.c; its congestion control goes with the socket, later).
 */
static inline __attribute__((always_inline)) int flows_ended_part(u64 sk, bool typed)
{
    struct flows_seen now = {.bytes = READ(typed, 64, sk, TP_BYTES_ACKED)}, none = {};
    /* A FIN counts for one. */
    if (now.bytes <= 1)
        return 0;
    u64 net = READ(typed, 64, sk, SK_NET);
    struct flows_key key = {};
    struct flows_sum *sum = flows_of(sk, net, &key, typed);
    if (!sum)
        return 0;
    flows_look(sk, bpf_jiffies64(), &now, typed);
    if (now.bytes < BULK) {
        ADD(sum, short_connections, 1);
        ADD(sum, short_bytes, now.bytes);
        ADD(sum, short_busy_us, US(now.busy));
        ADD(sum, short_segments, now.segments);
        ADD(sum, short_resent, now.resent);
    } else {
        struct flows_seen *seen = flows_sockets.lookup(&sk);
        flows_add(sum, sk, &now, seen && seen->bytes <= now.bytes ? seen : &none, typed);
        ADD(sum, connections, 1);
        flows_sockets.delete(&sk);
    }
    flows_min_rtt(sum, sk, typed);
    FLOWS_TELL(flows_ended, sum, &key, net, now.taken);
    return 0;
}
