"""Real hosts for tests of the fleet: namespaces of their own for network, mounts, processes and names, the machine's
own files under an overlay that ends with them, and an sshd as their first process.

    with fleet(3) as world:
        world.play("site.yml")
        world.hosts["h1"].run("trimtab status")

They hang on a bridge that is in a namespace as well, and so is who speaks with them: the machine's own network and
files are left as they are. What a host writes is in memory. All of it goes when the block ends, and when the test's
process does.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bus import netns

TREE = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
UNPACKED = Path(sys.prefix) / "unpacked"
"""Where ./bootstrap test puts an sshd that is not installed, so that no service starts."""
READY_S = 20.0
BUNDLE_S = 3600.0
"""How long an archive of another tree stays for others who test."""
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_numbers = itertools.count()

# Its files: the machine's own, under what it writes.
FILES = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o "size=$SIZE,mode=755" fleet "$BASE"
mkdir "$BASE/upper" "$BASE/work" "$BASE/root"
[ ! -d "$UNPACKED" ] || cp -a "$UNPACKED/." "$BASE/upper"
mount -t overlay overlay -o "lowerdir=/,upperdir=$BASE/upper,workdir=$BASE/work" "$BASE/root"
cd "$BASE/root"
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
# Or systemd, with what the units need: systemd-nspawn(1). The cgroups are its own; _end() takes them away.
SYSTEMD = """
rm -rf etc/machine-id etc/systemd/system/*.wants
echo "$ID" > etc/machine-id
cat > etc/systemd/system/fleet-sshd.service <<END
[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -f /etc/ssh/fleet/config
END
mkdir -p etc/systemd/system/multi-user.target.wants etc/systemd/system/service.d
# The tree may be below /tmp, which is a new one there, and again for each unit.
printf '[Service]\nBindReadOnlyPaths=%s\n' "$TREE" > etc/systemd/system/service.d/tree.conf
ln -s ../fleet-sshd.service etc/systemd/system/multi-user.target.wants/
for group in /sys/fs/cgroup/*/; do
    mkdir "$group$CGROUP" 2>/dev/null && echo $$ > "$group$CGROUP/cgroup.procs" || :
done
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
# 133: asked to reboot.
while
    code=0
    mount -o remount,rw .
    systemd-nspawn --quiet --register=no --keep-unit --directory=. "--machine=$NAME" --boot "--bind-ro=$TREE" \\
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
Process = subprocess.Popen[bytes]


class FleetError(RuntimeError):
    """A host that did not come up, or a play that did not end as it should: with what it said."""


