"""The loader as it ships: a file run by the distribution's python. What it cannot do it says, in one line per probe."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import PROBES
from bpf.roads import cgroup2_root
from bus import roles
from collectors import loader

PYTHON = "/usr/bin/python3"
TREE = Path(loader.__file__).parents[1]
CAPABILITIES = next(role.capabilities for role in roles.FIXED if role.kind == "loader")

Rows = dict[str, dict[str, Any]]


class Ear:
    """Where a loader hands over, with nothing behind."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "probes.sock"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(str(self.path))
        self.socket.listen()
        self.socket.settimeout(60)
        self.held: list[int] = []

    def run(self, *command: str, **options: Any) -> tuple[Rows, subprocess.CompletedProcess[str]]:
        """What the command hands over, by probe. The descriptors are closed, so its probes are gone again."""
        done = subprocess.run([*command], capture_output=True, text=True, timeout=60, **options)
        connection, _ = self.socket.accept()
        with connection:
            raw, fds, _, _ = socket.recv_fds(connection, 65536, 64)
        for fd in fds:
            os.close(fd)
        packet = json.loads(raw)
        assert packet["version"] == 1
        rows = {row["name"]: row for row in packet["probes"]}
        assert list(rows) == [probe.name for probe in PROBES]
        assert len(fds) == (2 * sum(1 for row in rows.values() if row["road"]) + 1 if packet.get("drops") else 0)
        return rows, done

    def taken(self, tree: Path) -> tuple[Rows, list[int]]:
        """The loader's rows and descriptors, which live on until the test ends."""
        done = subprocess.run([PYTHON, "-I", str(tree / "collectors/loader.py"), str(self.path)], timeout=60)
        assert done.returncode == 0
        connection, _ = self.socket.accept()
        with connection:
            raw, fds, _, _ = socket.recv_fds(connection, 65536, 64)
        self.held += fds
        return {row["name"]: row for row in json.loads(raw)["probes"]}, list(fds)

    def close(self) -> None:
        self.socket.close()
        for fd in self.held:
            os.close(fd)

    def load(self, *more: str, tree: Path = TREE, python: str = PYTHON, before: tuple[str, ...] = ()) -> Rows:
        """The loader's rows; it must end well and say nothing."""
        rows, done = self.run(*before, python, "-I", str(tree / "collectors/loader.py"), str(self.path), *more)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return rows


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    made = Ear(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the loader reads, to be broken."""
    copy = tmp_path / "tree"
    shutil.copytree(TREE / "bpf", copy / "bpf", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "collectors").mkdir()
    shutil.copy(TREE / "collectors/loader.py", copy / "collectors")
    return copy


def limited(capabilities: Iterable[str]) -> tuple[str, ...]:
    """A command's front that runs it as root with these capabilities and no more."""
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in capabilities]
    return ("setpriv", "--bounding-set", ",".join(["-all", *kept]), "--no-new-privs")


def off(rows: Rows) -> dict[str, str]:
    return {name: row["reason"] for name, row in rows.items() if not row["road"]}


@pytest.mark.system
def test_with_its_rows_capabilities_and_no_more_every_probe_attaches(ear: Ear) -> None:
    rows = ear.load(before=limited(CAPABILITIES))
    assert {name: row["road"] for name, row in rows.items()} == {
        "tcp_rcvbuf": "raw tracepoint, typed",
        "tcp_sndbuf": "raw tracepoint, typed",
        "tcp_end": "raw tracepoint, typed",
        "neigh_create": "raw tracepoint",
        "neigh_move": "raw tracepoint",
        "drops": "raw tracepoint, typed",
        "udp_drop": "raw tracepoint, typed",
        "ip_frag": rows["ip_frag"]["road"],
        "ports": "raw tracepoint, typed",
        "flows_ended": "raw tracepoint, typed",
        "flows_going": "raw tracepoint, typed",
        "sysctl_write": "cgroup",
    }
    # What hangs on a function does so only where the kernel lets it.
    assert rows["ip_frag"]["road"] in ("fentry", "raw tracepoint, typed")
    assert not any(row["reason"] for row in rows.values() if not row["reason"].startswith("fentry: "))


@pytest.mark.system
def test_without_any_capability_each_probe_says_not_permitted(ear: Ear) -> None:
    rows = ear.load(before=limited(()))
    assert off(rows).keys() == rows.keys()
    assert all(reason.startswith("not permitted") for reason in off(rows).values())


