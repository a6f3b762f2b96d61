// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Datagrams that a UDP socket could not take: for want of room in its own buffer, or of memory of all UDP sockets.
 *
 * From kfree_skb() where it tells the socket (see kfree_skb.c), since udp_fail_queue_rcv_skb() is not told of the second
 * kind any more: __udp_enqueue_schedule_skb() in net/ipv4/udp.c drops these by itself, and counts them nowhere (6.18).
 * Else from udp_fail_queue_rcv_skb(rc, sk, ...), whose rc is -ENOMEM or -ENOBUFS.
 *
 * Counted by namespace, reason, and size of the buffer, which tells the sockets that have the default, those that were
 * given all that they may ask for, and the others apart; told of at the first, then at most ten times a second.
 */
#include <trimtab.h>

#define IPPROTO_UDP 17
#define UDP_ENOMEM 12
#define SOCK_RCVBUF_LOCK 2 /* include/net/sock.h */

struct udp_drop_record {
    u64 t_ns, netns, netns_ino, socket, family, port, rcvbuf_bytes;
    bool locked;
    char pad[7];
    u64 reason, dropped;
};

struct udp_drop_key {
    u64 netns;
    u32 rcvbuf_bytes;
    u16 reason, locked;
};

struct udp_drop_count {
    u64 dropped, sent; /* in ticks; 0: never */
};

/* Those silent longest are forgotten first, and count from 0 when they come again. */
BPF_TABLE("lru_hash", struct udp_drop_key, struct udp_drop_count, udp_drop_counts, 2048);

/* As raw_socket_id() in tcp_buffer.c: the address itself stays in the kernel. */
static inline __attribute__((always_inline)) u64 udp_socket_id(u64 sk)
{
    u64 cookie = PEEK(u64, sk, SK_COOKIE), hash = (sk ^ (u64)PEEK(u16, sk, SK_NUM) << 32) * SALT;
    return cookie ?: ((hash ^ (hash >> 32)) & ((1ull << 62) - 1)) | 1ull << 62;
}

static inline __attribute__((always_inline)) int udp_dropped(u64 sk, u32 reason, bool typed)
{
    u64 net = READ(typed, 64, sk, SK_NET);
    struct udp_drop_key key = {
        .netns = net ? netns_by(typed, net) : 0,
        .rcvbuf_bytes = NOT_NEGATIVE((s32)READ(typed, 32, sk, SK_RCVBUF)),
        .reason = reason,
        .locked = (READ_BITS(typed, sk, SK_USERLOCKS) & SOCK_RCVBUF_LOCK) != 0,
    };
    struct udp_drop_count fresh = {}, *count = udp_drop_counts.lookup_or_try_init(&key, &fresh);
    if (!count)
        return 0;
    __sync_fetch_and_add(&count->dropped, 1);
    u64 now = bpf_jiffies64();
    if (now - count->sent < TICKS(100 * MSEC))
        return 0;
    count->sent = now;
    struct udp_drop_record *record = RESERVE(udp_drop, record);
    if (!record)
        return 0;
    record->t_ns = bpf_ktime_get_ns();
    record->netns = key.netns;
    record->netns_ino = PEEK(u32, net, NET_INUM);
    record->socket = typed ? typed_socket_cookie((void *)sk) : udp_socket_id(sk);
    record->family = PEEK(u16, sk, SK_FAMILY);
    record->port = PEEK(u16, sk, SK_NUM);
    record->rcvbuf_bytes = key.rcvbuf_bytes;
    record->locked = key.locked;
    __builtin_memset(record->pad, 0, sizeof(record->pad));
    record->reason = reason;
    record->dropped = count->dropped;
    bpf_ringbuf_submit(record, 0);
    return 0;
}

static inline __attribute__((always_inline)) int udp_drop_part(u32 reason, u64 sk, bool typed)
{
    if (!sk || (reason != NAMED_SOCKET_RCVBUFF && reason != NAMED_PROTO_MEM))
        return 0;
    return READ(typed, 16, sk, SK_PROTOCOL) == IPPROTO_UDP ? udp_dropped(sk, reason, typed) : 0;
}

int udp_drop_failed(struct bpf_raw_tracepoint_args *ctx)
{
    u32 reason = (s32)ctx->args[0] == -UDP_ENOMEM ? NAMED_SOCKET_RCVBUFF : NAMED_PROTO_MEM;
    return udp_dropped(ctx->args[1], reason, false);
}
