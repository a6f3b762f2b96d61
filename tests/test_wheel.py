"""What is shipped: the wheel in a fresh environment outside the tree, with and without a tuner of a third party."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

TREE = Path(__file__).resolve().parent.parent
SAMPLE = TREE / "docs/sample-tuner"
PACKAGES = ("actuators", "bpf", "bus", "collectors", "deciders", "trimtab")
TUNABLE = "net.ipv4.icmp_msgs_per_sec"
# To a port at which nobody is, from one address each: the kernel says so to so many a second. Not over lo, of which it
# takes no account.
UNANSWERED = """
import select, socket, struct, sys
def sum16(raw):
    total = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("d1", 0))
number = 0
while number % 2000 or not select.select([sys.stdin], [], [], 0.5)[0]:
    number += 1
    source = socket.inet_aton(f"198.18.{number >> 8 & 255}.{number & 255}")
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0, source, socket.inet_aton("10.9.0.1"))
    head = head[:10] + struct.pack("!H", sum16(head)) + head[12:]
    wire.send(bytes.fromhex("020000000001" "020000000002" "0800") + head + struct.pack("!HHHH", 999, 999, 9, 0) + b"x")
"""


def build(source: Path, out: Path) -> Path:
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(argv, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(TREE, tmp_path_factory.mktemp("wheel"))


class Installed:
    """A virtual environment, and its commands as a stranger would run them: elsewhere, with nothing inherited."""

    def __init__(self, place: Path, *wanted: Path | str) -> None:
        self.place = place
        self.bin = place / "venv/bin"
        subprocess.run(["/usr/bin/python3", "-m", "venv", place / "venv"], check=True)
        argv = [self.bin / "pip", "install", "-q", "-c", TREE / "requirements.lock", *wanted]
        subprocess.run(argv, check=True, capture_output=True)

    def argv(self, name: str, *arguments: str) -> list[str]:
        return [str(self.bin / name), *arguments]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=self.place, env={"PATH": os.defpath}, capture_output=True, text=True, timeout=800
        )

    def trimtab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(*self.argv("trimtab", *arguments))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    return Installed(place, wheel, build(SAMPLE, place))


def test_the_wheel_holds_every_file_of_the_packages_and_no_other_package(wheel: Path) -> None:
    here = {
        str(path.relative_to(TREE))
        for package in PACKAGES
        for path in (TREE / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and ".data/" not in name}
    assert there == here
    assert {"bpf/tcp_rcvbuf.c", "bpf/include/linux/kconfig.h", "bus/py.typed"} <= there


def test_the_wheel_brings_its_licence_and_its_man_page(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith(".data/data/share/man/man1/trimtab.1") for name in names)


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(TREE)]
    subprocess.run(argv, check=True, capture_output=True)
    subprocess.run(["tar", "-xf", next(tmp_path.glob("*.tar.gz")), "-C", tmp_path], check=True)
    again = build(next(tmp_path.glob("trimtab-*/")), tmp_path)
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_what_ships_passes_its_tests_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    """All but the deciders' policies and the stories of crashes, which take as long as all others: they look for
    mistakes of thought, and no packaging adds one."""
    elsewhere = Installed(tmp_path, wheel, "hypothesis", "jinja2", "pytest", "pytest-timeout", "pytest-xdist")
    shutil.copytree(
        TREE / "tests",
        tmp_path / "tests",
        ignore=shutil.ignore_patterns(
            *("test_wheel*", "test_fleet*", "test_trust*", "__pycache__"),
            *(path.name for path in TREE.glob("tests/test_deciders_*") if path.stem != "test_deciders_main"),
            *("test_actuators_powercut*", "test_actuators_model*"),
        ),
    )
    argv = elsewhere.argv(
        "pytest", "-q", "-c", str(TREE / "pyproject.toml"), f"--rootdir={tmp_path}", "-p", "no:cacheprovider"
    )
    # What looks at a checkout has none here.
    tree = "not another_checkouts and not same_code_there and not whoever_installs"
    ran = elsewhere.run(*argv, "-m", "not system and not long and not fleet and not search", "-k", tree, "tests")
    assert ran.returncode == 0, ran.stdout


def test_help_and_version_work_outside_the_tree(installed: Installed) -> None:
    shown = installed.trimtab("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Usage: trimtab" in shown.stdout
    assert installed.trimtab("--version").stdout == "trimtab 0.1.0\n"


@pytest.mark.parametrize("module", ["actuators", "collectors", "deciders", "collectors.loader"])
def test_a_role_without_arguments_says_how_it_is_used(installed: Installed, module: str) -> None:
    said = installed.run(*installed.argv("python", "-I", "-m", module, "--no-such-option"))
    assert said.returncode == 64
    assert len(said.stderr.splitlines()) == 1, said.stderr


def test_a_role_starts_outside_the_tree(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "collector-proc").mkdir()
    config = tmp_path / "trimtab.toml"
    config.touch()
    argv = installed.argv("python", "-I", "-m", "collectors", "proc", "--run-dir", str(tmp_path), "--config", config)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify.sock"))
        manager.settimeout(20)
        env = {"PATH": os.defpath, "NOTIFY_SOCKET": str(tmp_path / "notify.sock")}
        with subprocess.Popen(argv, cwd=installed.place, env=env) as role:
            try:
                assert "READY=1" in manager.recv(1 << 16).decode().splitlines()
            finally:
                role.terminate()
        assert role.returncode == 0


def test_the_sample_tuners_row_is_one_of_the_tunables(installed: Installed) -> None:
    listed = installed.trimtab("tunables", "--json")
    rows = {row["name"]: row for row in map(json.loads, listed.stdout.splitlines())}
    assert rows[TUNABLE]["decider"] == "icmp_answers"
    assert rows[TUNABLE]["value"] == int(Path("/proc/sys/net/ipv4/icmp_msgs_per_sec").read_text())
    assert "net.ipv4.tcp_rmem[2]" in rows


def test_a_tuner_that_others_could_write_is_not_loaded(installed: Installed) -> None:
    package = next((installed.place / "venv").rglob("trimtab_icmp_answers"))
    package.chmod(0o757)
    try:
        refused = installed.trimtab("tunables", "--json")
    finally:
        package.chmod(0o755)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert f"{package} can be written by others" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the roles' users can get to their sockets; pytest's own directories are root's alone."""
    with tempfile.TemporaryDirectory(prefix="trimtab-test-", dir="/run") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def until(holds: Callable[[], object], log: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def in_a_namespace_of_its_own(installed: Installed, log: Path, *arguments: str) -> Iterator[int]:
    """`trimtab run` in a new network namespace with a device, whose tunable is 128; yields its pid."""
    devices = "ip link add d0 address 02:00:00:00:00:01 type veth peer name d1 address 02:00:00:00:00:02"
    network = "ip addr add 10.9.0.1/24 dev d0; ip link set d0 up; ip link set d1 up; ip route add 198.18.0.0/15 dev d0"
    script = f'set -e; {devices}; {network}; echo 128 >/proc/sys/{TUNABLE.replace(".", "/")}; exec "$@"'
    argv = ["unshare", "--net", "sh", "-c", script, "sh", *installed.argv("trimtab", "run", *arguments)]
    with log.open("wb") as output, subprocess.Popen(argv, cwd=installed.place, stdout=output, stderr=output) as run:
        try:
            yield run.pid
        finally:
            run.send_signal(signal.SIGINT)
    assert run.returncode == 0, log.read_text()


def inside(pid: int, *argv: str) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net", *argv]


@pytest.mark.system
def test_the_sample_tuner_decides_and_its_wish_is_granted_and_undone(installed: Installed, folder: Path) -> None:
    log = folder / "log"
    (folder / "trimtab.toml").touch()
    dirs = ["--run-dir", str(folder / "run"), "--state-dir", str(folder / "state")]
    more = ["--config", str(folder / "trimtab.toml"), "--only", "icmp_answers"]
    before = Path("/proc/sys/net/ipv4/icmp_msgs_per_sec").read_text()

    def changes() -> list[dict[str, object]]:
        return [json.loads(line) for line in installed.trimtab("history", "--json", *dirs).stdout.splitlines()]

    with in_a_namespace_of_its_own(installed, log, *dirs, *more) as pid:
        until(lambda: "ready in" in log.read_text(), log)
        load = subprocess.Popen(inside(pid, sys.executable, "-c", UNANSWERED), stdin=subprocess.PIPE)
        try:
            until(changes, log)
        finally:
            load.communicate()
        now = subprocess.run(inside(pid, "sysctl", "-n", TUNABLE), capture_output=True, text=True, check=True)
        assert now.stdout == "256\n"
    change, *others = changes()
    assert not others
    assert (change["tunable"], change["decider"], change["old"], change["new"]) == (TUNABLE, "icmp_answers", 128, 256)
    assert "were withheld at 128 a second" in str(change["why"])
    assert change["state"] == "reverted", log.read_text()
    assert Path("/proc/sys/net/ipv4/icmp_msgs_per_sec").read_text() == before
