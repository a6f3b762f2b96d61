"""What the doctor says of made-up hosts, and of this one."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import msgspec
import pytest

from actuators import others as conflicts
from actuators.others import Conflict
from bpf import PROBES
from bus import landlock, seccomp
from bus.config import RIVALS
from bus.tunables import TUNABLES, table
from trimtab import doctor, features, route_metrics

ROWS = table()
RMEM = "net.ipv4.tcp_rmem[2]"
FIRST = "net.ipv4.tcp_rmem[1]"
THRESHOLDS = tuple(f"net.ipv4.neigh.default.gc_thresh{level}" for level in (1, 2, 3))


def put(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def by_what(root: Path) -> dict[str, Conflict]:
    return {conflict.what: conflict for conflict in conflicts.conflicts(root, ROWS)}


# --- other tuners


def test_a_quiet_host_has_no_conflicts(tmp_path: Path) -> None:
    put(tmp_path, {"proc/1/comm": "systemd\n", "etc/sysctl.d/10-other.conf": "vm.swappiness = 10\n"})
    assert conflicts.conflicts(tmp_path, ROWS) == []


def test_a_running_tuned_is_a_conflict_in_the_keys_that_its_profile_and_what_it_includes_set(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/812/comm": "tuned\n",
            "etc/tuned/active_profile": "mine\n",
            "etc/tuned/profiles/mine/tuned.conf": "[main]\ninclude=throughput-performance, loop\n[sysctl]\nvm.x=1\n",
            "etc/tuned/loop/tuned.conf": "[main]\ninclude=mine\n",
            "usr/lib/tuned/throughput-performance/tuned.conf": (
                '[variables]\nthing=100%\n[sysctl]\nnet.ipv4.tcp_rmem="4096 87380 16777216"\nnet/core/somaxconn=>2048\n'
            ),
        },
    )
    found = by_what(tmp_path)["TuneD"]
    assert found.keys == (RMEM, FIRST, "net.core.somaxconn")
    assert "runs (pid 812), profile mine" in found.detail


def test_a_tuned_whose_profile_sets_nothing_of_ours_has_no_keys(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/812/comm": "tuned\n",
            "etc/tuned/active_profile": "powersave",
            "usr/lib/tuned/profiles/powersave/tuned.conf": "not an ini file at all",
        },
    )
    assert by_what(tmp_path)["TuneD"].keys == ()


def test_a_tuner_that_is_only_enabled_is_told_so(tmp_path: Path) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "bpftune.service").symlink_to("/lib/systemd/system/bpftune.service")
    put(tmp_path, {"proc/1/comm": "systemd\n"})
    found = by_what(tmp_path)["bpftune"]
    assert found.detail.startswith("is enabled, and starts at the next boot")
    not_its_own = ("ports", "conntrack", "congestion")
    expected = {row.name for row in TUNABLES if row.decider not in not_its_own and row.name != "net.core.somaxconn"}
    assert set(found.keys) == expected


def test_irqbalance_is_seen_and_concerns_no_key(tmp_path: Path) -> None:
    put(tmp_path, {"proc/9/comm": "irqbalance\n"})
    assert by_what(tmp_path)["irqbalance"].keys == ()


@pytest.mark.parametrize(
    ("file", "text", "state"),
    [
        ("proc/9/comm", "cilium-agent\n", "runs (pid 9)"),
        ("etc/cni/net.d/05-cilium.conflist", "{}", "is the network plugin in /etc/cni/net.d/05-cilium.conflist"),
    ],
)
def test_what_ciliums_agent_sets_is_ceded_to_it_and_no_more(tmp_path: Path, file: str, text: str, state: str) -> None:
    put(tmp_path, {file: text})
    assert conflicts.conflicts(tmp_path, {RMEM: ROWS[RMEM]}) == [Conflict("Cilium", f"{state}: no key of ours", ())]
    names = ("net.core.somaxconn", "net.core.rmem_max", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.all.arp_ignore")
    rows = {name: msgspec.structs.replace(TUNABLES[0], name=name) for name in names}
    [found] = conflicts.conflicts(tmp_path, rows)
    assert found.keys == ("net.core.somaxconn", "net.ipv4.conf.all.rp_filter")
    assert found.detail == f"{state}: what its agent sets is ceded to it"
    assert conflicts.ceded(tmp_path, rows, RIVALS).keys() == set(found.keys)
    assert conflicts.ceded(tmp_path, rows, ["tuned", "sysctl.d"]) == {}


def test_cilium_that_has_gone_is_no_conflict(tmp_path: Path) -> None:
    put(tmp_path, {"proc/9/comm": "cilium-health\n", "etc/cni/net.d/10-calico.conflist": "{}"})
    assert conflicts.conflicts(tmp_path, ROWS) == []


# --- sysctl.d(5)


def in_force(root: Path) -> dict[str, str]:
    return {setting.key: setting.value for setting in conflicts.settings(root)}


def test_a_later_file_name_wins_whatever_its_folder(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "etc/sysctl.d/10-a.conf": "net.ipv4.tcp_rmem = 1 2 3\n",
            "usr/lib/sysctl.d/50-b.conf": "net.ipv4.tcp_rmem = 4 5 6\n",
        },
    )
    assert in_force(tmp_path) == {"net/ipv4/tcp_rmem": "4 5 6"}


def test_a_file_masks_those_of_its_name_in_lesser_folders(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "etc/sysctl.d/50-x.conf": "net.ipv4.tcp_rmem = 1 2 3\n",
            "run/sysctl.d/50-x.conf": "net.ipv4.tcp_wmem = 1 2 3\n",
            "usr/local/lib/sysctl.d/50-x.conf": "net.ipv4.tcp_wmem = 1 2 3\n",
            "usr/lib/sysctl.d/60-y.conf": "net.ipv4.tcp_mem = 1 2 3\n",
        },
    )
    (tmp_path / "etc/sysctl.d/60-y.conf").symlink_to("/dev/null")
    assert in_force(tmp_path) == {"net/ipv4/tcp_rmem": "1 2 3"}


def test_etc_sysctl_conf_comes_last_and_debians_link_to_it_counts_once(tmp_path: Path) -> None:
    put(tmp_path, {"etc/sysctl.conf": "vm.a=1\n", "etc/sysctl.d/zz.conf": "vm.a=2\n"})
    assert in_force(tmp_path) == {"vm/a": "1"}
    (tmp_path / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    assert in_force(tmp_path) == {"vm/a": "2"}


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("net.ipv4.tcp_rmem = 1 2 3", "net/ipv4/tcp_rmem"),
        ("net/ipv4/tcp_rmem=1 2 3", "net/ipv4/tcp_rmem"),
        ("-net.ipv4.tcp_rmem = 1 2 3", "net/ipv4/tcp_rmem"),
        ("  net.ipv4.conf.eth0/100.forwarding=1", "net/ipv4/conf/eth0.100/forwarding"),
        ("net/ipv4/conf/eth0.100/forwarding=1", "net/ipv4/conf/eth0.100/forwarding"),
        ("# net.ipv4.tcp_rmem = 1 2 3", None),
        ("; net.ipv4.tcp_rmem = 1 2 3", None),
        ("net.ipv4.tcp_rmem", None),
        ("= 7", None),
        ("\udcff\udcfe = 1".encode("utf-8", "surrogateescape").decode("latin-1"), "ÿþ"),
    ],
)
def test_lines_are_read_as_systemd_reads_them(tmp_path: Path, line: str, key: str | None) -> None:
    put(tmp_path, {"etc/sysctl.d/a.conf": line + "\n"})
    assert list(in_force(tmp_path)) == ([key] if key else [])


def test_what_sysctl_d_sets_of_ours_is_named_with_file_line_and_value(tmp_path: Path) -> None:
    put(tmp_path, {"etc/sysctl.d/90-net.conf": "vm.swappiness=1\n\nnet.ipv4.tcp_rmem = 4096 87380 6291456\n"})
    (found,) = conflicts.conflicts(tmp_path, ROWS)
    assert (found.what, found.keys) == ("sysctl.d", (RMEM, FIRST))
    assert "/etc/sysctl.d/90-net.conf line 3 sets net.ipv4.tcp_rmem[2]" in found.detail
    assert "4096 87380 6291456" in found.detail


def test_a_glob_sets_what_no_line_names_in_full(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "etc/sysctl.d/10-a.conf": "net.ipv4.neigh.default.gc_thresh3 = 99\n",
            "etc/sysctl.d/20-b.conf": "net.ipv4.neigh.default.gc_thresh* = 7\n",
        },
    )
    found = {conflict.keys: conflict.detail for conflict in conflicts.conflicts(tmp_path, ROWS)}
    assert found.keys() == {THRESHOLDS[:2], THRESHOLDS[2:]}


# --- features


def feature(root: Path, name: str) -> features.Feature:
    return next(found for found in features.features(root) if found.name == name)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, features.Feature]:
    """The features of a host where /proc and /sys are all but empty."""
    root = tmp_path_factory.mktemp("bare")
    put(root, {"proc/self/mountinfo": "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"})
    return {found.name: found for found in features.features(root)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BTF", "sys/kernel/btf/vmlinux: No such file"),
        ("fentry", "no BTF"),
        ("kprobes", "No such file"),
        ("cgroup2", "cgroup2 is not mounted"),
        ("tracefs", "not mounted"),
        ("no lockdown", "not known"),
        ("IPv6", "No such file"),
        ("IPv6 routes unlimited", "No such file"),
        ("pressure (PSI)", "No such file"),
        ("BPF for root only", "No such file"),
    ],
)
def test_what_is_not_there_is_said_to_be_missing_and_why(
    bare: dict[str, features.Feature], name: str, reason: str
) -> None:
    assert not bare[name].found
    assert reason in bare[name].reason


def test_lockdown_and_open_bpf_are_told_from_the_kernels_own_files(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
            "proc/sys/kernel/unprivileged_bpf_disabled": "0\n",
            "proc/self/mountinfo": "",
        },
    )
    assert feature(tmp_path, "no lockdown").reason == "kernel lockdown: integrity"
    assert "any user may load BPF programs" in feature(tmp_path, "BPF for root only").reason
    put(tmp_path, {"sys/kernel/security/lockdown": "[none] integrity confidentiality\n"})
    assert feature(tmp_path, "no lockdown").found


def test_a_limit_of_ipv6_routes_is_told_where_there_is_one(tmp_path: Path) -> None:
    limit = "proc/sys/net/ipv6/route/max_size"
    put(tmp_path, {"proc/self/mountinfo": "", limit: "4096\n"})
    assert "max_size is 4096" in feature(tmp_path, "IPv6 routes unlimited").reason
    put(tmp_path, {limit: "2147483647\n"})
    assert feature(tmp_path, "IPv6 routes unlimited").found


@pytest.mark.system
def test_metrics_of_routes_are_tried_where_they_harm_nobody_and_the_algorithms_are_named(tmp_path: Path) -> None:
    before = Path("/proc/net/route").read_text()
    put(tmp_path, {"proc/self/mountinfo": ""})
    found = feature(tmp_path, "route metrics")
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    assert (found.found, found.reason) == (True, f"congestion control: {', '.join(available)}")
    assert Path("/proc/net/route").read_text() == before


def test_routes_that_cannot_be_set_are_said_with_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(route_metrics, "tried", refused)
    put(tmp_path, {"proc/self/mountinfo": ""})
    found = feature(tmp_path, "route metrics")
    assert (found.found, found.reason, found.needed) == (False, "Operation not supported", True)


def test_a_python_without_bcc_is_said_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PYTHON", sys.executable)
    put(tmp_path, {"proc/self/mountinfo": ""})
    assert "install python3-bpfcc" in feature(tmp_path, "bcc").reason


def test_what_deciders_are_shut_in_with_is_told_as_found_or_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, {"proc/self/mountinfo": ""})
    assert feature(tmp_path, "libseccomp").found
    monkeypatch.setattr(landlock, "CREATE_RULESET", 100_000)  # a system call that no kernel has
    monkeypatch.setattr(seccomp, "LIBRARY", "libnonesuch.so.9")
    assert "not in this kernel" in feature(tmp_path, "Landlock").reason
    assert "no libnonesuch.so.9; install libseccomp2" in feature(tmp_path, "libseccomp").reason


# --- the probes


def test_a_loader_that_cannot_run_leaves_every_probe_without_a_road_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PYTHON", "/bin/false")
    with doctor.loading(tmp_path) as roads:
        found = roads()
    assert [probe.name for probe in found] == [probe.name for probe in PROBES]
    assert {(probe.road, probe.reason) for probe in found} == {("", "the loader failed: exit code 1")}
    assert all(probe.lost for probe in found)


def test_without_btf_every_probe_is_off_with_that_reason(tmp_path: Path) -> None:
    put(tmp_path, {"proc/self/mountinfo": ""})
    with doctor.loading(tmp_path) as roads:
        found = roads()
    assert {probe.road for probe in found} == {""}
    assert all("no BTF" in probe.reason for probe in found)


def test_missing_tunables_conflicts_and_wants_each_make_it_less_than_fine(tmp_path: Path) -> None:
    road = doctor.Road("a", "raw tracepoint", "", "")
    good = features.Feature("x", True, "", True)
    fine = doctor.Report("s", "k", [good], [road], [Conflict("irqbalance", "", ())], [])
    assert fine.fine
    for field, value in {
        "features": [features.Feature("x", False, "", True)],
        "probes": [doctor.Road("a", "", "why", "lost")],
        "conflicts": [Conflict("TuneD", "", (RMEM,))],
        "missing_tunables": [doctor.Missing("a", "b")],
    }.items():
        assert not doctor.Report(
            **{**{name: getattr(fine, name) for name in fine.__struct_fields__}, field: value}
        ).fine
    optional = features.Feature("x", False, "", False)
    assert doctor.Report("s", "k", [optional], [road], [], []).fine


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_on_this_host_it_finds_what_the_collector_will_find_and_leaves_nothing_loaded() -> None:
    before = programs()
    report = doctor.examine()
    assert {found.name for found in report.features if found.needed and not found.found} == set()
    assert all(probe.road for probe in report.probes)
    assert report.missing_tunables == []
    assert programs() == before


def programs() -> set[str]:
    """The BPF programs of ours that processes of ours hold: proc_pid_fdinfo(5)."""
    held = set()
    for entry in Path("/proc/self/fdinfo").iterdir():
        try:
            held |= set(re.findall(r"^prog_(?:id|tag):\s*(\S+)", entry.read_text(), re.MULTILINE))
        except OSError:
            continue
    return held
