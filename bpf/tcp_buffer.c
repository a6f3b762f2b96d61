// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * What tcp_rcvbuf.c and tcp_sndbuf.c share: when a socket's buffer is worth an event. Packets come by the million,
 * conditions do not:
 *  - near (75 % of the limit) now or within 5 s: one event per socket in 100 ms, so that the rate after a raised limit
 *    is seen as well;
 *  - in use (40 %), or locked by the application: one of each per namespace and side in 5 s;
 *  - in all at most one per namespace and tick (two CPUs in the same instant may both pass);
 *  - below an eighth of the limit: not looked at, unless locked, which only the typed road asks so often.
 * Not a header: bcc rewrites table.lookup() in the main text only, so the loader puts the sources one after another.
 */
#include <trimtab.h>

/* In ticks. */
#define SOCKET_PERIOD TICKS(100 * MSEC)
#define SLOW_PERIOD TICKS(5 * SEC)
#define SLOW_RETRY TICKS(10 * MSEC)
#define NEAR_MEMORY TICKS(5 * SEC)

enum side { RECEIVE, SEND };

/*
 * A name for the socket while it lives, on the road that cannot ask for a cookie: the cookie if anyone else has asked
 * for one (as ss does), or a hash of the socket's address and ports. The address itself stays in the kernel: SALT is
 * random per load. Below 2^63, which every database and JSON reader can hold; cookies never get near 2^62.
 */
static inline __attribute__((always_inline)) u64 raw_socket_id(u64 sk)
{
    u64 cookie = PEEK(u64, sk, SK_COOKIE);
    if (cookie)
        return cookie;
    u64 hash = (sk ^ (u64)PEEK(u16, sk, SK_NUM) << 32 ^ (u64)PEEK(u16, sk, SK_DPORT) << 48) * SALT;
    return ((hash ^ (hash >> 32)) & ((1ull << 62) - 1)) | 1ull << 62;
}

static inline __attribute__((always_inline)) u64 socket_id(u64 sk, bool typed)
{
    return typed ? typed_socket_cookie((void *)sk) : raw_socket_id(sk);
}

/* All in ticks. */
struct socket_state {
    u64 id;   /* whose state this is: a new socket may get the address of one just closed */
    u64 near; /* when last seen near; 0: never, or locked */
    u64 next; /* not to be looked at before */
};

struct netns_state {
    u64 sent;
    u64 retry[2]; /* by side: no slow candidate is looked at before, for finding out who locked what costs */
    u64 slow[4];  /* by side and whether locked */
};

/* Keyed by the socket's address plus its side, and by the namespace. Lost entries only mean an event too many. */
BPF_TABLE("lru_hash", u64, struct socket_state, tcp_sockets, 8192);
BPF_TABLE("lru_hash", u64, struct netns_state, tcp_namespaces, 1024);

static inline __attribute__((always_inline)) struct netns_state *netns_state(u64 netns)
{
    struct netns_state fresh = {}, *state = tcp_namespaces.lookup(&netns);
    if (state)
        return state;
    tcp_namespaces.update(&netns, &fresh);
    return tcp_namespaces.lookup(&netns);
}

struct verdict {
    u64 id;
    bool locked;
};

/* Whether to send an event for this socket now. `lock` is the bit of sk_userlocks for this side. */
static inline __attribute__((always_inline)) bool due(u64 sk, u64 net, enum side side, u64 size, u64 limit, u8 lock,
                                                      bool typed, struct verdict *verdict)
{
    bool in_use = size * 5 >= limit * 2;
    /* However small it is, a size that the application has set is worth a word: where looking costs next to nothing. */
    bool set = typed && !in_use && (READ_BITS(typed, sk, SK_USERLOCKS) & lock);
    if (size * 8 < limit && !set)
        return false;
    u64 key = sk + side, now = bpf_jiffies64();
    struct socket_state next = {}, *state = tcp_sockets.lookup(&key);
    if (state && now < state->next)
        return false;
    bool near = size * 4 >= limit * 3;
    bool recent = state && state->near && now - state->near < NEAR_MEMORY && state->id == socket_id(sk, typed);
    if (!near && !recent && !in_use && !set)
        return false;
    struct netns_state *netns = netns_state(netns_of(net));
    if (!netns || netns->sent == now)
        return false;
    if (!near && !recent && now < netns->retry[side])
        return false;
    verdict->id = next.id = socket_id(sk, typed);
    verdict->locked = PEEK_BITS(sk, SK_USERLOCKS) & lock;
    next.next = now + SOCKET_PERIOD;
    if (verdict->locked || (!near && !recent)) {
        u64 *slow = &netns->slow[verdict->locked ? side + 2 : side];
        netns->retry[side] = now + SLOW_RETRY;
        if (near || set)
            tcp_sockets.update(&key, &next);
        if (*slow && now - *slow < SLOW_PERIOD)
            return false;
        *slow = now;
    } else {
        next.near = recent && !near ? state->near : now;
        tcp_sockets.update(&key, &next);
    }
    netns->sent = now;
    return true;
}

#define FILL_SOCKET(record, sk, net, verdict)                 \
    do {                                                      \
        (record)->netns = netns_of(net);                      \
        (record)->netns_ino = PEEK(u32, net, NET_INUM);       \
        (record)->socket = (verdict)->id;                     \
        (record)->locked = (verdict)->locked;                 \
        (record)->family = PEEK(u16, sk, SK_FAMILY);          \
        (record)->sport = PEEK(u16, sk, SK_NUM);              \
        (record)->dport = bpf_ntohs(PEEK(u16, sk, SK_DPORT)); \
        (record)->srtt_us = PEEK(u32, sk, TP_SRTT) >> 3;      \
    } while (0)
