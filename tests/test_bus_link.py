"""The lanes over real sockets: numbering, gaps, second binders, hostile bytes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from bus import link, roles
from bus.codec import CodecError, encode
from bus.schema import VERSION, Answer, AnyEvent, Ask, Batch, Gap, Tick, Wish

PATIENCE_S = 10.0
MALFORMED = [b"", b"\xc1", b"\x00" * 50, b"\x91" * 3000, encode(Ask("ping")), encode(Batch(VERSION, "p", 1, 0, []))]

HOLDER = """
import sys, time
from pathlib import Path
from bus.link import Publisher
publisher = Publisher(Path(sys.argv[1]), "p")
print("up", flush=True)
time.sleep(60)
"""


def wish(number: int = 0) -> Wish:
    return Wish(VERSION, number, 10**9, "net.ipv4.tcp_rmem[2]", 1, 2, 3, 4, "why", {"n": number})


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


class Ear:
    """A subscriber, and what it has heard."""

    def __init__(self, path: Path, publisher: str = "p") -> None:
        self.subscriber = link.Subscriber(path, publisher)
        self.heard: list[AnyEvent] = []

    def listen(self, count: int) -> list[AnyEvent]:
        def enough() -> bool:
            self.heard += self.subscriber.receive()
            return len(self.heard) >= count

        until(enough)
        heard, self.heard = self.heard, []
        return heard


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sock"


class Wire:
    """A PUB socket that sends what it is told: the publisher's part played by hand."""

    def __init__(self, path: Path) -> None:
        self.socket = zmq.Context.instance().socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(f"ipc://{path}")

    def subscribed(self) -> None:
        assert self.socket.poll(int(PATIENCE_S * 1000))
        self.socket.recv()

    def batch(self, number: int, count: int, epoch_ns: int = 1, publisher: str = "p") -> None:
        ticks: list[AnyEvent] = [Tick(epoch_ns, number + n) for n in range(count)]
        self.socket.send(encode(Batch(VERSION, publisher, epoch_ns, number, ticks)))


@pytest.fixture
def lane(path: Path) -> Iterator[tuple[Wire, Ear]]:
    wire, ear = Wire(path), Ear(path)
    wire.subscribed()
    yield wire, ear
    ear.subscriber.close()
    wire.socket.close()


def numbers(events: list[AnyEvent]) -> list[int]:
    return [event.seq for event in events if isinstance(event, Tick)]


def gaps(events: list[AnyEvent]) -> list[tuple[int, bool]]:
    return [(event.lost, event.restarted) for event in events if isinstance(event, Gap)]


def joined(publisher: link.Publisher, ear: Ear) -> None:
    """A subscription takes a moment to arrive, and nothing is sent before."""

    def heard() -> list[AnyEvent]:
        publisher.publish([Tick(0, 0)])
        return ear.subscriber.receive()

    until(heard)
    time.sleep(0.05)
    ear.subscriber.receive()


def test_events_arrive_in_order_and_whole_across_batches(path: Path) -> None:
    publisher, ear = link.Publisher(path, "p"), Ear(path)
    joined(publisher, ear)
    publisher.publish([Tick(1, number) for number in range(5 * link.BATCH_EVENTS + 3)])
    assert numbers(ear.listen(5 * link.BATCH_EVENTS + 3)) == list(range(5 * link.BATCH_EVENTS + 3))
    assert ear.subscriber.lost == ear.subscriber.malformed == ear.subscriber.repeated == 0
    ear.subscriber.close()
    publisher.close()