@pytest.mark.system
def test_without_perfmon_each_probe_says_not_permitted_at_every_road(ear: Ear) -> None:
    rows = ear.load(before=limited(("CAP_BPF", "CAP_NET_ADMIN")))
    assert off(rows).keys() == rows.keys()
    assert rows["tcp_rcvbuf"]["reason"].count("not permitted") == 2


@pytest.mark.system
def test_no_header_of_the_machine_is_needed(ear: Ear) -> None:
    places = "/usr/include /usr/src /lib/modules /usr/local/include"
    hide = f"for d in {places}; do [ ! -d $d ] || mount -t tmpfs none $d || exit 9; done; "
    rows = ear.load(before=("unshare", "--mount", "sh", "-c", hide + 'exec "$@"', "sh"))
    assert not off(rows)


def fake_root(folder: Path, mountinfo: str = "") -> Path:
    """A root with the kernel's BTF and this mountinfo, nothing else."""
    (folder / "sys/kernel/btf").mkdir(parents=True)
    (folder / "sys/kernel/btf/vmlinux").symlink_to("/sys/kernel/btf/vmlinux")
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/mountinfo").write_text(mountinfo)
    return folder


def test_a_kernel_without_btf_turns_every_probe_off_and_says_so(ear: Ear, tmp_path: Path) -> None:
    rows = ear.load("--root", str(tmp_path / "root"))
    where = tmp_path / "root/sys/kernel/btf/vmlinux"
    assert off(rows) == dict.fromkeys(rows, f"no BTF: {where} is not there")


@pytest.mark.system
def test_without_cgroup2_only_the_sysctl_probe_is_off(ear: Ear, tmp_path: Path) -> None:
    only_part = "31 23 0:28 /some/part /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    rows = ear.load("--root", str(fake_root(tmp_path / "root", only_part)))
    assert off(rows) == {"sysctl_write": "cgroup: cgroup2 is not mounted"}


@pytest.mark.system
def test_a_cgroup_that_is_not_the_hosts_root_is_told_to_see_only_its_own(ear: Ear, tmp_path: Path) -> None:
    mounted = cgroup2_root(Path("/"))
    part = mounted / f"trimtab-test-{os.getpid()}"
    part.mkdir()
    try:
        root = fake_root(tmp_path / "root", "31 23 0:28 / /cgroup rw - cgroup2 cgroup2 rw\n")
        (root / "cgroup").symlink_to(part)
        rows = ear.load("--root", str(root))
        assert (rows["sysctl_write"]["road"], rows["sysctl_write"]["reason"]) == (
            "cgroup",
            "sees this container's cgroup only",
        )
    finally:
        part.rmdir()


def test_a_python_without_bcc_turns_every_probe_off_and_says_so(ear: Ear) -> None:
    rows = ear.load(python=sys.executable)
    assert off(rows).keys() == rows.keys()
    reasons = set(off(rows).values())
    assert len(reasons) == 1
    assert reasons.pop().startswith((f"no bcc in {sys.executable}: ", "not permitted"))


@pytest.mark.system
def test_a_probe_that_does_not_compile_takes_no_other_along(ear: Ear, tree: Path) -> None:
    broken = tree / "bpf/neigh_create.c"
    broken.write_text(broken.read_text() + "\nint more(void) { return no_such_thing; }\n")
    rows = ear.load(tree=tree)
    assert off(rows) == {"neigh_create": "does not compile: use of undeclared identifier 'no_such_thing'"}


@pytest.mark.system
def test_a_probe_that_the_verifier_refuses_takes_no_other_along(ear: Ear, tree: Path) -> None:
    broken = tree / "bpf/neigh_create.c"
    broken.write_text(broken.read_text().replace("u64 tbl = ctx->args[0]", "u64 tbl = ctx->args[40]"))
    rows = ear.load(tree=tree)
    assert off(rows).keys() == {"neigh_create"}
    assert off(rows)["neigh_create"].startswith("raw tracepoint: invalid bpf_context access")


def links(fds: list[int]) -> list[int]:
    """The number of each link among the descriptors."""
    found = []
    for fd in fds:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        found += [int(line.split()[1]) for line in lines if line.startswith("link_id:")]
    return found


SHARING = {probe.name for probe in PROBES if any(road.source for road in probe.roads)}


