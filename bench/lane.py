"""The event lane between two processes: how many events a second, batched, without losing one.

    .venv/bin/python bench/lane.py [--rates 200000,400000,600000,800000,1000000] [--seconds 2]

One process publishes at a given rate, as a collector does (bus.link.Publisher, up to 32 events a batch, numbered), a
little every millisecond; the other receives them as a decider does, to event structs. A rate counts when every event
came (the numbers tell) and the publisher kept up with the rate. Budget (DESIGN section 10): 400 000 events/s.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bus.link import Poller, Publisher, Subscriber
from bus.schema import TcpRcvBuf, Tick

BUDGET = 400_000
NAME = "bench"
BEAT_S = 0.001
QUIET_S = 0.5
EVENT = TcpRcvBuf(
    1_000_000_000, 4026531840, 4026531840, 77, 2, 5201, 40000, 262144, 262144, False, 171264, 174080, 7, 120000, 40125,
    40663, 14428664,
)  # fmt: skip


class Result(NamedTuple):
    """One rate tried."""

    sent: int
    received: int
    lost: int
    took_s: float
    cpu_s: float
    """Of the receiver."""


def publish(path: Path, rate: int, seconds: float, said: Connection) -> None:
    """The publisher's process: first ticks, until the other end says that it hears them; then events at the rate."""
    publisher = Publisher(path, NAME)
    said.send("bound")
    while not said.poll(0.01):
        publisher.publish([Tick(time.monotonic_ns(), 0)])
    said.recv()
    first = publisher.published
    start_s = time.monotonic()
    total = int(rate * seconds)
    sent = 0
    while sent < total:
        due = min(total, int((time.monotonic() - start_s) * rate))
        publisher.publish([EVENT] * (due - sent))
        sent = due
        time.sleep(BEAT_S)
    said.send((publisher.published - first, time.monotonic() - start_s))
    said.recv()  # until then the socket holds what is under way
    publisher.close()


def measure(path: Path, rate: int, seconds: float) -> Result:
    """Send at `rate` for `seconds` and receive."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=publish, args=(path, rate, seconds, theirs))
    child.start()
    ours.recv()
    subscriber = Subscriber(path, NAME)
    poller = Poller()
    poller.add(subscriber)
    while not subscriber.received:
        poller.wait(0.1)
        subscriber.receive()
    ours.send("heard")
    cpu_s = time.process_time()
    events = 0
    heard_s = time.monotonic()
    while not (ours.poll() and time.monotonic() - heard_s > QUIET_S):
        if poller.wait(0.05):
            got = subscriber.receive()
            events += sum(type(event) is TcpRcvBuf for event in got)
            heard_s = time.monotonic()
    sent, took_s = ours.recv()
    result = Result(sent, events, subscriber.lost, took_s, time.process_time() - cpu_s)
    ours.send("done")
    child.join()
    subscriber.close()
    return result


def main() -> int:
    """Try each rate and print. 0 when the budget's rate came without loss, 1 when not."""
    parser = argparse.ArgumentParser(description="Events a second from one process to another, without loss.")
    parser.add_argument("--rates", default="200000,400000,600000,800000,1000000")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    best = 0
    with tempfile.TemporaryDirectory(prefix="tt-bench-") as folder:
        for rate in sorted(int(rate) for rate in options.rates.split(",")):
            result = measure(Path(folder) / "events.sock", rate, options.seconds)
            kept_up = result.took_s < options.seconds * 1.05
            whole = result.received == result.sent and not result.lost
            best = rate if kept_up and whole else best
            print(
                f"lane at {rate:,} events/s: {result.received:,} of {result.sent:,} came, {result.lost} lost, in"
                f" {result.took_s:.2f} s, {result.cpu_s / result.sent * 1e9:.0f} ns of the receiver's processor each"
                f"{'' if kept_up else ' (the publisher did not keep up)'}"
            )
    verdict = "met" if best >= BUDGET else "missed"
    print(
        f"event lane, no loss, batched: {best:,} events/s; budget {BUDGET:,}: {verdict}; again with:"
        " .venv/bin/python bench/lane.py"
    )
    return 0 if best >= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
