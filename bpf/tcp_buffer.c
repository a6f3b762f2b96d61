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
    u64 sk;    /* whose state this is */
    u64 id;    /* and its name: a new socket may get the address of one just closed */
    u64 near;  /* when last seen near; 0: never, or locked */
    u64 next;  /* not to be looked at before */
    u64 retry; /* before that, no slow candidate whose place this is: they come by the thousand, and any will do */
};

struct netns_state {
    u64 sent;
    u64 retry[2]; /* by side: no slow candidate is looked at before, for finding out who locked what costs */
    u64 slow[4];  /* by side and whether locked */
};

/*
 * A socket has a place for each side by its hash, where an array costs a tenth of what a hash table does. Two that share
 * one push each other out, and of a namespace something may be forgotten: that only means an event too many.
 */
#define PLACES 16384
BPF_TABLE("array", u32, struct socket_state, tcp_sockets, PLACES);
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
    u64 now = bpf_jiffies64();
    u32 place = (READ(typed, 32, sk, SK_HASH) * 2 + side) % PLACES;
    struct socket_state *state = tcp_sockets.lookup(&place);
    if (!state)
        return false;
    bool known = state->sk == sk;
    if (known && now < state->next)
        return false;
    bool near = size * 4 >= limit * 3;
    bool recent = known && state->near && now - state->near < NEAR_MEMORY && state->id == socket_id(sk, typed);
    bool slow = !near && !recent;
    if (slow && ((!in_use && !set) || now < state->retry))
        return false;
    struct netns_state *netns = netns_state(netns_by(typed, net));
    if (!netns || netns->sent == now)
        return false;
    if (slow && now < netns->retry[side]) {
        state->retry = netns->retry[side];
        return false;
    }
    verdict->id = socket_id(sk, typed);
    verdict->locked = READ_BITS(typed, sk, SK_USERLOCKS) & lock;
    if (near || recent || set) {
        u64 since = recent && !near ? state->near : now;
        state->sk = sk;
        state->id = verdict->id;
        state->near = verdict->locked || slow ? 0 : since;
        state->next = now + SOCKET_PERIOD;
    }
    if (verdict->locked || slow) {
        u64 *last = &netns->slow[verdict->locked ? side + 2 : side];
        netns->retry[side] = state->retry = now + SLOW_RETRY;
        if (*last && now - *last < SLOW_PERIOD)
            return false;
        *last = now;
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
