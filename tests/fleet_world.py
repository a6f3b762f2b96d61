"""Real hosts for tests of the fleet: namespaces of their own for network, mounts, processes and names, the machine's
own files under an overlay that ends with them, and an sshd as their first process.

    with fleet(3) as world:
        world.play("site.yml")
        world.hosts["h1"].run("trimtab status")
        world.add(17, like=world.hosts["h1"])

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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from host_scripts import WISH
from host_world import ENVIRONMENT, TREE, FleetError, Host, Seat
from play_world import BIN, Played, bundle

from bus import netns

__all__ = ["TREE", "WISH", "FleetError", "Host", "Played", "World", "bundle", "fleet"]

READY_S = 60.0
SHARED = "shared"
_numbers = itertools.count()


class World:
    """The hosts and who speaks with them."""

    def __init__(self, folder: Path, prefix: str, size: str) -> None:
        self.folder = folder
        self.hub = f"{prefix}hub"
        self._prefix = prefix
        self._size = size
        self.hosts: dict[str, Host] = {}
        self.inventory = folder / "hosts.ini"
        self.variables: dict[str, Any] = {}
        """Given to every play, beside its own."""
        self._mounts: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """What all hosts need."""
        self._mounts = _mounts(self.folder)
        _keys(self.folder)
        _bridge(self.hub)

    def add(self, number: int, booted: int = 0, like: Host | None = None) -> list[Host]:
        """So many hosts more, ready. booted: how many of them, the first, have systemd running. like: they begin with
        the files of this one, as it is installed; trimtab does not run yet."""
        image = self._image(like) if like and number else None
        first = len(self.hosts) + 1
        made = [self._host(first + each, each < booted, image) for each in range(number)]
        self.hosts |= {host.name: host for host in made}
        self._write_inventory()
        for host in made:
            self._wait(host)
        return made

    def end(self) -> None:
        """Nothing of it stays."""
        for host in self.hosts.values():
            host.die()
        if self._mounts:
            self._mounts.kill()
            self._mounts.wait()
        # What spoke with them, as ssh's connections that outlast a play, is where nobody else is.
        inode = _inode(f"/run/netns/{self.hub}")
        for link in Path("/proc").glob("[0-9]*/ns/net"):
            if inode and _inode(str(link)) == inode:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(link.parent.parent.name), signal.SIGKILL)
        for group in Path("/sys/fs/cgroup").glob(f"*/{self._prefix}*"):
            _remove_cgroup(group)
        for name in os.listdir("/run/netns"):
            if name.startswith(self._prefix):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def environment(self) -> dict[str, str]:
        """Of Ansible: nothing of the user's own."""
        ssh = "-o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=5 -o ServerAliveCountMax=4"
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TERM") if key in os.environ}
        return {
            **kept,
            "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(TREE / "playbooks/ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_SSH_ARGS": f"{ssh} -o UserKnownHostsFile={self.folder}/known_hosts",
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

    # --- how

    def _image(self, host: Host) -> Path:
        """The memory that is shared by all hosts that are like this one. They see it, and it stays as it is."""
        image = self.folder / SHARED / str(next(_numbers))
        host.written(image)
        return image

    def _host(self, number: int, booted: bool, image: Path | None) -> Host:
        namespace, address = f"{self._prefix}h{number}", f"10.77.{1 + number // 250}.{number % 250 + 1}"
        assert self._mounts
        _ip("netns", "add", namespace)
        _ip(*f"link add v{number} netns {self.hub} type veth peer name eth0 netns {namespace}".split())
        _ip("-n", self.hub, "link", "set", f"v{number}", "master", "br0", "up")
        _ip("-n", namespace, "-batch", "-", said=f"addr add {address}/16 dev eth0\nlink set eth0 up\nlink set lo up\n")
        seat = Seat(self.folder, namespace, f"/proc/{self._mounts.pid}/ns/mnt", self._size)
        return Host(f"h{number}", address, seat, booted, image)

    def _write_inventory(self) -> None:
        lines = [f"{host.name} ansible_host={host.address}" for host in self.hosts.values()]
        common = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "login"),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        rows = [f"{key}={value}" for key, value in common.items()]
        self.inventory.write_text("\n".join(["[fleet]", *lines, "", "[fleet:vars]", *rows, ""]))

    def _wait(self, host: Host) -> None:
        """Until its sshd says something."""
        deadline_s = time.monotonic() + READY_S
        while not netns.inside(f"/run/netns/{self.hub}", lambda: _greets(host.address)):
            if time.monotonic() > deadline_s or host.ended:
                raise FleetError(f"{host.name}: {host.log}")
            time.sleep(0.02)


@contextlib.contextmanager
def fleet(number: int, size: str = "2g", booted: int = 0) -> Iterator[World]:
    """So many hosts, h1 and on, ready. size: of the memory for what each writes. booted: how many of them, the first,
    have systemd running."""
    with tempfile.TemporaryDirectory(prefix="trimtab-fleet-") as name:
        world = World(Path(name), f"ttf{os.getpid()}-{next(_numbers)}-", size)
        try:
            world.begin()
            world.add(number, booted)
            yield world
        finally:
            world.end()


def _mounts(folder: Path) -> subprocess.Popen[bytes]:
    """A process whose mounts the hosts' begin with: what they share is in memory, and seen by nobody else."""
    (folder / SHARED).mkdir()
    command = 'mount -t tmpfs -o mode=755 fleet "$0" && echo made && exec sleep infinity'
    argv = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "sh", "-c", command, str(folder / SHARED)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert process.stdout
    with process.stdout as said:
        if not said.readline():
            raise FleetError(f"no mounts of its own: {process.wait()}")
    return process


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


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return bool(connection.recv(1))
    except OSError:
        return False


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
