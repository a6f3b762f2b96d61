"""The lanes: the only user of zmq. Events PUB/SUB, wishes PUSH/PULL per decider, control REQ/REP, all over ipc.

Who may speak on a lane is for the kernel to say: besides the modes of directories and sockets, wishes are taken from
the decider's group alone and orders from root alone, by the credentials of the peer (SO_PEERCRED, socket(7)).

Traps held here: a second bind on an ipc path is accepted and steals the traffic, so each binder holds a file lock
first; PUB/SUB drops in silence past the high-water mark, so events are numbered and gaps become events.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import select
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import zmq
from msgspec import Struct

from bus.codec import CodecError, decode, decode_request, encode
from bus.numbering import Numbering
from bus.schema import VERSION, Answer, AnyEvent, Ask, Batch, Request

BATCH_EVENTS = 32
EVENT_HWM = 4096
WISH_HWM = 256
EVENT_BYTES_MAX = 1 << 20
WISH_BYTES_MAX = 16 << 10
CONTROL_BYTES_MAX = 64 << 10
PATH_MAX = 107
"""sockaddr_un.sun_path, unix(7), without its NUL."""


class LinkError(OSError):
    """A lane that cannot be opened: says which and why."""


class Lock:
    """An exclusive lock on `path`, held until close() or the end of the process. LinkError names who holds it."""

    def __init__(self, path: Path, what: str) -> None:
        try:
            # No O_TRUNC: the holder's pid stays readable for whoever is refused.
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            reason = "is a symbolic link, and no lock" if error.errno == errno.ELOOP else error.strerror
            raise LinkError(f"{path}: {reason}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise LinkError(f"{what} is already running here (pid {holder} holds {path})") from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def keep_over_exec(self) -> None:
        """Have the program that this process becomes hold it."""
        os.set_inheritable(self._fd, True)

    def close(self) -> None:
        os.close(self._fd)


class Pollable(Protocol):
    """Anything a Poller can wait for."""

    @property
    def waitable(self) -> zmq.Socket[bytes] | int: ...


def _endpoint(path: Path) -> str:
    if len(os.fsencode(path)) > PATH_MAX:
        raise LinkError(
            f"{path}: longer than the {PATH_MAX} bytes a socket's path may have; choose a shorter --run-dir"
        )
    return f"ipc://{path}"


def _socket(kind: int, hwm: int, max_bytes: int) -> zmq.Socket[bytes]:
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, hwm)
    sock.setsockopt(zmq.RCVHWM, hwm)
    sock.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    # A publisher that restarts is to be heard again at once; zmq waits 100 ms between tries by default.
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    return sock


class _Lane(Struct, frozen=True):
    """What the binder of one kind of lane sets."""

    kind: int
    mode: int
    hwm: int
    max_bytes: int


EVENTS = _Lane(zmq.PUB, 0o660, EVENT_HWM, EVENT_BYTES_MAX)
WISHES = _Lane(zmq.PULL, 0o666, WISH_HWM, WISH_BYTES_MAX)
CONTROL = _Lane(zmq.REP, 0o600, 16, CONTROL_BYTES_MAX)


class _Bound:
    """A socket bound to `path` under a lock of its own."""

    def __init__(self, row: _Lane, path: Path, what: str, peers: Mapping[int, Collection[int]]) -> None:
        """peers: IPC_FILTER_UID or IPC_FILTER_GID -> the ids of those who may connect. Empty: whoever can."""
        endpoint = _endpoint(path)
        self._lock = Lock(path.with_suffix(".lock"), what)
        self.socket = _socket(row.kind, row.hwm, row.max_bytes)
        for option, ids in peers.items():
            for number in ids:
                self.socket.setsockopt(option, number)
        # libzmq binds with the umask in force, and unlinks what stood there before.
        mask = os.umask(0o777 & ~row.mode)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(f"{path}: {error}") from None
        finally:
            os.umask(mask)

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        return self.socket

    def close(self) -> None:
        self.socket.close()
        self._lock.close()


class Publisher(_Bound):
    """One role's events, batched and numbered."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(EVENTS, path, name, {})
        self._name = name
        self._epoch_ns = time.monotonic_ns()
        self.published = 0

    def publish(self, events: Sequence[AnyEvent]) -> None:
        """Send events, in batches of at most BATCH_EVENTS."""
        for start in range(0, len(events), BATCH_EVENTS):
            part = list(events[start : start + BATCH_EVENTS])
            self.socket.send(encode(Batch(VERSION, self._name, self._epoch_ns, self.published, part)))
            self.published += len(part)


