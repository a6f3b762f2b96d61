/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What all probes share. Places of members (OFF_, SHIFT_, BITS_) come from the running kernel's BTF, descriptors of the
 * rings and of the drop counters from the loader, all as -D. A member that the kernel does not have is OFF_x = -1 and
 * reads as 0.
 */
#pragma once

#define AF_INET 2
#define AF_INET6 10

#define MSEC 1000000ull
#define SEC 1000000000ull

/*
 * The clock of what comes with packets is the tick (jiffies, 1 to 10 ms): reading it costs nothing, while on some virtual
 * machines bpf_ktime_get_ns() costs 100 ns.
 */
#define TICKS(ns) (((ns) + TICK_NS - 1) / TICK_NS)

/*
 * By number (BPF_FUNC_probe_read_kernel): what bcc knows by the name becomes the old bpf_probe_read where the loader,
 * without CAP_SYSLOG, reads no addresses in /proc/kallsyms, and a cgroup program may not call that one.
 */
static long (*read_kernel)(void *to, u32 bytes, const void *from) = (void *)113;

/* For a socket that the verifier knows. bcc's own prototype cuts cookies to 32 bits. */
static u64 (*typed_socket_cookie)(void *sk) = (void *)BPF_FUNC_get_socket_cookie;

/* Of a socket that the verifier knows, what it needs to know for the members behind: the same socket, or NULL. */
static u64 (*typed_tcp_sock)(void *sk) = (void *)BPF_FUNC_skc_to_tcp_sock;

/* Reads through a helper: works wherever the pointer came from, at some 45 ns each. */
#define PEEK(type, base, member)                                                              \
    ({                                                                                        \
        type peeked_ = 0;                                                                     \
        if (OFF_##member >= 0)                                                                \
            read_kernel(&peeked_, sizeof(peeked_), (const void *)((base) + OFF_##member));    \
        peeked_;                                                                              \
    })
#define PEEK_BITS(base, member) ((PEEK(u8, base, member) >> SHIFT_##member) & ((1u << BITS_##member) - 1))

/*
 * Reads a member that the verifier knows from the program's typed arguments, at some 2 ns. In assembly, since bcc
 * rewrites what looks like a dereference into a helper call. A pointer that may be null must have been compared before,
 * but for those that were read themselves: from them the kernel reads 0.
 */
#define TYPED_(bits, base, offset)                                                          \
    ({                                                                                      \
        u64 typed_;                                                                         \
        asm volatile("%0 = *(u" #bits " *)(%1 + %2)" : "=r"(typed_) : "r"(base), "i"(offset)); \
        typed_;                                                                             \
    })
/* Only for members without which there is no probe. */
#define TYPED_U32(base, member) TYPED_(32, base, OFF_##member)
#define TYPED_U64(base, offset) TYPED_(64, base, offset)

/* For what both roads share: `typed`, which road it is, is known when it is compiled. */
#define READ(typed, bits, base, member)                                                                       \
    ((typed) ? (u##bits)(OFF_##member >= 0 ? TYPED_(bits, base, OFF_##member) : 0) : PEEK(u##bits, base, member))
#define READ_BITS(typed, base, member) ((READ(typed, 8, base, member) >> SHIFT_##member) & ((1u << BITS_##member) - 1))

/* A negative count is a snapshot of something in motion. */
#define NOT_NEGATIVE(value) ((value) < 0 ? 0 : (u64)(value))

static inline __attribute__((always_inline)) u64 netns_by(bool typed, u64 net)
{
    return OFF_NET_COOKIE >= 0 ? READ(typed, 64, net, NET_COOKIE) : READ(typed, 32, net, NET_INUM);
}
#define netns_of(net) netns_by(false, net)

/*
 * Room for a record of this probe, or NULL: then the loss is counted, for a ring does not tell its readers what found
 * no room in it. RECORD_ is the size of the row's form in bpf/__init__.py.
 */
#define RESERVE(probe, record)                                                                       \
    ({                                                                                               \
        _Static_assert(sizeof(*(record)) == RECORD_##probe, "the record is not as its row says");    \
        void *reserved_ = bpf_ringbuf_reserve((void *)bpf_pseudo_fd(1, RING_##probe), RECORD_##probe, 0); \
        if (!reserved_) {                                                                            \
            u32 row_ = ROW_##probe;                                                                  \
            u64 *lost_ = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, DROPS), &row_);                \
            if (lost_)                                                                               \
                __sync_fetch_and_add(lost_, 1);                                                      \
        }                                                                                            \
        reserved_;                                                                                   \
    })
