"""Who else tunes this host: other tuners that run or will at the next boot, and what sysctl.d sets.

Their keys are ceded by default: trimtab keeps its hands off them while they are theirs.
"""

from __future__ import annotations

import configparser
import contextlib
import fnmatch
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from bus.tunables import Tunable

SYSCTL_FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
"""In order of precedence, sysctl.d(5): a file masks those of the same name in later folders."""
TUNED_FOLDERS = ("etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned")
INCLUDES_MAX = 16
COMM_BYTES = 64
BPFTUNE = (
    *(f"net.core.{what}" for what in ("netdev_budget*", "netdev_max_backlog", "rmem_default", "rmem_max")),
    *(f"net.ipv4.{what}" for what in ("ipfrag_high_thresh", "neigh.default.gc_thresh?", "tcp_max_orphans")),
    *(f"net.ipv4.{what}" for what in ("tcp_max_syn_backlog", "tcp_mem", "tcp_rmem", "tcp_wmem", "udp_mem")),
    "net.ipv4.tcp_moderate_rcvbuf",
    *(f"net.ipv6.{what}" for what in ("ip6frag_high_thresh", "neigh.default.gc_thresh?", "route.max_size")),
)
CILIUM = (
    "kernel.timer_migration",
    "kernel.unprivileged_bpf_disabled",
    "net.core.bpf_jit_enable",
    "net.core.default_qdisc",
    "net.core.fb_tunnels_only_for_init_net",
    "net.core.netdev_max_backlog",
    "net.core.somaxconn",
    *(f"net.ipv4.conf.*.{what}" for what in ("accept_local", "forwarding", "rp_filter", "send_redirects")),
    "net.ipv4.fib_multipath_use_neigh",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_slow_start_after_idle",
    *(f"net.ipv6.conf.*.{what}" for what in ("disable_ipv6", "forwarding")),
)
"""What its agent sets when it starts: Reinitialize and enableForwarding, cilium's pkg/datapath/loader, and, for the
bandwidth manager, setBaselineSysctls, pkg/datapath/linux/bandwidth. (tools/sysctlfix leaves a file in sysctl.d.)"""


Pids = dict[bytes, int]


class Conflict(Struct, frozen=True):
    """Somebody else who sets keys of ours, or might."""

    what: str
    detail: str
    keys: tuple[str, ...]
    """The tunables concerned; empty where there is none of ours among what it sets."""


class Setting(Struct, frozen=True):
    """One line of sysctl.d that is in force."""

    key: str
    """With slashes."""
    value: str
    file: str
    line: int


def ceded(root: Path, rows: Mapping[str, Tunable], to: Collection[str]) -> dict[str, str]:
    """Tunable -> whose it is and why, for those of `to` (bus.config.Config.cede) that are there."""
    found = [one for one in conflicts(root, rows) if one.what.lower() in to]
    return {name: f"{one.what} {one.detail.partition(':')[0]}" for one in found for name in one.keys}


def conflicts(root: Path, rows: Mapping[str, Tunable]) -> list[Conflict]:
    """All that is found below root."""
    pids = _pids(root)
    return [
        *_tuned(root, rows, pids),
        *_bpftune(root, rows, pids),
        *_irqbalance(root, pids),
        *_cilium(root, rows, pids),
        *_sysctl_d(root, rows),
    ]


# --- other tuners


