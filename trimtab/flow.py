"""A bulk transfer between two namespaces of the lab, as it goes and afterwards."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trimtab.namespace import Children, NetNs

GRACE_S = 10.0
"""How long the two ends may take to end after the last byte was due."""


@dataclass(frozen=True)
class Plan:
    """What to send: for how long, and reported how often."""

    seconds: float
    interval_s: float = 0.25
    reconnect_s: float = 0.0
    """A new connection so often; 0: one for all."""
    last_s: float = 0.0
    """With reconnect_s: the last connection lasts at least so long."""
    congestion: str = ""
    """TCP_CONGESTION of the sender; empty: the namespace's own."""

    @property
    def turns(self) -> list[float]:
        """How long each connection lasts."""
        if not self.reconnect_s:
            return [self.seconds]
        short = max(0, int((self.seconds - max(self.last_s, self.reconnect_s)) / self.reconnect_s))
        return [self.reconnect_s] * short + [self.seconds - short * self.reconnect_s]


@dataclass(frozen=True)
class Sample:
    """What the receiver got in one interval that ended at t_s (CLOCK_MONOTONIC)."""

    t_s: float
    span_s: float
    mbit: float
    """Mbit/s of payload."""


@dataclass(frozen=True)
class Seen:
    """What the sender's TCP knew at t_s (CLOCK_MONOTONIC)."""

    t_s: float
    rtt_us: int
    retransmits: int


class Flow:
    """Starts at once. Iterate over it, or poll() it, for samples as they come; wait() for the end."""

    def __init__(self, sender: NetNs, receiver: NetNs, address: str, plan: Plan, children: Children) -> None:
        self.plan = plan
        self.samples: list[Sample] = []
        self.seen: list[Seen] = []
        self._children = children
        # The listener is made here, so that it is there before the sender looks for it.
        with receiver.run(socket.create_server, (address, 0)) as listener:
            port = listener.getsockname()[1]
            argv = [sys.executable, "-I", "-m", "trimtab.bulk"]
            self._receiver = receiver.popen(
                [*argv, "receive", str(listener.fileno()), str(plan.interval_s)],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        numbers = map(str, (plan.interval_s, *plan.turns))
        self._sender = sender.popen(
            [*argv, "send", address, str(port), plan.congestion, *numbers], stdout=subprocess.PIPE
        )
        self.started_s = time.monotonic()
        self._pipes = {_fd(self._receiver): bytearray(), _fd(self._sender): bytearray()}

    @property
    def running(self) -> bool:
        """Whether either end may still say something."""
        return bool(self._pipes)

    def poll(self, timeout_s: float = 0.0) -> list[Sample]:
        """New samples since the last call, waiting up to timeout_s for one. ConnectionError when an end failed."""
        before = len(self.samples)
        for fd in select.select(list(self._pipes), [], [], timeout_s)[0]:
            chunk = os.read(fd, 65536)
            if chunk:
                self._parse(fd, chunk)
            else:
                del self._pipes[fd]
                self._ended(fd)
        return self.samples[before:]

    def __iter__(self) -> Iterator[Sample]:
        deadline_s = self.started_s + self.plan.seconds + GRACE_S
        while self.running:
            if time.monotonic() > deadline_s:
                raise ConnectionError(f"the transfer did not end within {GRACE_S:.0f} s of its time")
            yield from self.poll(1.0)

    def wait(self) -> Flow:
        """Return when the transfer is over. ConnectionError when it failed."""
        for _ in self:
            pass
        return self

    def mbit(self, last_s: float = 0.0) -> float:
        """Mean Mbit/s of payload: over all of it, or over the last so many seconds; 0 when nothing has come."""
        chosen = [one for one in self.samples if not last_s or one.t_s > self.samples[-1].t_s - last_s]
        span_s = sum(one.span_s for one in chosen)
        return sum(one.mbit * one.span_s for one in chosen) / span_s if span_s else 0.0

    def close(self) -> None:
        """End both ends now."""
        self._pipes.clear()
        self._children.end(self._sender)
        self._children.end(self._receiver)

    def _parse(self, fd: int, chunk: bytes) -> None:
        *lines, rest = (self._pipes[fd] + chunk).split(b"\n")
        self._pipes[fd] = bytearray(rest)
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            t_s = said["t_ns"] / 1e9
            if "bytes" in said:
                span_s = said["span_ns"] / 1e9
                self.samples.append(Sample(t_s, span_s, said["bytes"] * 8e-6 / span_s))
            else:
                self.seen.append(Seen(t_s, said["rtt_us"], said["retransmits"]))

    def _ended(self, fd: int) -> None:
        sender = self._sender.stdout is not None and fd == self._sender.stdout.fileno()
        code = (self._sender if sender else self._receiver).wait()
        if code:
            raise ConnectionError(f"the {'sender' if sender else 'receiver'} ended with {code}")
        if sender and self._receiver.stdin:
            self._receiver.stdin.close()


def _fd(child: subprocess.Popen[bytes]) -> int:
    assert child.stdout is not None
    return child.stdout.fileno()