class Subscriber:
    """The events of one publisher, with a Gap wherever some are missing."""

    def __init__(self, path: Path, publisher: str) -> None:
        self.publisher = publisher
        self.received = 0
        self.malformed = 0
        self.numbering = Numbering(publisher)
        self.tap: Callable[[bytes], None] | None = None
        """Who is handed each batch, as it came, that brings something new."""
        endpoint = _endpoint(path)
        self.socket = _socket(zmq.SUB, EVENT_HWM, EVENT_BYTES_MAX)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.socket.connect(endpoint)

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        return self.socket

    @property
    def lost(self) -> int:
        """Events that never arrived."""
        return self.numbering.lost

    @property
    def repeated(self) -> int:
        """Events that came again: dropped."""
        return self.numbering.repeated

    def receive(self, limit: int = 64) -> list[AnyEvent]:
        """What has come, at most `limit` batches. Malformed bytes are counted and dropped."""
        events: list[AnyEvent] = []
        for raw in _drain(self.socket, limit):
            try:
                batch = decode(Batch, raw)
            except CodecError:
                self.malformed += 1
                continue
            if batch.publisher != self.publisher or not batch.events:
                self.malformed += 1
                continue
            repeated = self.numbering.repeated
            taken = self.numbering.take(batch)
            if taken:
                events += taken
                self.received += len(batch.events) - (self.numbering.repeated - repeated)
                if self.tap:
                    self.tap(raw)
        return events

    def close(self) -> None:
        self.socket.close()


class WishSender:
    """A decider's way to the actuator. Never blocks: what does not fit is counted and dropped (wishes expire)."""

    def __init__(self, path: Path) -> None:
        self.sent = 0
        self.dropped = 0
        endpoint = _endpoint(path)
        self.socket = _socket(zmq.PUSH, WISH_HWM, WISH_BYTES_MAX)
        self.socket.connect(endpoint)

    def send(self, request: Request) -> None:
        try:
            self.socket.send(encode(request), zmq.DONTWAIT)
            self.sent += 1
        except zmq.Again:
            self.dropped += 1

    def close(self) -> None:
        self.socket.close()


class WishIntake(_Bound):
    """Where one decider's wishes come in. A peer of another group is refused, root as well: it is no decider."""

    def __init__(self, path: Path, decider: str) -> None:
        # The directory is the decider's group's (trimtab.rundir), so that this says who it is under any manager, and
        # in a test where nobody drops to a user of his own.
        group = _group(path.parent)
        super().__init__(WISHES, path, f"the actuator (wishes of {decider})", {zmq.IPC_FILTER_GID: [group]})
        self.decider = decider
        self.malformed = 0

    def receive(self, limit: int) -> list[Request]:
        """At most `limit` wishes (verdicts, beats), so that a flood from one decider does not starve another."""
        wishes: list[Request] = []
        for raw in _drain(self.socket, limit):
            try:
                wishes.append(decode_request(raw))
            except CodecError:
                self.malformed += 1
        return wishes


class ControlServer(_Bound):
    """The actuator's ear for the operator."""

    def __init__(self, path: Path) -> None:
        super().__init__(CONTROL, path, "the actuator", {zmq.IPC_FILTER_UID: [0, os.geteuid()]})
        self.malformed = 0

    def serve(self, answer: Callable[[Ask], Answer]) -> None:
        """Answer what has been asked, one request."""
        try:
            parts = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return
        try:
            reply = answer(decode(Ask, b"".join(parts)))
        except CodecError as error:
            self.malformed += 1
            reply = Answer(False, [str(error)])
        self.socket.send(encode(reply), zmq.DONTWAIT)


