"""What this kernel, and this process in it, can do of what trimtab uses. Each by trying, never by version."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from bpf.libbpf import BPF_MAP_TYPE_RINGBUF, Libbpf, UnavailableError
from bpf.roads import cgroup2_root
from bus import landlock, seccomp
from bus.netns import SO_NETNS_COOKIE
from bus.tunables import INT_MAX
from collectors.loader import lockdown
from trimtab import route_metrics
from trimtab.child import PYTHON

# r0 = 0; exit (Documentation/bpf/standardization/instruction-set.rst)
RETURN_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
FENTRY_TARGET = "bpf_fentry_test1"
"""A function that the kernel keeps for such tests (net/bpf/test_run.c)."""
SECONDS = 20


class Feature(Struct, frozen=True):
    """One thing that may be there."""

    name: str
    found: bool
    reason: str
    """Why it is not there, or what is worth knowing where it is; may be empty."""
    needed: bool
    """Without it something is not seen or not tuned; else another road leads there, too."""


def features(root: Path) -> list[Feature]:
    """Every feature. root: where to look for /proc and /sys; the system calls are this kernel's in any case."""
    return [_feature(name, needed, check, root) for name, needed, check in _checks()]


def _checks() -> Iterator[tuple[str, bool, Callable[[Path], str]]]:
    """(name, needed, check): a check returns what is worth knowing, and raises where the thing is not there."""
    yield "BTF", True, lambda root: _there(root / "sys/kernel/btf/vmlinux")
    yield "BPF ring buffer", True, lambda root: _opened(Libbpf().map_create(BPF_MAP_TYPE_RINGBUF, "doctor", 0, 4096))
    yield "BPF raw tracepoints", True, _raw_tracepoint
    yield "fentry", False, _fentry
    yield "kprobes", False, lambda root: _there(root / "sys/bus/event_source/devices/kprobe/type")
    yield "bcc", True, _bcc
    yield "cgroup2", True, lambda root: f"at {cgroup2_root(root)}"
    yield "tracefs", False, _tracefs
    yield "no lockdown", False, _lockdown
    yield "IPv6", False, lambda root: _there(root / "proc/net/if_inet6")
    yield "IPv6 routes unlimited", False, _routes
    yield "route metrics", True, lambda root: route_metrics.tried()
    yield "pressure (PSI)", False, lambda root: _read(root / "proc/pressure/memory")
    yield "netns cookies", True, _cookie
    yield "BPF for root only", False, _unprivileged
    yield "Landlock", False, lambda root: f"version {landlock.version()}"
    yield "libseccomp", False, _libseccomp


def _feature(name: str, needed: bool, check: Callable[[Path], str], root: Path) -> Feature:
    try:
        return Feature(name, True, check(root), needed)
    except UnavailableError as error:
        return Feature(name, False, str(error), needed)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.EPERM, errno.EACCES):
            reason = "not permitted" + (lockdown(root) if os.geteuid() == 0 else "; try as root")
        return Feature(name, False, f"{error.filename}: {reason}" if error.filename else reason, needed)


def _there(path: Path) -> str:
    path.stat()
    return ""


def _read(path: Path) -> str:
    # PSI may be compiled in and off: then the files are there and cannot be opened (EOPNOTSUPP).
    path.read_bytes()
    return ""


def _opened(descriptor: int) -> str:
    os.close(descriptor)
    return ""


def _raw_tracepoint(root: Path) -> str:
    libbpf = Libbpf()
    program = libbpf.program_load("raw_tracepoint", "doctor", RETURN_0)
    try:
        return _opened(libbpf.raw_tracepoint("sys_enter", program))
    finally:
        os.close(program)


def _fentry(root: Path) -> str:
    # bcc's BPF.support_kfunc() says yes where the kernel says no: only loading one tells.
    libbpf = Libbpf()
    btf = libbpf.btf(root / "sys/kernel/btf/vmlinux")
    try:
        return _opened(libbpf.program_load("fentry", "doctor", RETURN_0, btf.function(FENTRY_TARGET)))
    finally:
        btf.close()


def _bcc(root: Path) -> str:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('bcc') is None)"
    if subprocess.run([PYTHON, "-I", "-c", code], timeout=SECONDS).returncode:
        raise UnavailableError(f"{PYTHON} has no bcc; install python3-bpfcc")
    return ""


def _tracefs(root: Path) -> str:
    for folder in (root / "sys/kernel/tracing", root / "sys/kernel/debug/tracing"):
        if (folder / "events").is_dir():
            return f"at {folder}"
    raise UnavailableError("not mounted")


def _lockdown(root: Path) -> str:
    if said := lockdown(root):
        raise UnavailableError(said.removeprefix(", "))
    folder = root / "sys/kernel/security"
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UnavailableError(f"not known: securityfs is not mounted at {folder}")
    return ""


def _cookie(root: Path) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        (cookie,) = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
    return f"ours is {cookie}"


def _routes(root: Path) -> str:
    # No limit any more since Linux 6.3 ("ipv6: remove max_size check inline with ipv4"), which begins with INT_MAX, nor
    # in stable kernels that took it. No counter tells of what an older one refuses, so no tuner could judge.
    size = int((root / "proc/sys/net/ipv6/route/max_size").read_text())
    if size < INT_MAX:
        raise UnavailableError(f"net.ipv6.route.max_size is {size}: an older kernel refuses what is above it")
    return ""


def _unprivileged(root: Path) -> str:
    file = root / "proc/sys/kernel/unprivileged_bpf_disabled"
    if file.read_text().strip() == "0":
        raise UnavailableError("kernel.unprivileged_bpf_disabled is 0: any user may load BPF programs")
    return ""


def _libseccomp(root: Path) -> str:
    try:
        ctypes.CDLL(seccomp.LIBRARY)
    except OSError:
        raise UnavailableError(f"no {seccomp.LIBRARY}; install libseccomp2") from None
    return ""
