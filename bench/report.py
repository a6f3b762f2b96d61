"""Report: how long `trimtab report` takes for a day of one host, and in how much memory.

    .venv/bin/python bench/report.py [--hours 24] [--deciders 3]

Records a day as a real host makes it: each second a Tick and every file that the collectors read (with as many counters
as Linux 6.18 has in each), the level state each 5 s, some flows near their limits, changes of every state; by each of
three deciders, as all record the same events. The tapes are made in a temporary directory, and the page in a process of
its own. Judged by processor time, as machines are shared: on a host with nothing else to do the clock says the same.
Budget: under 20 s, the page under 5 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BUDGET_S, BUDGET_BYTES = 20.0, 5_000_000
TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import report_world  # noqa: E402
from report_world import Story  # noqa: E402

from bus.schema import AnyEvent, Counters, NeighTable, Probe, Tick  # noqa: E402

FILES = {
    "net/netstat": 150, "net/snmp": 90, "net/snmp6": 92, "net/sockstat": 17, "net/softnet_stat": 6, "vmstat": 22,
    "meminfo": 15, "pressure/cpu": 2, "pressure/io": 2, "pressure/memory": 2,
}  # fmt: skip
"""Counters in each file."""
WANTED = {
    "net/netstat": ("TcpExt.TCPOFOQueue", "TcpExt.TCPHPHits", "TcpExt.ListenOverflows", "TcpExt.TCPBacklogDrop",
                    "TcpExt.TCPMemoryPressures", "TcpExt.PruneCalled"),
    "net/snmp": ("Tcp.RetransSegs", "Tcp.OutSegs"), "net/sockstat": ("TCP.mem",), "net/softnet_stat": ("dropped",),
    "pressure/cpu": ("some.total_us",), "pressure/io": ("some.total_us",), "pressure/memory": ("some.total_us",),
}  # fmt: skip
"""Those that a signal is made of, by their names."""


MEASURED = """
import pathlib, resource, sys
from trimtab.__main__ import main
place, sys.argv = sys.argv[1], ["trimtab", *sys.argv[2:]]
try:
    sys.exit(main())
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    pathlib.Path(place).write_text(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime}")
"""


def day(total: int) -> Story:
    """A host that is as busy as hosts are."""
    story = report_world.web(total)
    story.said = [said for said in story.said if not isinstance(said[2], Counters | Tick)]
    story.also = lambda: _each_second(story, total)
    return story


def _each_second(story: Story, total: int) -> Iterator[tuple[int, str, AnyEvent]]:
    names = {name: [*WANTED.get(name, ()), *(f"Counter{n}" for n in range(n_))][:n_] for name, n_ in FILES.items()}
    for second in range(total):
        t_ns = story.at(second)
        for name, counters in names.items():
            values = {counter: second * (17 + place) % 2**32 for place, counter in enumerate(counters)}
            yield t_ns, "collector-proc", Counters(t_ns, 1, name, values)
        yield t_ns, "collector-proc", Tick(t_ns, second)
        if second % 5 == 0:
            for publisher, event in _levels(second, t_ns):
                yield t_ns, publisher, event


def _levels(second: int, t_ns: int) -> list[tuple[str, AnyEvent]]:
    tables = (NeighTable(t_ns, family, 200 + second % 60, 128, 512, 1024, 0, 0, second, 0) for family in (2, 10))
    probes = (Probe(t_ns, name, "raw tracepoint", "") for name in ("tcp_rcvbuf", "tcp_sndbuf", "neigh", "sysctl"))
    return [*(("collector-netlink", table) for table in tables), *(("collector-bpf", probe) for probe in probes)]


def main() -> int:
    """Measure and print. 0 when within the budget, 1 when not."""
    parser = argparse.ArgumentParser(description="Time and memory of `trimtab report` for a day of one host.")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--deciders", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        day(round(options.hours * 3600)).write(options.make, report_world.DECIDERS[3 - options.deciders :])
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: a child's peak counts what its parent had when it was forked.
        subprocess.run([sys.executable, *sys.argv, "--make", str(folder)], check=True)
        tapes = list(folder.rglob("*.tape"))
        size = sum(tape.stat().st_size for tape in tapes)
        print(f"{options.hours:g} h, {options.deciders} deciders: {len(tapes)} segments, {size / 1e6:.1f} MB on disk")
        page = folder / "report.html"
        start = time.monotonic()
        peak_file = folder / "peak"
        subprocess.run([sys.executable, "-c", MEASURED, peak_file, "report", folder, "-o", page], check=True)
        took = time.monotonic() - start
        peak_kib, cpu_s = map(float, peak_file.read_text().split())
        size = page.stat().st_size
        used = f"{cpu_s:.1f} s of processor time, {peak_kib / 1024:.0f} MiB at most"
        print(f"report: {took:.1f} s, {used}, page {size / 1e6:.2f} MB")
        met = cpu_s < BUDGET_S and size < BUDGET_BYTES
    print(f"budget {BUDGET_S:g} s, {BUDGET_BYTES / 1e6:g} MB: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