def _group(folder: Path) -> int:
    try:
        return folder.stat().st_gid
    except OSError as error:
        raise LinkError(f"{folder}: {error.strerror}") from None


def ask(path: Path, request: Ask, timeout_s: float = 5.0) -> Answer:
    """Ask the actuator. LinkError when nobody is there, nobody answers in time, or it would not answer us."""
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        raise LinkError(f"nothing listens at {path}; is trimtab running?") from None
    if os.geteuid() not in (0, owner):
        # It drops who is not, without a word (ControlServer).
        raise LinkError(errno.EPERM, f"{path} answers root alone; try sudo")
    endpoint = _endpoint(path)
    sock = _socket(zmq.REQ, 16, CONTROL_BYTES_MAX)
    try:
        sock.connect(endpoint)
        sock.send(encode(request))
        if not sock.poll(int(timeout_s * 1000)):
            raise LinkError(f"no answer at {path} within {timeout_s:g} s; is trimtab running?")
        return decode(Answer, sock.recv())
    finally:
        sock.close()


def _drain(sock: zmq.Socket[bytes], limit: int) -> Iterator[bytes]:
    for _ in range(limit):
        try:
            parts = sock.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return
        yield parts[0] if len(parts) == 1 else b""


class Descriptor(Struct, frozen=True):
    """A plain descriptor, for Poller."""

    waitable: int


class Poller:
    """Waits for lanes and plain descriptors.

    Not zmq's own, which looks at each lane twice for each wait, two system calls each. A lane's descriptor says that
    something has happened to it (ZMQ_FD in zmq_getsockopt(3)); looked at are those alone, and those given out last
    time, which may hold more. So whoever reads a lane that was not given out must read all that is in it.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._sources: dict[int, object] = {}
        self._lanes: dict[int, zmq.Socket[bytes]] = {}
        self._more: set[int] = set()

    def add(self, source: Pollable) -> None:
        """Wait for this one too."""
        what = source.waitable
        number = _descriptor(what)
        if not isinstance(what, int):
            self._lanes[number] = what
            self._more.add(number)
        self._sources[number] = source
        self._poll.register(number, select.POLLIN)

    def remove(self, source: Pollable) -> None:
        number = _descriptor(source.waitable)
        self._poll.unregister(number)
        del self._sources[number]
        self._lanes.pop(number, None)

    def wait(self, timeout_s: float) -> list[object]:
        """The sources that have something, in the order in which they were added, after at most timeout_s."""
        until_s = time.monotonic() + timeout_s
        while True:
            ready = {number for number in self._more if self._holds(number)}
            left_s = 0.0 if ready else max(0.0, until_s - time.monotonic())
            # Rounded up: rounding down would spin through the last millisecond.
            happened = self._poll.poll(math.ceil(left_s * 1000))
            ready |= {number for number, _ in happened if self._holds(number)}
            self._more = ready & self._lanes.keys()
            if ready or not left_s:
                return [source for number, source in self._sources.items() if number in ready]

    def _holds(self, number: int) -> bool:
        """There is something to read. Asking a lane also has it do what had happened, which quiets its descriptor."""
        lane = self._lanes.get(number)
        return number in self._sources if lane is None else bool(int(lane.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _descriptor(waitable: zmq.Socket[bytes] | int) -> int:
    return waitable if isinstance(waitable, int) else int(waitable.getsockopt(zmq.FD))


def subscribers(run_dir: Path, publishers: Iterable[str], events_path: Callable[[Path, str], Path]) -> list[Subscriber]:
    """One subscriber per publisher."""
    return [Subscriber(events_path(run_dir, name), name) for name in publishers]
