// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * neigh_create(tbl, dev, pkey, n, exempt_from_gc): net/core/neighbour.c, ___neigh_create(), right after neigh_alloc().
 * n is NULL when the table refused the entry (entries >= gc_thresh3 and a forced collection freed none; table_fulls), or
 * when there was no memory. By then gc_entries is counted up for an entry that was made, and back for one refused.
 *
 * One event while the table fills by a sixteenth and 1 ms has passed; above 75 %, and for each refusal, one in 1 ms.
 * The arguments are read as plain numbers: the verifier of some kernels takes a typed n for never NULL and removes the
 * test.
 */
#include <trimtab.h>

struct neigh_record {
    u64 t_ns, family, entries, total_entries, gc_thresh1, gc_thresh2, gc_thresh3, netns, netns_ino, ifindex, refused;
};

struct neigh_table_state {
    u64 sent_ns, sent_entries, refused;
};

/* Two tables in the kernel: ARP, ND. */
BPF_TABLE("array", u32, struct neigh_table_state, neigh_tables, 2);

static inline __attribute__((always_inline)) int neigh_send(struct neigh_table_state *state, u64 tbl, u64 dev, u64 now,
                                                            u32 family, u64 entries, u64 limit)
{
    struct neigh_record *record = RESERVE(neigh_create, record);
    if (!record)
        return 0;
    u64 net = PEEK(u64, dev, DEV_NET);
    record->t_ns = now;
    record->family = family;
    record->entries = entries;
    record->total_entries = NOT_NEGATIVE(PEEK(s32, tbl, TBL_ENTRIES));
    record->gc_thresh1 = NOT_NEGATIVE(PEEK(s32, tbl, TBL_GC_THRESH1));
    record->gc_thresh2 = NOT_NEGATIVE(PEEK(s32, tbl, TBL_GC_THRESH2));
    record->gc_thresh3 = limit;
    record->netns = netns_of(net);
    record->netns_ino = PEEK(u32, net, NET_INUM);
    record->ifindex = NOT_NEGATIVE(PEEK(s32, dev, DEV_IFINDEX));
    record->refused = state->refused;
    bpf_ringbuf_submit(record, 0);
    return 0;
}

int neigh_create_raw(struct bpf_raw_tracepoint_args *ctx)
{
    u64 tbl = ctx->args[0], dev = ctx->args[1];
    bool refused = !ctx->args[3];
    u32 family = PEEK(u32, tbl, TBL_FAMILY), row = family == AF_INET6;
    if (family != AF_INET && family != AF_INET6)
        return 0;
    struct neigh_table_state *state = neigh_tables.lookup(&row);
    if (!state)
        return 0;
    if (refused)
        __sync_fetch_and_add(&state->refused, 1);
    u64 entries = NOT_NEGATIVE(PEEK(s32, tbl, TBL_GC_ENTRIES)), limit = NOT_NEGATIVE(PEEK(s32, tbl, TBL_GC_THRESH3));
    if (entries < state->sent_entries)
        state->sent_entries = entries; /* it emptied; growth counts from here */
    if (entries * 5 < limit * 2 && !refused)
        return 0;
    u64 now = bpf_ktime_get_ns();
    if (now - state->sent_ns < MSEC)
        return 0;
    if (entries * 4 < limit * 3 && !refused && entries < state->sent_entries + limit / 16)
        return 0;
    state->sent_ns = now;
    state->sent_entries = entries;
    return neigh_send(state, tbl, dev, now, family, entries, limit);
}
