"""`trimtab drops`, and the same in `trimtab status`: what the collector said, in words, with what can cure it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bpf.libbpf import Libbpf
from bus import netns
from bus.drops import BY_NAME, CURABLE, REASONS
from bus.tunables import TUNABLES
from trimtab import announce, drops, rundir
from trimtab.__main__ import main
from trimtab.lab import Lab

Run = Callable[..., tuple[int, str, str]]
BTF = Path("/sys/kernel/btf/vmlinux")
GONE = 2**40


def document(rows: object, missing: Sequence[str]) -> dict[str, Any]:
    """What a supervisor writes; this process stands for it and for its roles."""
    role = {"name": "collector-bpf", "pid": os.getpid(), "state": "running", "restarts": 0, "since_ns": 0,
            "status": {"published": 3, "drops": rows}}  # fmt: skip
    return {
        "schema": announce.SCHEMA,
        "pid": os.getpid(),
        "start_ticks": announce.start_ticks(Path("/proc/self/stat")),
        "t_ns": time.monotonic_ns(),
        "ready": True,
        "mode": "observe",
        "roles": [role | {"name": "actuator", "status": {}}, role],
        "watched": [],
        "missing": missing,
    }


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """A verb of an instance whose BPF collector says `rows`: the exit code, what it prints, what it complains of."""

    def call(*argv: str, rows: object = (), missing: Sequence[str] = (), there: bool = True) -> tuple[int, str, str]:
        (tmp_path / "run").mkdir(exist_ok=True)
        if there:
            (tmp_path / "run" / rundir.STATUS).write_text(json.dumps(document(rows, missing)))
        capfdbinary.readouterr()
        code = main([*argv, "--run-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state")])
        sys.stdout.flush()
        said = capfdbinary.readouterr()
        return code, said.out.decode(), said.err.decode()

    return call


def row(reason: str, per_s: float = 2.5, total: int = 40, cookie: int = GONE, ifindex: int = 0) -> list[object]:
    return [cookie, 1, ifindex, reason, per_s, total]


# --- the table -----------------------------------------------------------------------------------------------------


def test_each_reason_is_there_once_and_says_what_it_means() -> None:
    assert len(BY_NAME) == len(REASONS)
    assert all(reason.meaning and not reason.meaning.endswith(".") for reason in REASONS)
    assert {"CPU_BACKLOG", "SOCKET_RCVBUFF", "PROTO_MEM", "TCP_LISTEN_OVERFLOW"} <= CURABLE
    assert not CURABLE & {"NETFILTER_DROP", "NO_SOCKET", "QDISC_DROP", "NOT_SPECIFIED"}


def test_a_cure_is_a_sysctl_that_this_kernel_or_a_tunable_has() -> None:
    known = {row.sysctl for row in TUNABLES}
    for reason in REASONS:
        for name in reason.cure:
            assert name in known or Path("/proc/sys", *name.split(".")).exists(), name


@pytest.mark.skipif(not BTF.exists(), reason="kernel: no BTF")
def test_the_kernel_has_each_reason_by_that_name() -> None:
    btf = Libbpf().btf(BTF)
    try:
        names = {name.removeprefix("SKB_DROP_REASON_") for name in btf.names("skb_drop_reason").values()}
    finally:
        btf.close()
    # Of some years of kernels: a few reasons have come and gone, most stay.
    assert len(BY_NAME.keys() - names) <= len(BY_NAME) // 4, BY_NAME.keys() - names


# --- for programs --------------------------------------------------------------------------------------------------


def test_json_has_a_line_for_each_kind_with_its_meaning_and_its_cure(run: Run) -> None:
    code, out, err = run("drops", "--json", rows=[row("CPU_BACKLOG", 50.0, 900, ifindex=2), row("NO_SOCKET")])
    first, second = map(json.loads, out.splitlines())
    assert (code, err) == (0, "")
    assert first == {
        "schema": "trimtab.drops/v1", "netns": GONE, "netns_inode": 1, "ifindex": 2, "reason": "CPU_BACKLOG",
        "meaning": BY_NAME["CPU_BACKLOG"].meaning, "per_s": 50.0, "dropped": 900,
        "cure": ["net.core.netdev_max_backlog"], "by_hand": BY_NAME["CPU_BACKLOG"].by_hand,
    }  # fmt: skip
    assert (second["reason"], second["cure"]) == ("NO_SOCKET", [])


def test_the_status_has_the_same(run: Run) -> None:
    _, out, _ = run("status", "--json", rows=[row("CPU_BACKLOG")])
    (found,) = json.loads(out)["drops"]
    assert (found["reason"], found["dropped"]) == ("CPU_BACKLOG", 40)


@pytest.mark.parametrize("rows", [7, "x", [[1]], [["a", 1, 2, "X", 0.1, 3]], [[1, 1, 2, 3, 0.1, 3]], {"a": 1}, None])
def test_a_collector_that_says_something_else_has_no_drops_and_nothing_else_is_lost(run: Run, rows: object) -> None:
    code, out, _ = run("status", "--json", rows=rows)
    found = json.loads(out)
    assert (code, found["drops"], found["events"]["collector-bpf"]["published"]) == (0, [], 3)


# --- for people ----------------------------------------------------------------------------------------------------


def test_people_read_where_why_and_what_to_do(run: Run) -> None:
    rows = [row("CPU_BACKLOG", ifindex=7), row("NETFILTER_DROP"), row("SOMETHING_NEW", 0.0, 3)]
    code, out, _ = run("drops", rows=rows)
    head, backlog, rule, new = out.splitlines()
    assert code == 0
    assert " ".join(head.split()) == "namespace device reason per second total what it means cure"
    assert backlog.split()[:5] == [str(GONE), "if7", "CPU_BACKLOG", "2.5", "40"]
    assert "net.core.netdev_max_backlog; more CPUs for the device" in backlog
    assert "meant so" in rule
    assert new.split() == [str(GONE), "SOMETHING_NEW", "0.0", "3", "none"]


def test_devices_go_by_their_names_where_those_can_be_known(run: Run) -> None:
    _, out, _ = run("drops", rows=[row("XDP", cookie=netns.cookie_here(), ifindex=socket.if_nametoindex("lo"))])
    assert out.splitlines()[1].split()[:2] == ["host", "lo"]


@pytest.mark.system
def test_devices_in_other_namespaces_too_as_root() -> None:
    with Lab() as lab:
        a, b = lab.netns(), lab.netns()
        link = lab.veth(a, b)
        index = b.run(socket.if_nametoindex, link.b_device)
        (found,) = drops.told([{"drops": [[b.cookie, b.inode, index, "XDP", 1, 1]]}])
        assert drops._place(found) == (str(b.cookie), "veth0")
        (found,) = drops.told([{"drops": [[b.cookie, b.inode, index + 7, "XDP", 1, 1]]}])
        assert drops._place(found) == (str(b.cookie), f"if{index + 7}")


def test_what_steers_a_terminal_is_not_printed(run: Run) -> None:
    _, out, _ = run("drops", rows=[row("\x1b[31mRED")])
    assert "\x1b" not in out
    assert "RED" in out


def test_the_status_tells_of_drops_that_go_on_and_can_be_cured(run: Run) -> None:
    _, out, _ = run("status", rows=[row("SOCKET_RCVBUFF"), row("NO_SOCKET"), row("CPU_BACKLOG", 0.0)])
    (line,) = [line for line in out.splitlines() if line.startswith("dropped")]
    assert line.startswith("dropped: 2.5 packets/s, a socket's receive buffer was full")


def test_nothing_dropped_is_said_and_is_fine(run: Run) -> None:
    assert run("drops") == (0, "nothing dropped since the probe was loaded\n", "")
    assert run("drops", "--json") == (0, "", "")


def test_where_nobody_counts_that_is_said_and_degraded(run: Run, tmp_path: Path) -> None:
    assert run("drops", "--json", there=False) == (3, "", f"trimtab: not running ({tmp_path / 'run'})\n")
    code, out, err = run("drops", missing=["sysctl_write: why", "drops: no BTF; what is dropped is not known"])
    assert (code, out, err) == (3, "", "without drops: no BTF; what is dropped is not known\n")