@pytest.mark.system
def test_probes_that_look_at_one_tracepoint_share_one_program_and_each_has_a_descriptor_of_it(ear: Ear) -> None:
    rows, fds = ear.taken(TREE)
    shared = {name for name in SHARING if rows[name]["road"] == "raw tracepoint, typed"}
    assert shared >= {"drops", "udp_drop", "tcp_sndbuf", "flows_going", "ports", "flows_ended"}
    assert len({rows[name]["link"] for name in shared}) == len(shared)
    numbers = links(fds)
    assert len(set(numbers)) == len(numbers) - len(shared) + len({"kfree_skb", "tcp_probe", "inet_sock_set_state"})


@pytest.mark.system
@pytest.mark.parametrize(
    ("how", "left", "still_shared"),
    [
        ("u64 more = no_such_thing;", "", 0),
        ('u64 bad; asm volatile("%0 = *(u64 *)(r10 + 64)" : "=r"(bad));', "raw tracepoint", 2),
    ],
    ids=["compiler", "verifier"],
)
@pytest.mark.long
def test_a_part_that_is_refused_leaves_the_others_of_its_function_in_programs_of_their_own(
    ear: Ear, tree: Path, how: str, left: str, still_shared: int
) -> None:
    broken = tree / "bpf/udp_drop.c"
    head = "int udp_drop_part(u32 reason, u64 sk, bool typed)\n{"
    assert head in broken.read_text()
    broken.write_text(broken.read_text().replace(head, f"{head}\n    {how}"))
    rows, fds = ear.taken(tree)
    told = {name: row["road"] for name, row in rows.items() if name in SHARING}
    assert told == dict.fromkeys(told, "raw tracepoint, typed") | {"udp_drop": left}
    # The verifier's refusal is no reason not to take those of the other two tracepoints as they are.
    assert len(set(links(fds))) == len(links(fds)) - still_shared


@pytest.mark.system
def test_a_road_on_which_the_verifier_lets_us_do_harm_is_not_taken(ear: Ear, tree: Path) -> None:
    shared = tree / "bpf/kfree_skb.c"
    shared.write_text(shared.read_text().replace("return TYPED_U64(TYPED_U64(ctx, 24), 0) & 0;", "return 0;"))
    rows = ear.load(tree=tree)
    assert (rows["drops"]["road"], rows["drops"]["reason"]) == (
        "raw tracepoint",
        "raw tracepoint, typed: the verifier lets kfree_skb_untested pass",
    )


@pytest.mark.system
def test_where_a_road_that_seemed_open_is_not_the_next_has_the_probes_part_all_the_same(ear: Ear, tree: Path) -> None:
    looks = tree / "bpf/roads.py"
    looks.write_text(looks.read_text().replace('if road.kind == "fentry":', "if not road:"))
    table = tree / "bpf/__init__.py"
    table.write_text(table.read_text().replace('"inet_frag_find"', '"inet_frag_find_gone"'))
    rows, fds = ear.taken(tree)
    assert (rows["ip_frag"]["road"], rows["ip_frag"]["reason"]) == (
        "raw tracepoint, typed",
        "fentry: no function inet_frag_find_gone in BTF",
    )
    assert len(set(links(fds))) == len(links(fds)) - 3


@pytest.mark.system
@pytest.mark.long
def test_a_record_that_is_not_as_its_row_says_does_not_compile(ear: Ear, tree: Path) -> None:
    table = tree / "bpf/__init__.py"
    table.write_text(table.read_text().replace('struct.Struct("=11Q")', 'struct.Struct("=12Q")', 1))
    rows = ear.load(tree=tree)
    assert off(rows).keys() == {"neigh_create"}
    assert "the record is not as its row says" in off(rows)["neigh_create"]


@pytest.mark.system
@pytest.mark.parametrize(
    ("member", "probes"),
    [
        ("sk_rcvbuf", {"tcp_rcvbuf", "tcp_end", "udp_drop"}),
        ("PROTO_MEM", {"udp_drop"}),
        ("ns.inum", {probe.name for probe in PROBES}),
        ("gc_thresh3", {"neigh_create"}),
        ("nud_state", {"neigh_move"}),
    ],
)
def test_a_member_that_the_kernel_lacks_turns_off_just_the_probes_that_need_it(
    ear: Ear, tree: Path, member: str, probes: set[str]
) -> None:
    table = tree / "bpf/__init__.py"
    table.write_text(table.read_text().replace(f'"{member}"', f'"{member}_gone"'))
    rows = ear.load(tree=tree)
    assert off(rows).keys() == probes
    assert all(f"{member}_gone in BTF" in reason for reason in off(rows).values())


