"""One host of a fleet that tests make: its namespaces, its files, its first process, and what a test does there.

machine's / (or, below it, what another host had written) + a tmpfs of its own = the host's files
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import uuid
from pathlib import Path

from host_scripts import FILES, SSHD, SYSTEMD, WISH
from msgspec import Struct

TREE = Path(__file__).resolve().parent.parent
UNPACKED = Path(sys.prefix) / "unpacked"
"""Where ./bootstrap test puts an sshd that is not installed, so that no service starts."""
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
Process = subprocess.Popen[bytes]


class FleetError(RuntimeError):
    """A host that did not come up, or a play that did not end as it should: with what it said."""


class Seat(Struct, frozen=True):
    """Where a host is made."""

    folder: Path
    """Of its world, with the keys."""
    namespace: str
    """Of its network, which is there already."""
    mounts: str
    """The mount namespace that its own begins with: a path."""
    size: str
    """Of the memory for what it writes."""


class Host:
    """One host, and its first process (in whose namespaces everything of it is)."""

    def __init__(self, name: str, address: str, seat: Seat, booted: bool, like: Path | None) -> None:
        self.name = name
        self.address = address
        self.booted = booted
        """systemd runs there."""
        self._seat = seat
        self._process = self._begin(like)
        self._first = 0

    @property
    def log(self) -> str:
        """What was said while it came up."""
        return (self._seat.folder / f"{self.name}.log").read_text()

    @property
    def pid(self) -> int:
        """Its first process. One that systemd runs on has another one after a reboot."""
        if self._first and not self.booted:
            return self._first
        found = _descendant(self._process.pid, "systemd" if self.booted else "")
        if not found:
            raise FleetError(f"{self.name} has no process")
        self._first = found
        return found

    @property
    def running(self) -> bool:
        """Its first process is there; not so while it boots anew."""
        try:
            return self.pid > 0 and not self.ended
        except FleetError:
            return False

    @property
    def ended(self) -> bool:
        """It is down."""
        return self._process.poll() is not None

    def run(self, command: str, check: bool = True, timeout_s: float = 180.0) -> str:
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
        """Every value under net.ipv4 and net.core that is its network namespace's own. The machine's can be read there,
        too, and not be written (net/core/sysctl_net_core.c); other tests may change those."""
        own = "ipv4/tcp_[!a]* ipv4/tcp_a[!lv]* ipv4/ip* core -type f -perm -200"
        found = self.run(f"cd /proc/sys/net && find {own} -exec grep -H . {{}} + 2>/dev/null || :")
        return {name: value for name, _, value in (line.partition(":") for line in found.splitlines())}

    def wish(self, tunable: str, want: int) -> None:
        """Ask for a value as the decider tcp_buffer does: as its user, on its lane."""
        self.run(f"/opt/trimtab/current/bin/python -I -B -c {shlex.quote(WISH)} {shlex.quote(tunable)} {want}")

    def written(self, into: Path) -> None:
        """Copy what it has written over the machine's files to a directory of its world's mounts, for hosts like it.
        What trimtab writes while it runs is left out."""
        place = self._seat.folder / self.name / "upper"
        argv = ["nsenter", f"--target={self.pid}", "--mount", "sh", "-ec"]
        left = "rm -rf var/lib/trimtab var/log/trimtab.log"
        command = f"mkdir {into} && cp -a {place}/. {into} && cd {into} && {left}"
        subprocess.run([*argv, command], check=True, env=ENVIRONMENT)

    def die(self) -> None:
        """All its processes at once, without a word of theirs; its kernel still says that they are no more."""
        self._process.kill()
        self._process.wait()

    def cut(self) -> None:
        """As by a power cut: nobody there says anything any more."""
        link = ["ip", "-n", self._seat.namespace, "link", "set", "eth0", "down"]
        subprocess.run(link, check=True, env=ENVIRONMENT)
        self.die()

    def _begin(self, like: Path | None) -> Process:
        base = self._seat.folder / self.name
        base.mkdir()
        environment = {
            "NAME": self.name,
            "BASE": str(base),
            "LIKE": str(like or ""),
            "SIZE": self._seat.size,
            "UNPACKED": str(UNPACKED),
            "KEYS": str(self._seat.folder),
            "ID": uuid.uuid4().hex,
            "CGROUP": self._seat.namespace,
            "TREE": str(TREE),
        }
        # The hosts end with the tests, however those end.
        argv = ["setpriv", "--pdeathsig=KILL", "nsenter", f"--mount={self._seat.mounts}"]
        argv += [f"--net=/run/netns/{self._seat.namespace}"]
        argv += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        with (self._seat.folder / f"{self.name}.log").open("wb") as log:
            return subprocess.Popen(
                [*argv, "/bin/sh", "-c", FILES + (SYSTEMD if self.booted else SSHD)],
                env=ENVIRONMENT | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def _descendant(pid: int, command: str) -> int:
    """Of the processes below this one, generation by generation, the first with this command (empty: with any); 0 where
    there is none."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        children.setdefault(_parent(stat), []).append(int(stat.parent.name))
    generation = children.get(pid, [])
    while generation:
        for each in generation:
            if not command or _command(each) == command:
                return each
        generation = [child for each in generation for child in children.get(each, [])]
    return 0


def _command(pid: int) -> str:
    """proc_pid_comm(5); empty where the process has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _parent(stat: Path) -> int:
    """proc_pid_stat(5), the fourth field; 0 where the process has gone."""
    with contextlib.suppress(OSError):
        return int(stat.read_text().rpartition(") ")[2].split()[1])
    return 0
