"""Facts about the host, as a Host event."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bus.schema import Host


def read(root: Path, t_ns: int) -> Host:
    """The facts, from /proc under `root` and from the C library. Raises OSError, or ValueError for odd content."""
    return Host(
        t_ns=t_ns,
        boot_id=_line(root / "sys/kernel/random/boot_id"),
        release=_line(root / "sys/kernel/osrelease"),
        machine=os.uname().machine,
        cpus=os.sysconf("SC_NPROCESSORS_ONLN"),
        mem_bytes=mem_bytes((root / "meminfo").read_text("ascii")),
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        tai_offset_s=tai_offset_s(),
    )


def mem_bytes(meminfo: str) -> int:
    """MemTotal of /proc/meminfo, in bytes. ValueError when it is not there."""
    for line in meminfo.splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and words[2:] == ["kB"]:
            return int(words[1]) * 1024
    raise ValueError("meminfo: no line MemTotal in kB")


def tai_offset_s() -> int:
    """TAI - UTC as the kernel has it, 0 where nobody has set it: the difference of the two clocks, clock_gettime(2)."""
    before_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    tai_ns = time.clock_gettime_ns(time.CLOCK_TAI)
    after_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    return round((tai_ns - (before_ns + after_ns) / 2) / 1e9)


def _line(path: Path) -> str:
    # 128 is the most that a Name on the wire may hold.
    return path.read_text("ascii").strip()[:128]