def test_a_missing_batch_becomes_one_gap_with_its_count(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(0, 3)
    wire.batch(10, 2)
    wire.batch(12, 1)
    heard = ear.listen(7)
    assert numbers(heard) == [0, 1, 2, 10, 11, 12]
    assert gaps(heard) == [(7, False)]
    assert heard[3] == Gap(1, "p", 7, False)
    assert ear.subscriber.lost == 7


def test_a_subscriber_that_comes_late_has_lost_nothing(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(1000, 2)
    assert gaps(ear.listen(2)) == []


def test_a_doubled_batch_is_dropped_and_no_gap_follows(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(0, 3)
    wire.batch(0, 3)
    wire.batch(3, 1)
    heard = ear.listen(4)
    assert numbers(heard) == [0, 1, 2, 3]
    assert gaps(heard) == []
    assert ear.subscriber.repeated == 3


def test_a_reordered_batch_counts_as_lost_and_is_not_given_out_late(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(0, 1)
    wire.batch(2, 1)
    wire.batch(1, 1)
    wire.batch(3, 1)
    heard = ear.listen(4)
    assert numbers(heard) == [0, 2, 3]
    assert gaps(heard) == [(1, False)]
    assert (ear.subscriber.lost, ear.subscriber.repeated) == (1, 1)


def test_of_a_batch_that_overlaps_only_the_new_part_is_given_out(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(0, 3)
    wire.batch(2, 3)
    assert numbers(ear.listen(5)) == [0, 1, 2, 3, 4]
    assert ear.subscriber.repeated == 1


def test_a_publisher_that_begins_anew_is_a_gap_that_says_so(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(0, 3)
    wire.batch(0, 2, epoch_ns=9)
    heard = ear.listen(6)
    assert gaps(heard) == [(0, True)]
    assert numbers(heard) == [0, 1, 2, 0, 1]


def test_what_the_new_publisher_said_before_it_was_heard_is_lost(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(0, 3)
    wire.batch(5, 1, epoch_ns=9)
    assert gaps(ear.listen(5)) == [(5, True)]


def test_a_real_publisher_that_restarts_is_heard_again(path: Path) -> None:
    publisher, ear = link.Publisher(path, "p"), Ear(path)
    joined(publisher, ear)
    publisher.close()
    again = link.Publisher(path, "p")
    assert again.published == 0

    def heard_again() -> bool:
        again.publish([Tick(1, 1)])
        ear.heard += ear.subscriber.receive()
        return bool(ear.heard)

    until(heard_again)
    assert [restarted for _, restarted in gaps(ear.heard)] == [True]
    ear.subscriber.close()
    again.close()


@pytest.mark.parametrize("raw", MALFORMED, ids=repr)
def test_malformed_bytes_on_the_event_lane_are_counted_and_nothing_else_is_hurt(
    lane: tuple[Wire, Ear], raw: bytes
) -> None:
    wire, ear = lane
    wire.socket.send(raw)
    wire.batch(0, 1)
    assert numbers(ear.listen(1)) == [0]
    assert (ear.subscriber.malformed, ear.subscriber.lost) == (1, 0)


def test_a_batch_in_anothers_name_is_malformed(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.batch(0, 1, publisher="q")
    wire.batch(0, 1)
    assert len(ear.listen(1)) == 1
    assert ear.subscriber.malformed == 1


def test_a_message_of_several_parts_is_malformed(lane: tuple[Wire, Ear]) -> None:
    wire, ear = lane
    wire.socket.send_multipart([encode(Batch(VERSION, "p", 1, 0, [Tick(1, 1)])), b"more"])
    wire.batch(0, 1)
    assert len(ear.listen(1)) == 1
    assert ear.subscriber.malformed == 1


def test_a_publisher_never_waits_for_a_subscriber_that_does_not_read(path: Path) -> None:
    publisher, ear = link.Publisher(path, "p"), Ear(path)
    joined(publisher, ear)
    count = 3 * link.EVENT_HWM * link.BATCH_EVENTS
    publisher.publish([Tick(1, 1)] * count)

    def all_accounted_for() -> bool:
        publisher.publish([Tick(1, 1)])
        ear.subscriber.receive(1000)
        return ear.subscriber.received + ear.subscriber.lost > count

    until(all_accounted_for)
    assert ear.subscriber.lost > 0
    ear.subscriber.close()
    publisher.close()


# --- binding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bind",
    [
        lambda path: link.Publisher(path, "collector-proc"),
        lambda path: link.WishIntake(path, "tcp_buffer"),
        link.ControlServer,
    ],
    ids=["events", "wishes", "control"],
)
def test_a_second_binder_is_refused_with_the_pid_of_the_first(bind: Callable[[Path], link._Bound], path: Path) -> None:
    first = bind(path)
    with pytest.raises(link.LinkError, match=rf"already running here \(pid {os.getpid()} holds .*\.lock\)"):
        bind(path)
    first.close()
    bind(path).close()


def test_a_lock_ends_with_the_process_that_was_killed(path: Path) -> None:
    argv = [sys.executable, "-c", HOLDER, str(path)]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(link.__file__).parents[1])
    assert child.stdout
    assert child.stdout.readline() == b"up\n"
    with pytest.raises(link.LinkError, match=str(child.pid)):
        link.Publisher(path, "p")
    child.kill()
    child.wait()
    child.stdout.close()
    link.Publisher(path, "p").close()


def test_a_lock_file_that_is_a_symbolic_link_is_refused_and_what_it_names_is_left_alone(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.with_suffix(".lock").symlink_to(victim)
    with pytest.raises(link.LinkError, match="symbolic link"):
        link.Publisher(path, "p")
    assert victim.read_text() == "precious"


def test_a_folder_that_is_not_there_is_one_clear_line(path: Path) -> None:
    with pytest.raises(link.LinkError, match=r"^/.*/no/x\.lock: No such file or directory$"):
        link.Publisher(path.with_name("no") / "x.sock", "p")


@pytest.mark.parametrize("opened", [lambda path: link.Publisher(path, "p"), lambda path: link.Subscriber(path, "p")])
def test_a_path_too_long_for_a_socket_says_how_long_it_may_be(opened: Callable[[Path], object], path: Path) -> None:
    long = path.with_name("x" * 100) / "events.sock"
    with pytest.raises(link.LinkError, match=r"107 bytes.*--run-dir"):
        opened(long)


def test_a_bind_that_fails_leaves_no_lock_behind(path: Path) -> None:
    path.mkdir()
    (path / "in the way").touch()
    with pytest.raises(link.LinkError, match=r"events\.sock"):
        link.Publisher(path, "p")
    (path / "in the way").unlink()
    path.rmdir()
    link.Publisher(path, "p").close()


def test_a_socket_left_by_a_dead_process_is_taken_over_and_a_link_in_its_place_is_not_followed(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)
    link.Publisher(path, "p").close()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("bind", "mode"),
    [
        (lambda path: link.Publisher(path, "p"), 0o660),
        (lambda path: link.WishIntake(path, "d"), 0o666),
        (link.ControlServer, 0o600),
    ],
)
def test_sockets_have_the_modes_that_their_lane_needs(
    bind: Callable[[Path], link._Bound], mode: int, path: Path
) -> None:
    before = os.umask(0o022)
    try:
        bound = bind(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert stat.S_IMODE(path.with_suffix(".lock").stat().st_mode) == 0o600
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    bound.close()


# --- wishes -------------------------------------------------------------------------------------------------------


def test_wishes_arrive_and_malformed_ones_are_counted(path: Path) -> None:
    intake, sender = link.WishIntake(path, "d"), link.WishSender(path)
    for raw in MALFORMED:
        sender.socket.send(raw)
    sender.send(wish(7))
    got: list[Wish] = []
    until(lambda: got.extend(intake.receive(100)) or got)
    assert got == [wish(7)]
    assert intake.malformed == len(MALFORMED)
    sender.close()
    intake.close()


def test_a_wish_of_more_than_its_lane_holds_ends_that_connection_alone(path: Path) -> None:
    intake, sender, flooder = link.WishIntake(path, "d"), link.WishSender(path), link.WishSender(path)
    flooder.socket.setsockopt(zmq.RECONNECT_IVL, -1)
    flooder.socket.send(b"x" * (link.WISH_BYTES_MAX + 1))
    sender.send(wish(1))
    got: list[Wish] = []
    until(lambda: got.extend(intake.receive(100)) or got)
    assert got == [wish(1)]
    for lane in (sender, flooder, intake):
        lane.close()


def test_one_call_takes_no_more_wishes_than_its_limit(path: Path) -> None:
    intake, sender = link.WishIntake(path, "d"), link.WishSender(path)
    for number in range(20):
        sender.send(wish(number))
    got: list[Wish] = []

    def take() -> bool:
        part = intake.receive(3)
        assert len(part) <= 3
        got.extend(part)
        return len(got) == 20

    until(take)
    assert got == [wish(number) for number in range(20)]
    sender.close()
    intake.close()


def test_wishes_that_nobody_takes_are_dropped_and_counted_and_never_block(path: Path) -> None:
    sender = link.WishSender(path)
    for number in range(3 * link.WISH_HWM):
        sender.send(wish(number))
    assert sender.sent + sender.dropped == 3 * link.WISH_HWM
    assert sender.dropped > 0
    sender.close()


# --- who may speak ------------------------------------------------------------------------------------------------

DECIDER, STRANGER = roles.UID_BASE + 102, roles.UID_BASE + 101
as_others = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become others")]

SPEAKER = """
import os, sys, time, zmq
uid, path, kind = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
sock = zmq.Context().socket(kind)
sock.connect(f"ipc://{path}")
sock.send(sys.stdin.buffer.read())
print(sock.poll(700) if kind == zmq.REQ else sock.poll(0), flush=True)
time.sleep(0.7)
sock.close(0)
"""


def speaker(uid: int, path: Path, kind: int, message: bytes) -> subprocess.Popen[bytes]:
    """A process of that user that sends a message to `path`, again and again tries to connect, and soon ends."""
    argv = [sys.executable, "-c", SPEAKER, str(uid), str(path), str(kind)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin
    process.stdin.write(message)
    process.stdin.close()
    return process


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that keeps nobody out: modes are to have no part in what is tested."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def finish(processes: Iterable[subprocess.Popen[bytes]]) -> list[bytes]:
    said = []
    for process in processes:
        assert process.stdout
        said.append(process.stdout.read())
        process.stdout.close()
        process.wait()
    return said


class TestPeers:
    pytestmark = as_others

    def test_wishes_are_taken_from_the_decider_alone_though_all_may_reach_the_socket(self, open_place: Path) -> None:
        os.chown(open_place, 0, DECIDER)
        intake = link.WishIntake(open_place / "wish.sock", "d")
        (open_place / "wish.sock").chmod(0o777)
        tries = {STRANGER: 1, 0: 2, roles.UID_BASE: 3, 65534: 4, DECIDER: 5}
        peers = [
            speaker(uid, open_place / "wish.sock", zmq.PUSH, encode(wish(number))) for uid, number in tries.items()
        ]
        finish(peers)
        assert intake.receive(100) == [wish(5)]
        assert intake.malformed == 0
        intake.close()

    def test_orders_are_taken_from_root_alone_though_all_may_reach_the_socket(self, open_place: Path) -> None:
        path = open_place / "control.sock"
        server = link.ControlServer(path)
        path.chmod(0o777)
        asked: list[Ask] = []
        peers = [speaker(uid, path, zmq.REQ, encode(Ask("ping"))) for uid in (DECIDER, 65534)]
        ours = speaker(0, path, zmq.REQ, encode(Ask("status")))

        def answer(question: Ask) -> Answer:
            asked.append(question)
            return Answer(True)

        def served() -> bool:
            server.serve(answer)
            return all(peer.poll() is not None for peer in [*peers, ours])

        until(served)
        assert asked == [Ask("status")]
        assert finish([*peers, ours]) == [b"0\n", b"0\n", b"1\n"]
        server.close()

    def test_who_is_not_root_is_told_so_at_once_and_does_not_wait(self, open_place: Path) -> None:
        path = open_place / "control.sock"
        server = link.ControlServer(path)
        path.chmod(0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(link.LinkError, match="answers root alone") as refused:
                link.ask(path, Ask("ping"), timeout_s=0)
        finally:
            os.seteuid(0)
        assert refused.value.errno == errno.EPERM
        server.close()


def test_without_a_folder_there_is_no_saying_who_may_wish(path: Path) -> None:
    with pytest.raises(link.LinkError, match="/no: No such file or directory"):
        link.WishIntake(path.with_name("no") / "wish.sock", "d")


# --- control ------------------------------------------------------------------------------------------------------


def serving(path: Path, answer: Callable[[Ask], Answer], count: int) -> tuple[link.ControlServer, threading.Thread]:
    """A control server that answers `count` requests in a thread."""
    server = link.ControlServer(path)

    def serve() -> None:
        for _ in range(count):
            assert server.socket.poll(int(PATIENCE_S * 1000))
            server.serve(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return server, thread


def test_a_question_is_answered(path: Path) -> None:
    server, thread = serving(path, lambda ask: Answer(True, [ask.verb], {"change": ask.change}), 1)
    assert link.ask(path, Ask("rollback", change=3)) == Answer(True, ["rollback"], {"change": 3})
    thread.join()
    server.close()


def test_hostile_questions_get_an_answer_that_says_no_and_the_next_is_served(path: Path) -> None:
    hostile = [raw for raw in MALFORMED if raw != encode(Ask("ping"))]
    server, thread = serving(path, lambda _: Answer(True), len(hostile) + 1)
    for raw in hostile:
        sock = zmq.Context.instance().socket(zmq.REQ)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"ipc://{path}")
        sock.send(raw)
        assert sock.poll(int(PATIENCE_S * 1000))
        reply = msgspec.msgpack.decode(sock.recv(), type=Answer)
        assert not reply.ok
        assert reply.lines[0].startswith("not a Ask")
        sock.close()
    assert link.ask(path, Ask("ping")).ok
    thread.join()
    assert server.malformed == len(hostile)
    server.close()


def test_serve_returns_when_nobody_has_asked(path: Path) -> None:
    server = link.ControlServer(path)
    server.serve(lambda _: Answer(True))
    server.close()


def test_asking_where_nobody_listens_says_so(path: Path) -> None:
    with pytest.raises(link.LinkError, match="is trimtab running"):
        link.ask(path, Ask("ping"))


def test_asking_one_who_does_not_answer_gives_up_in_time(path: Path) -> None:
    server = link.ControlServer(path)
    with pytest.raises(link.LinkError, match=r"no answer at .* within 0\.05 s"):
        link.ask(path, Ask("ping"), timeout_s=0.05)
    server.close()


def test_an_answer_that_is_none_is_a_codec_error(path: Path) -> None:
    server = link.ControlServer(path)

    def answer() -> None:
        assert server.socket.poll(int(PATIENCE_S * 1000))
        server.socket.recv()
        server.socket.send(b"\xc1")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(CodecError, match="Answer"):
        link.ask(path, Ask("ping"))
    thread.join()
    server.close()


# --- waiting ------------------------------------------------------------------------------------------------------


class Pipe:
    def __init__(self) -> None:
        self.waitable, self.write = os.pipe()

    def close(self) -> None:
        os.close(self.waitable)
        os.close(self.write)


def test_a_poller_returns_the_sources_that_have_something_lanes_and_descriptors_alike(path: Path) -> None:
    intake, sender, pipe = link.WishIntake(path, "d"), link.WishSender(path), Pipe()
    poller = link.Poller()
    poller.add(intake)
    poller.add(pipe)
    assert poller.wait(0) == []
    os.write(pipe.write, b"x")
    assert poller.wait(PATIENCE_S) == [pipe]
    sender.send(wish())
    until(lambda: intake in poller.wait(0))
    poller.remove(pipe)
    assert poller.wait(PATIENCE_S) == [intake]
    for lane in (intake, sender, pipe):
        lane.close()


def test_a_lane_that_is_read_in_parts_is_given_out_until_it_is_empty(path: Path) -> None:
    intake, sender = link.WishIntake(path, "d"), link.WishSender(path)
    poller = link.Poller()
    poller.add(intake)
    for _ in range(50):
        sender.send(wish())
    for _ in range(50):
        assert poller.wait(PATIENCE_S) == [intake]
        assert len(intake.receive(1)) == 1
    assert poller.wait(0) == []
    for lane in (intake, sender):
        lane.close()


def test_whoever_asks_while_another_is_answered_is_heard(path: Path) -> None:
    server, poller = link.ControlServer(path), link.Poller()
    poller.add(server)
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.extend(link.ask(path, Ask("ping")) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + PATIENCE_S
    while len(answers) < 80 and time.monotonic() < until_s:
        for _ in poller.wait(0.1):
            server.serve(lambda ask: Answer(True))
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    server.close()


def test_a_poller_gives_out_what_is_ready_in_the_order_in_which_it_was_added(path: Path) -> None:
    first, second, poller = Pipe(), Pipe(), link.Poller()
    intake, sender = link.WishIntake(path, "d"), link.WishSender(path)
    for source in (second, intake, first):
        poller.add(source)
    for pipe in (first, second):
        os.write(pipe.write, b"x")
    sender.send(wish())
    until(lambda: intake in poller.wait(0))
    assert poller.wait(0) == [second, intake, first]
    for lane in (intake, sender, first, second):
        lane.close()


def test_a_poller_does_not_return_before_its_time_when_nothing_comes() -> None:
    poller, pipe = link.Poller(), Pipe()
    poller.add(pipe)
    began = time.monotonic()
    assert poller.wait(0.0009) == []
    assert time.monotonic() - began >= 0.0009
    pipe.close()
