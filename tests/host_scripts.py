"""What runs in a host of the tests (host_world): shell that makes its files, what is its first process, and a wish."""

from __future__ import annotations

# Its files: the machine's own, under what it writes; or under what another host had written, which it then has as well.
FILES = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o "size=$SIZE,mode=755" fleet "$BASE"
mkdir "$BASE/upper" "$BASE/work" "$BASE/root"
[ -n "$LIKE" ] || [ ! -d "$UNPACKED" ] || cp -a "$UNPACKED/." "$BASE/upper"
mount -t overlay overlay -o "lowerdir=${LIKE:+$LIKE:}/,upperdir=$BASE/upper,workdir=$BASE/work" "$BASE/root"
cd "$BASE/root"
[ -n "$LIKE" ] || {
rm -rf etc/trimtab var/lib/trimtab opt/trimtab etc/ansible var/log/trimtab.log etc/ssh/fleet
grep -q '^sshd:' etc/passwd || echo 'sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin' >> etc/passwd
mkdir -p etc/ssh/fleet
cp "$KEYS/host" "$KEYS/host.pub" "$KEYS/login.pub" etc/ssh/fleet
chmod 600 etc/ssh/fleet/host
cat > etc/ssh/fleet/config <<END
HostKey /etc/ssh/fleet/host
AuthorizedKeysFile /etc/ssh/fleet/login.pub
StrictModes no
UsePAM no
PermitRootLogin yes
MaxStartups 100
Subsystem sftp internal-sftp
END
}
"""
# What runs in it. The bpf file systems and tracefs stay out: probes are the whole machine's, and each costs a compiler.
SSHD = """
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs sys/kernel/btf 2>/dev/null || :
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/sshd run/netns
hostname "$NAME"
exec chroot . /usr/sbin/sshd -D -f /etc/ssh/fleet/config
"""
# Or systemd, with what the units need: systemd-nspawn(1). The cgroups are its own; World.end() takes them away.
SYSTEMD = """
rm -rf etc/machine-id etc/systemd/system/*.wants
echo "$ID" > etc/machine-id
cat > etc/systemd/system/fleet-sshd.service <<END
[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -f /etc/ssh/fleet/config
END
mkdir -p etc/systemd/system/multi-user.target.wants etc/systemd/system/service.d
# The tree may be below /tmp, which is a new one there, and again for each unit. A unit that protects control groups
# gets a /proc of its own, where the boot id is the machine's; systemd-nspawn mounts a new one over the other's.
printf '[Service]\nBindReadOnlyPaths=%s\nProtectControlGroups=no\n' "$TREE" > etc/systemd/system/service.d/tree.conf
ln -s ../fleet-sshd.service etc/systemd/system/multi-user.target.wants/
for group in /sys/fs/cgroup/*/; do
    mkdir "$group$CGROUP" 2>/dev/null && echo $$ > "$group$CGROUP/cgroup.procs" || :
done
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
grep . /proc/sys/net/ipv4/tcp_* > "$BASE/values" 2>/dev/null || :
# 133: asked to reboot. Its network stays, so what a kernel that boots would forget is put back here.
while
    code=0
    while IFS=: read -r file value; do echo "$value" > "$file"; done < "$BASE/values" 2>/dev/null || :
    mount -o remount,rw .
    SYSTEMD_NSPAWN_API_VFS_WRITABLE=network systemd-nspawn --quiet --register=no --keep-unit \\
    --directory=. "--machine=$NAME" --boot "--bind-ro=$TREE" \\
    --capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON --network-namespace-path=/proc/self/ns/net \\
    "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp" \\
    -- systemd.unit=multi-user.target || code=$?
    [ "$code" -eq 133 ]
do :; done
"""

# Again until it stands: the lane's sockets find each other in their own time.
WISH = """
import os, sys, time
from pathlib import Path
from bus import link, netns
from bus.roles import wish_path
from bus.schema import Wish
tunable, want = sys.argv[1], int(sys.argv[2])
file = Path("/proc/sys", *tunable.partition("[")[0].split("."))
inode = os.stat("/proc/self/ns/net").st_ino
lane = wish_path(Path("/run/trimtab"), "tcp_buffer")
user = lane.parent.stat().st_gid
os.setgroups([])
os.setgid(user)
os.setuid(user)
sender = link.WishSender(lane)
for _ in range(50):
    now = int(file.read_text().split()[-1])
    if now == want:
        sys.exit(0)
    row = (tunable, netns.cookie_here(), inode, now, want, "asked for by a test: 1", {"asked": 1})
    sender.send(Wish(1, time.monotonic_ns(), 1_000_000_000, *row))
    time.sleep(0.2)
sys.exit("not granted")
"""
