// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * cgroup/sysctl, called by proc_sys_call_handler() (fs/proc/proc_sysctl.c) after the permission check and before the
 * handler: a write seen here may still be refused as a bad value. Always returns 1, which allows it.
 *
 * A table under net/ may hang on a namespace other than the writer's: a descriptor of a /proc/sys/net file stays with the
 * namespace in which it was opened. So the namespace named is that of the table, found from the table's set, which sits
 * in struct net; 0 for tables of the host as a whole. Where BTF does not show the way, it is the writer's.
 */
#include <trimtab.h>

#define SYSCTL_NAME 128
#define SYSCTL_VALUE 128
#define SYSCTL_COMM 16

struct sysctl_record {
    u64 t_ns, netns, netns_ino, pid, uid;
    char comm[SYSCTL_COMM], name[SYSCTL_NAME], old_value[SYSCTL_VALUE], new_value[SYSCTL_VALUE];
};

#define SYSCTL_TABLE_KNOWN (OFF_SYSCTL_HEAD >= 0 && OFF_HEAD_SET >= 0 && OFF_SET_IS_SEEN >= 0 && OFF_NET_SYSCTLS >= 0)

/* The struct net that the table belongs to, or 0. */
static inline __attribute__((always_inline)) u64 sysctl_net(struct bpf_sysctl *ctx, const char *name)
{
    if (name[0] != 'n' || name[1] != 'e' || name[2] != 't' || name[3] != '/')
        return 0;
    if (!SYSCTL_TABLE_KNOWN)
        return PEEK(u64, PEEK(u64, bpf_get_current_task(), TASK_NSPROXY), NSPROXY_NET);
    u64 set = PEEK(u64, PEEK(u64, (u64)ctx, SYSCTL_HEAD), HEAD_SET);
    /* net/sysctl_net.c gives its sets an is_seen(); the host's own set has none. */
    return PEEK(u64, set, SET_IS_SEEN) ? set - OFF_NET_SYSCTLS : 0;
}

int sysctl_write(struct bpf_sysctl *ctx)
{
    if (!ctx->write)
        return 1;
    struct sysctl_record *record = RESERVE(sysctl_write, record);
    if (!record)
        return 1;
    record->t_ns = bpf_ktime_get_ns();
    record->pid = bpf_get_current_pid_tgid() >> 32;
    record->uid = (u32)bpf_get_current_uid_gid();
    bpf_get_current_comm(record->comm, sizeof(record->comm));
    bpf_sysctl_get_name(ctx, record->name, sizeof(record->name), 0);
    bpf_sysctl_get_current_value(ctx, record->old_value, sizeof(record->old_value));
    bpf_sysctl_get_new_value(ctx, record->new_value, sizeof(record->new_value));
    u64 net = sysctl_net(ctx, record->name);
    record->netns = net ? netns_of(net) : 0;
    record->netns_ino = net ? PEEK(u32, net, NET_INUM) : 0;
    bpf_ringbuf_submit(record, 0);
    return 1;
}
