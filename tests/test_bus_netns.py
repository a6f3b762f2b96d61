"""Namespaces of the real kernel: found, told apart, entered, and never kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netns_world import PREFIX, cookie, ip, named_namespaces

from bus import netns
from bus.netns import Handle, Namespace, NamespaceGoneError
from bus.roles import PROCESSES, UID_BASE
from bus.schema import Netns
from collectors.namespaces import Census

pytestmark = pytest.mark.system
HERE = "/proc/self/ns/net"


@pytest.fixture
def named() -> Iterator[Callable[[str], str]]:
    with named_namespaces() as make:
        yield make


@pytest.fixture
def nameless() -> Iterator[int]:
    """The pid of a process in a namespace of its own that nothing else shows."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        yield child.pid
        child.kill()


def shut_in(user: int) -> subprocess.Popen[bytes]:
    """A process of that user in a namespace without a name, of its own."""
    argv = ["unshare", "--net", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    child = subprocess.Popen([*argv, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    return child


def inode(path: str) -> int:
    return os.stat(path).st_ino


def by_inode() -> dict[int, Handle]:
    return {handle.inode: handle for handle in netns.handles()}


def test_each_namespace_has_a_cookie_of_its_own_that_does_not_change(named: Callable[[str], str]) -> None:
    a, b = named("a"), named("b")
    assert len({cookie(a), cookie(b), netns.cookie_here()}) == 3
    assert cookie(a) == cookie(a)
    assert cookie(HERE) == netns.cookie_here()


def test_the_empty_namespace_of_deciders_is_none_to_be_found_and_any_other_users_is() -> None:
    decider, other = shut_in(UID_BASE + PROCESSES["guard"]), shut_in(UID_BASE + PROCESSES["guard"] + 70_000)
    try:
        theirs, others = (inode(f"/proc/{child.pid}/ns/net") for child in (decider, other))
        assert (theirs in by_inode(), others in by_inode()) == (False, True)
        census = Census()
        census.glance()
        seen = {event.netns_ino for event in census.visit(0) if isinstance(event, Netns)}
        assert (theirs in seen, others in seen) == (False, True)
        # With a name it is somebody's.
        ip("netns", "attach", PREFIX + "d", str(decider.pid))
        assert by_inode()[theirs].name == PREFIX + "d"
        assert not netns.of_deciders(Handle(theirs, netns.HOST, f"/proc/{decider.pid}/ns/net", 0))
    finally:
        subprocess.run(["ip", "netns", "del", PREFIX + "d"], capture_output=True)
        for child in (decider, other):
            child.kill()
            child.communicate()


def test_a_cookie_is_not_used_again_when_the_name_is(named: Callable[[str], str]) -> None:
    path = named("a")
    before = cookie(path)
    ip("netns", "del", PREFIX + "a")
    named("a")
    assert cookie(path) != before


def test_what_is_done_inside_is_done_there_and_the_caller_stays(named: Callable[[str], str]) -> None:
    path, here = named("a"), inode(HERE)

    def look() -> tuple[int, int]:
        return os.stat("/proc/thread-self/ns/net").st_ino, threading.get_ident()

    there, thread = netns.inside(path, look)
    assert there == inode(path)
    assert thread != threading.get_ident()
    assert inode("/proc/thread-self/ns/net") == here


def test_what_goes_wrong_inside_is_raised_outside(named: Callable[[str], str]) -> None:
    with pytest.raises(ZeroDivisionError):
        netns.inside(named("a"), lambda: 1 // 0)


def test_many_are_visited_in_order_and_what_fails_stands_in_its_place(named: Callable[[str], str]) -> None:
    a, b = named("a"), named("b")
    first, gone, second = netns.inside_each([a, "/run/netns/nobody", b], netns.cookie_here)
    assert (first, second) == (cookie(a), cookie(b))
    assert isinstance(gone, NamespaceGoneError)
    assert netns.inside_each([], netns.cookie_here) == []


def test_nothing_is_done_in_the_namespace_before_when_the_next_cannot_be_entered(named: Callable[[str], str]) -> None:
    done: list[int] = []
    netns.inside_each([named("a"), "/proc/self/ns/uts"], lambda: done.append(1))
    assert len(done) == 1


@pytest.mark.parametrize("path", ["/run/netns/nobody", "/proc/4194304/ns/net", "/proc/self/ns/uts", "/etc/hostname"])
def test_a_handle_that_opens_no_network_namespace_says_so(path: str) -> None:
    with pytest.raises(NamespaceGoneError, match=path):
        cookie(path)


def test_neither_thread_nor_descriptor_is_left(named: Callable[[str], str]) -> None:
    path = named("a")
    fds, threads = os.listdir("/proc/self/fd"), threading.active_count()
    for _ in range(20):
        cookie(path)
        netns.inside_each([path, "/run/netns/nobody", "/etc/hostname"], netns.cookie_here)
    list(netns.handles())
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == (fds, threads)


def test_a_namespace_that_was_visited_ends_with_its_name(named: Callable[[str], str]) -> None:
    # A veth pair ends when either side's namespace does: the peer here tells when the kernel let go of it.
    name, peer = PREFIX + "a", f"tbn{os.getpid() % 100000}"
    path, outer = named("a"), named("b")
    ip("link", "add", peer, "netns", PREFIX + "b", "type", "veth", "peer", "name", "inner", "netns", name)
    cookie(path)
    ip("netns", "del", name)
    end = time.monotonic() + 20

    def links() -> str:
        return Path("/proc/thread-self/net/dev").read_text()

    while peer in netns.inside(outer, links):
        assert time.monotonic() < end, "something keeps the namespace"
        time.sleep(0.02)


def test_handles_show_names_and_processes_each_namespace_once_ours_first(
    named: Callable[[str], str], nameless: int
) -> None:
    path = named("a")
    found = list(netns.handles())
    assert len({handle.inode for handle in found}) == len(found)
    assert (found[0].name, found[0].inode) == (netns.HOST, inode(HERE))
    assert by_inode()[inode(path)] == Handle(inode(path), PREFIX + "a", path, os.stat(path).st_ctime_ns)
    process = f"/proc/{nameless}/ns/net"
    assert by_inode()[inode(process)] == Handle(inode(process), "", process, 0)


def test_a_name_made_anew_is_told_by_when_although_the_inode_may_be_the_same(named: Callable[[str], str]) -> None:
    path = named("a")
    before = by_inode()[inode(path)].changed_ns
    ip("netns", "del", PREFIX + "a")
    named("a")
    assert by_inode()[inode(path)].changed_ns != before


def test_a_name_whose_mount_has_gone_is_no_handle(named: Callable[[str], str]) -> None:
    path = Path(named("a"))
    subprocess.run(["umount", path], check=True)
    assert path.exists()
    assert path.name not in {handle.name for handle in netns.handles()}
    with pytest.raises(NamespaceGoneError):
        cookie(str(path))


def test_a_root_of_ones_own_is_looked_at_instead(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self" / "ns").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "ns" / "net").touch()
    (tmp_path / "proc" / "7" / "ns").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "ns" / "net").symlink_to("net:[123]")
    (tmp_path / "proc" / "8" / "ns").mkdir(parents=True)
    (tmp_path / "proc" / "8" / "ns" / "net").symlink_to("nothing of the kind")
    (tmp_path / "proc" / "9").mkdir()
    host, other = netns.handles(tmp_path)
    assert host.name == netns.HOST
    assert other == Handle(123, "", f"{tmp_path}/proc/7/ns/net", 0)


@pytest.mark.parametrize("hint", ["right", "wrong"])
def test_a_namespace_is_found_by_its_cookie_whatever_the_inode_says(named: Callable[[str], str], hint: str) -> None:
    path = named("a")
    wanted = Namespace(cookie(path), inode(path), PREFIX + "a", path)
    assert netns.find(wanted.cookie, wanted.inode if hint == "right" else inode(HERE)) == wanted


def test_ours_is_found_too() -> None:
    assert netns.find(netns.cookie_here(), 0).name == netns.HOST


def test_a_nameless_one_is_found_through_its_process(nameless: int) -> None:
    path = f"/proc/{nameless}/ns/net"
    assert netns.find(cookie(path), 0).handle == path


def test_one_that_has_gone_is_not_found(named: Callable[[str], str]) -> None:
    path = named("a")
    was = cookie(path), inode(path)
    ip("netns", "del", PREFIX + "a")
    with pytest.raises(NamespaceGoneError, match=f"no namespace with cookie {was[0]}"):
        netns.find(*was)


def test_a_handle_that_leads_nowhere_is_nobody() -> None:
    assert netns.identify(Handle(1, "x", "/run/netns/nobody", 0)) is None
    assert netns.identify(Handle(1, "", "/etc/hostname", 0)) is None


def test_without_the_right_to_enter_it_is_no_crash_and_not_gone(named: Callable[[str], str]) -> None:
    program = (
        "from bus import netns\n"
        "from trimtab.privilege import drop\n"
        "drop(65534, (), ())\n"
        "try: netns.inside('/proc/self/ns/net', int)\n"
        "except PermissionError as error: print('refused', error.errno)\n"
        "print([handle.name for handle in netns.handles()][:1], netns.cookie_here() > 0)\n"
        f"print(netns.identify(netns.Handle(1, 'x', {named('a')!r}, 0)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(netns.__file__).parents[1],
    )
    assert done.stdout.splitlines() == ["refused 1", "['host'] True", "None"], done.stderr