def _pids(root: Path) -> Pids:
    """The lowest pid of each name. Thousands may run, and a wish may wait meanwhile: plain system calls."""
    found: Pids = {}
    try:
        proc = os.open(root / "proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return found
    try:
        for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
            with contextlib.suppress(OSError):
                found.setdefault(_comm(proc, pid), pid)
    finally:
        os.close(proc)
    return found


def _comm(proc: int, pid: int) -> bytes:
    fd = os.open(f"{pid}/comm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return os.read(fd, COMM_BYTES).rstrip(b"\n")
    finally:
        os.close(fd)


def _running(root: Path, comm: str, pids: Pids) -> str:
    """ "runs (pid 7)", "starts at the next boot", or nothing. systemd enables a unit by a link among its wants."""
    if pid := pids.get(comm.encode()):
        return f"runs (pid {pid})"
    wants = (root / "etc/systemd/system").glob("*.wants")
    enabled = any(os.path.lexists(folder / f"{comm}.service") for folder in wants)
    return "is enabled, and starts at the next boot" if enabled else ""


def _tuned(root: Path, rows: Mapping[str, Tunable], pids: Pids) -> Iterator[Conflict]:
    state = _running(root, "tuned", pids)
    if not state:
        return
    try:
        profiles = (root / "etc/tuned/active_profile").read_text().split()
    except OSError:
        profiles = []
    keys = {key for profile in profiles for key in _profile_keys(root, profile)}
    ours = tuple(name for name, row in rows.items() if not keys.isdisjoint(row.sysctls))
    profile = f"profile {' '.join(profiles)}" if profiles else "no active profile"
    advice = "what the profile sets is ceded to it" if ours else "no key of ours"
    yield Conflict("TuneD", f"{state}, {profile}: {advice}", ours)


def _profile_keys(root: Path, profile: str) -> Iterator[str]:
    """The dotted sysctls of a TuneD profile and of those that it includes (tuned.conf(5), tuned-main.conf(5))."""
    waiting, seen = [profile], set[str]()
    while waiting and len(seen) < INCLUDES_MAX:
        name = waiting.pop()
        seen.add(name)
        parsed = _profile(root, name)
        if parsed.has_section("sysctl"):
            yield from (key.replace("/", ".") for key in parsed["sysctl"])
        included = parsed.get("main", "include", fallback="").replace(",", " ").split()
        waiting += [more for more in included if more not in seen]


def _profile(root: Path, name: str) -> configparser.RawConfigParser:
    parsed = configparser.RawConfigParser(strict=False, allow_no_value=True, delimiters=("=",))
    for folder in TUNED_FOLDERS:
        file = root / folder / name / "tuned.conf"
        try:
            parsed.read_string(file.read_text())
        except (OSError, ValueError, configparser.Error):
            continue
        return parsed
    return parsed


def _bpftune(root: Path, rows: Mapping[str, Tunable], pids: Pids) -> Iterator[Conflict]:
    state = _running(root, "bpftune", pids)
    if state:
        ours = tuple(name for name, row in rows.items() if any(_matches(key, BPFTUNE) for key in row.sysctls))
        yield Conflict("bpftune", f"{state}: it tunes the same keys by rules of its own, so they are ceded to it", ours)


def _irqbalance(root: Path, pids: Pids) -> Iterator[Conflict]:
    state = _running(root, "irqbalance", pids)
    if state:
        yield Conflict("irqbalance", f"{state}: it sets the affinity of interrupts, which trimtab leaves alone", ())


def _cilium(root: Path, rows: Mapping[str, Tunable], pids: Pids) -> Iterator[Conflict]:
    state = _running(root, "cilium-agent", pids)
    # The agent is a pod's, not a unit's. It leaves this file for the kubelet, which waits for it at the next boot.
    plugins = sorted((root / "etc/cni/net.d").glob("*-cilium.conf*"))
    if not state and plugins:
        state = f"is the network plugin in /{plugins[0].relative_to(root)}"
    if state:
        ours = tuple(name for name, row in rows.items() if any(_matches(key, CILIUM) for key in row.sysctls))
        advice = "what its agent sets is ceded to it" if ours else "no key of ours"
        yield Conflict("Cilium", f"{state}: {advice}", ours)


def _matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


# --- sysctl.d


def settings(root: Path) -> list[Setting]:
    """What systemd-sysctl would set: of each key the last line that names it, files in order of their names."""
    found: dict[str, Setting] = {}
    for file in _files(root):
        for setting in _lines(root, file):
            found[setting.key] = setting
    return list(found.values())


def _files(root: Path) -> list[Path]:
    by_name: dict[str, Path] = {}
    for folder in SYSCTL_FOLDERS:
        for file in (root / folder).glob("*.conf"):
            by_name.setdefault(file.name, file)
    # /etc/sysctl.conf is read by sysctl(8) --system alone, last; Debian links it as sysctl.d/99-sysctl.conf.
    own = root / "etc/sysctl.conf"
    linked = any(os.path.realpath(file) == os.path.realpath(own) for file in by_name.values())
    return [by_name[name] for name in sorted(by_name)] + ([own] if own.is_file() and not linked else [])


def _lines(root: Path, file: Path) -> Iterator[Setting]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        key, equals, value = line.strip().removeprefix("-").partition("=")
        if equals and key.strip() and not key.startswith(("#", ";")):
            yield Setting(_slashed(key.strip()), value.strip(), str(file.relative_to(root)), number)


def _slashed(key: str) -> str:
    """As under /proc/sys. Where a slash comes first, dots are part of names (eth0.100): sysctl.d(5)."""
    first = next((char for char in key if char in "./"), "")
    if first == "/":
        return key
    return key.translate(str.maketrans("./", "/."))


def _sysctl_d(root: Path, rows: Mapping[str, Tunable]) -> Iterator[Conflict]:
    found = settings(root)
    named = {setting.key for setting in found}
    for setting in found:
        ours = tuple(name for name, row in rows.items() if any(_sets(setting.key, path, named) for path in _paths(row)))
        if ours:
            yield Conflict(
                "sysctl.d",
                f"/{setting.file} line {setting.line} sets {', '.join(ours)} by {setting.key.replace('/', '.')} = "
                f"{setting.value}: ceded, so left alone unless `cede` in the configuration leaves sysctl.d out",
                ours,
            )


def _paths(row: Tunable) -> tuple[str, ...]:
    return tuple(name.replace(".", "/") for name in row.sysctls)


def _sets(key: str, path: str, named: set[str]) -> bool:
    """A glob sets what no line names in full (sysctl.d(5))."""
    return key == path or (path not in named and fnmatch.fnmatchcase(path, key))