class Host:
    """One host, and its first process (in whose namespaces everything of it is)."""

    def __init__(self, name: str, address: str, namespace: str, booted: bool, process: Process) -> None:
        self.name = name
        self.address = address
        self.namespace = namespace
        self.booted = booted
        """systemd runs there."""
        self._process = process

    @property
    def pid(self) -> int:
        """Its first process, of the children of unshare(1)."""
        found = _children(self._process.pid)
        while found and self.booted and _command(found[0]) != "systemd":
            found = _children(found[0])
        if not found:
            raise FleetError(f"{self.name} has no process")
        return found[0]

    @property
    def running(self) -> bool:
        """Its first process is there; not so while it boots anew."""
        try:
            return self.pid > 0
        except (FleetError, OSError):
            return False

    @property
    def ended(self) -> bool:
        """It is down."""
        return self._process.poll() is not None

    def run(self, command: str, check: bool = True, timeout_s: float = 60.0) -> str:
        """What a shell command prints there."""
        argv = ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd", "/bin/sh", "-c", command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT)
        if check and done.returncode:
            raise FleetError(f"{self.name}: {command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def path(self, path: str) -> Path:
        """A file of it, as seen from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def sysctls(self) -> dict[str, str]:
        """Every value under net.ipv4 and net.core of its namespace that can be read."""
        found = self.run("cd /proc/sys/net && grep -r . ipv4/tcp* ipv4/ip* core 2>/dev/null || :")
        return {name: value for name, _, value in (line.partition(":") for line in found.splitlines())}

    def wish(self, tunable: str, want: int) -> None:
        """Ask for a value as the decider tcp_buffer does: as its user, on its lane."""
        self.run(f"/opt/trimtab/current/bin/python -I -B -c {shlex.quote(WISH)} {shlex.quote(tunable)} {want}")

    def die(self) -> None:
        """As by a power cut."""
        self._process.kill()
        self._process.wait()


class World:
    """The hosts and who speaks with them."""

    def __init__(self, folder: Path, hub: str) -> None:
        self.folder = folder
        self.hub = hub
        self.hosts: dict[str, Host] = {}
        self.inventory = folder / "hosts.ini"
        self.variables: dict[str, Any] = {}
        """Given to every play, beside its own."""

    def environment(self) -> dict[str, str]:
        """Of Ansible: nothing of the user's own."""
        ssh = f"-o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile={self.folder}/known_hosts"
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TERM") if key in os.environ}
        return {
            **kept,
            "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(TREE / "playbooks/ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_SSH_ARGS": ssh,
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_NOCOLOR": "1",
        }

    def argv(self, program: str, *words: str) -> list[str]:
        """A program of Ansible's, where the hosts can be reached."""
        return ["nsenter", f"--net=/run/netns/{self.hub}", str(BIN / program), "-i", str(self.inventory), *words]

    def run(self, argv: list[str]) -> str:
        """What a program of Ansible's prints. FleetError unless it ends with 0."""
        done = subprocess.run(argv, capture_output=True, text=True, env=self.environment(), cwd=self.folder)
        if done.returncode:
            raise FleetError(f"{shlex.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def play(self, play: str, *words: str, check: bool = True, **variables: Any) -> Played:
        """Run playbooks/PLAY. check: FleetError unless it ends with 0."""
        extra = ["-e", json.dumps({**self.variables, **variables})]
        argv = self.argv("ansible-playbook", str(TREE / "playbooks" / play), *extra, *words)
        started_s = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, env=self.environment(), cwd=self.folder)
        played = Played(done.returncode, done.stdout + done.stderr, time.monotonic() - started_s)
        if check and done.returncode:
            raise FleetError(f"{shlex.join(argv)}: {done.returncode}\n{played.said}")
        return played


def bundle() -> Path:
    """The archive of this tree, made where it is not there yet."""
    folder = Path(sys.prefix) / "bundles"
    plays = TREE / "playbooks"
    words = ["localhost", "-m", "trimtab.fleet.trimtab_bundle", "-a", f"source={TREE} folder={folder}"]
    done = subprocess.run(
        [str(BIN / "ansible"), *words, "--playbook-dir", str(plays)],
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(plays / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
    )
    if done.returncode:
        raise FleetError(done.stdout + done.stderr)
    path = Path(json.loads(done.stdout.partition("=> ")[2])["path"])
    for other in folder.glob("*.tar"):
        if other.stat().st_mtime < time.time() - BUNDLE_S:
            other.unlink()
    path.touch()
    return path


class Played:
    """How a play went."""

    def __init__(self, code: int, said: str, took_s: float) -> None:
        self.code = code
        self.said = said
        self.took_s = took_s

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Host -> what its line of the recap counts."""
        _, _, lines = self.said.rpartition("PLAY RECAP")
        rows = [line.partition(" : ") for line in lines.splitlines() if " : " in line]
        return {
            name.strip(): {key: int(value) for key, _, value in (word.partition("=") for word in counts.split())}
            for name, _, counts in rows
        }

    @property
    def changed(self) -> int:
        """Tasks that changed something, on all hosts."""
        return sum(counts["changed"] for counts in self.recap.values())


@contextlib.contextmanager
def fleet(number: int, size: str = "2g", booted: int = 0) -> Iterator[World]:
    """So many hosts, h1 and on, ready. size: of the memory for what each writes. booted: how many of them, the first,
    have systemd running."""
    prefix = f"ttf{os.getpid()}-{next(_numbers)}-"
    with tempfile.TemporaryDirectory(prefix="trimtab-fleet-") as name:
        world = World(Path(name), f"{prefix}hub")
        try:
            _keys(world.folder)
            _bridge(world.hub)
            for each in range(1, number + 1):
                _start(world, prefix, each, size, each <= booted)
            _inventory(world)
            for host in world.hosts.values():
                _wait(world, host)
            yield world
        finally:
            _end(world, prefix)


def _keys(folder: Path) -> None:
    for key in ("host", "login"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)]
        subprocess.run(argv, check=True, capture_output=True)
    (folder / "known_hosts").write_text(f"* {(folder / 'host.pub').read_text()}")


def _bridge(hub: str) -> None:
    _ip("netns", "add", hub)
    _ip("-n", hub, "link", "set", "lo", "up")
    _ip("-n", hub, "link", "add", "br0", "type", "bridge")
    _ip("-n", hub, "addr", "add", "10.77.0.1/16", "dev", "br0")
    _ip("-n", hub, "link", "set", "br0", "up")


def _start(world: World, prefix: str, number: int, size: str, booted: bool) -> None:
    name, address, namespace = f"h{number}", f"10.77.{1 + number // 250}.{number % 250 + 1}", f"{prefix}h{number}"
    commands = f"""
        link add v{number} netns {world.hub} type veth peer name eth0 netns {namespace}
        -n {world.hub} link set v{number} master br0 up
    """
    _ip("netns", "add", namespace)
    for line in commands.split("\n"):
        if line.strip():
            _ip(*line.split())
    _ip("-n", namespace, "-batch", "-", said=f"addr add {address}/16 dev eth0\nlink set eth0 up\nlink set lo up\n")
    base = world.folder / name
    base.mkdir()
    environment = {"NAME": name, "BASE": str(base), "SIZE": size, "UNPACKED": str(UNPACKED), "KEYS": str(world.folder),
                   "ID": uuid.uuid4().hex, "CGROUP": namespace, "TREE": str(TREE)}  # fmt: skip
    # The hosts end with the tests, however those end.
    argv = ["setpriv", "--pdeathsig=KILL", "nsenter", f"--net=/run/netns/{namespace}"]
    argv += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    with (world.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, "/bin/sh", "-c", FILES + (SYSTEMD if booted else SSHD)],
            env=ENVIRONMENT | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    world.hosts[name] = Host(name, address, namespace, booted, process)


def _inventory(world: World) -> None:
    lines = [f"{host.name} ansible_host={host.address}" for host in world.hosts.values()]
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(world.folder / "login"),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    rows = [f"{key}={value}" for key, value in common.items()]
    world.inventory.write_text("\n".join(["[fleet]", *lines, "", "[fleet:vars]", *rows, ""]))


def _wait(world: World, host: Host) -> None:
    """Until its sshd says something."""
    deadline_s = time.monotonic() + READY_S
    while not netns.inside(f"/run/netns/{world.hub}", lambda: _greets(host.address)):
        if time.monotonic() > deadline_s or host.ended:
            raise FleetError(f"{host.name}: {(world.folder / f'{host.name}.log').read_text()}")
        time.sleep(0.02)


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return bool(connection.recv(1))
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == pid]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _parent(stat: Path) -> int:
    """proc_pid_stat(5), the fourth field; 0 where the process has gone."""
    with contextlib.suppress(OSError):
        return int(stat.read_text().rpartition(") ")[2].split()[1])
    return 0


def _end(world: World, prefix: str) -> None:
    for host in world.hosts.values():
        host.die()
    # What spoke with them, as ssh's connections that outlast a play, is where nobody else is.
    inode = _inode(f"/run/netns/{world.hub}")
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        if inode and _inode(str(link)) == inode:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(link.parent.parent.name), signal.SIGKILL)
    for group in Path("/sys/fs/cgroup").glob(f"*/{prefix}*"):
        _remove_cgroup(group)
    for name in os.listdir("/run/netns"):
        if name.startswith(prefix):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _remove_cgroup(group: Path) -> None:
    """It and those below. A process that was killed leaves its own when it has been reaped."""
    for place, _, _ in os.walk(group, topdown=False):
        deadline_s = time.monotonic() + READY_S
        while True:
            try:
                os.rmdir(place)
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)
            else:
                break


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _ip(*words: str, said: str = "") -> None:
    done = subprocess.run(["ip", *words], input=said, capture_output=True, text=True)
    if done.returncode:
        raise FleetError(f"ip {' '.join(words)}: {done.stderr}")
