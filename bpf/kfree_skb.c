// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * kfree_skb(skb, location, reason, rx_sk): net/core/skbuff.c, for each packet that is dropped and not merely done with
 * (since 5.17 with the reason, since 6.11 with the receiving socket). One program for all probes that look at it: under
 * a flood of packets to be dropped, calling three costs as much as what they do. PART_x is defined for those that are
 * to be in it.
 */
static inline __attribute__((always_inline)) int kfree_skb_parts(u64 skb, u32 reason, u64 sk, bool typed)
{
#ifdef PART_drops
    drops_part(skb, reason, sk, typed);
#endif
#ifdef PART_udp_drop
    udp_drop_part(reason, sk, typed);
#endif
#ifdef PART_ip_frag
    ip_frag_part(skb, sk, typed);
#endif
    return 0;
}

/*
 * Must be refused. rx_sk may be NULL, which the verifier has known since 6.13 (raw_tp_null_args in kernel/bpf/btf.c; also
 * in 6.12.6). One that does not know leaves out our test for it, and the kernel would follow a null pointer.
 */
int kfree_skb_untested(u64 *ctx)
{
    return TYPED_U64(TYPED_U64(ctx, 24), 0) & 0;
}

int kfree_skb_to_socket_typed(u64 *ctx)
{
    return kfree_skb_parts(TYPED_U64(ctx, 0), TYPED_U64(ctx, 16), TYPED_U64(ctx, 24), true);
}

int kfree_skb_to_socket(struct bpf_raw_tracepoint_args *ctx)
{
    return kfree_skb_parts(ctx->args[0], ctx->args[2], ctx->args[3], false);
}

int kfree_skb_typed(u64 *ctx)
{
    return kfree_skb_parts(TYPED_U64(ctx, 0), TYPED_U64(ctx, 16), 0, true);
}

int kfree_skb_raw(struct bpf_raw_tracepoint_args *ctx)
{
    return kfree_skb_parts(ctx->args[0], ctx->args[2], 0, false);
}