@pytest.mark.system
def test_an_optional_member_that_the_kernel_lacks_is_told_and_the_probe_goes_on(ear: Ear, tree: Path) -> None:
    table = tree / "bpf/__init__.py"
    text = table.read_text()
    for member in ("net_cookie", "rx_opt.rcv_wscale", "chrono_type", "bytes_acked", "is_seen"):
        assert f'"{member}"' in text
        text = text.replace(f'"{member}"', f'"{member}_gone"')
    table.write_text(text)
    rows = ear.load(tree=tree)
    assert off(rows).keys() == {
        "flows_ended",
        "flows_going",
    }  # to these alone chrono_type and bytes_acked are essential
    assert rows["tcp_rcvbuf"]["reason"] == (
        "no struct net.net_cookie_gone in BTF; no struct tcp_sock.rx_opt.rcv_wscale_gone in BTF"
    )


@pytest.mark.system
def test_a_tracepoint_that_the_kernel_lacks_is_told_at_each_road(ear: Ear, tree: Path) -> None:
    table = tree / "bpf/__init__.py"
    table.write_text(table.read_text().replace('"tcp_probe"', '"tcp_no_probe"'))
    rows = ear.load(tree=tree)
    told = "raw tracepoint, typed: no tracepoint tcp_no_probe in BTF; raw tracepoint: no tracepoint tcp_no_probe"
    assert off(rows) == {"tcp_sndbuf": told, "flows_going": told}


@pytest.mark.system
def test_the_second_road_is_taken_where_the_first_is_barred_and_the_reason_is_kept(ear: Ear, tree: Path) -> None:
    table = tree / "bpf/__init__.py"
    table.write_text(table.read_text().replace('"tcp_rcvbuf_typed"', '"tcp_rcvbuf_nowhere"'))
    rows = ear.load(tree=tree)
    assert (rows["tcp_rcvbuf"]["road"], rows["tcp_rcvbuf"]["reason"]) == (
        "raw tracepoint",
        "raw tracepoint, typed: tcp_rcvbuf_nowhere is not in the compiled module",
    )


def test_where_nobody_listens_it_is_one_line_and_exit_1(tmp_path: Path) -> None:
    command = [PYTHON, "-I", loader.__file__, str(tmp_path / "nobody.sock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"loader: {tmp_path}/nobody.sock: No such file or directory\n"


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["a", "--no-such"]])
def test_arguments_that_make_no_sense_are_one_line_and_exit_64(argv: list[str]) -> None:
    done = subprocess.run([PYTHON, "-I", loader.__file__, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert done.stderr.startswith("loader: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.system
def test_under_debug_the_compiler_may_talk(ear: Ear, tree: Path) -> None:
    broken = tree / "bpf/neigh_create.c"
    broken.write_text(broken.read_text() + "\nint more(void) { return no_such_thing; }\n")
    _, done = ear.run(PYTHON, "-I", str(tree / "collectors/loader.py"), str(ear.path), "--debug")
    assert "no_such_thing" in done.stderr


def test_lockdown_is_named_where_it_is_on(tmp_path: Path) -> None:
    state = tmp_path / "sys/kernel/security/lockdown"
    assert loader.lockdown(tmp_path) == ""
    state.parent.mkdir(parents=True)
    state.write_text("[none] integrity confidentiality\n")
    assert loader.lockdown(tmp_path) == ""
    state.write_text("none integrity [confidentiality]\n")
    assert loader.lockdown(tmp_path) == ", kernel lockdown: confidentiality"


@pytest.mark.system
def test_what_is_handed_over_lives_on_after_the_loader(ear: Ear) -> None:
    subprocess.run([PYTHON, "-I", loader.__file__, str(ear.path)], check=True, timeout=60)
    connection, _ = ear.socket.accept()
    with connection:
        _, fds, _, _ = socket.recv_fds(connection, 65536, 64)
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
    assert names.count("anon_inode:bpf-map") == len(PROBES) + 1
    assert len(names) == 2 * len(PROBES) + 1
    time.sleep(0.1)
    links = [fd for fd, name in zip(fds, names, strict=True) if name != "anon_inode:bpf-map"]
    assert all("prog_id:" in Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in links)
    for fd in fds:
        os.close(fd)
