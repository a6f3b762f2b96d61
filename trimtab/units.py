"""The systemd units, made from the rows of bus.roles, so that the two cannot disagree. `trimtab units` prints or writes
them.

    trimtab.target            all of it; `systemctl stop trimtab.target` is an orderly stop
    trimtab-layout.service    lays out the run directory, then holds its lock; when it ends, all others stop, in order
    trimtab-ROLE.service      one per role; a role that dies takes no other along
    trimtab-restore.service   early in the boot: what was confirmed before it
    trimtab.slice             what they may take together
    sysusers.d/trimtab.conf   their users, by name, with the numbers that they have in the foreground

systemd.exec(5) has what each line means; bus.roles says why a role has a capability.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from bus.roles import GROUP, Role, events_path, roles, tape_dir, tapes_dir
from trimtab import exits, show, start
from trimtab.child import PYTHON, WATCHDOG_S
from trimtab.hardening import HARDENING, SYSTEM_CALLS, families, namespaces, system_calls, writes_kernel

SCHEMA = "trimtab.unit_files/v1"
TARGET = "trimtab.target"
SLICE = "trimtab.slice"
LAYOUT = "trimtab-layout.service"
RESTORE = "trimtab-restore.service"
UNITS = Path("systemd/system")
USERS = Path("sysusers.d/trimtab.conf")
RUN = Path("/run")
STATE = Path("/var/lib")
NAME_MAX = 31
"""Of a user's name, systemd's strict rules (USER_NAMES)."""
ORDER = {"deadman": 0, "actuator": 1, "collector": 2, "loader": 2, "decider": 3}
"""Each kind starts after those before it, and so stops before them."""


class UnitError(OSError):
    """Directories for which no units can be made: says which."""


class Place(Struct, frozen=True):
    """Where this installation is. The directories must be below /run and /var/lib, which systemd makes and clears."""

    run_dir: Path
    state_dir: Path
    config: Path | None = None
    program: tuple[str, ...] = (sys.executable, "-I", "-B")

    def dirs(self) -> tuple[str, ...]:
        """The options that each role takes."""
        return ("--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir))

    def below(self, path: Path, parent: Path) -> str:
        """path as a directive for directories names it. UnitError when it is elsewhere."""
        if not path.is_relative_to(parent) or path == parent:
            raise UnitError(f"{path}: systemd units need it below {parent}")
        return str(path.relative_to(parent))


def name(role: Role) -> str:
    """A role's unit."""
    return f"trimtab-{role.name}.service"


def user(role: Role) -> str:
    """A role's user under systemd; its number is that of the row."""
    if not role.uid_offset:
        return "root"
    found = f"trimtab-{role.name.removeprefix('decider-')}"
    return found if len(found) <= NAME_MAX else f"trimtab-{role.uid_offset}"


def render(rows: Sequence[Role], place: Place) -> dict[str, str]:
    """Each file, by its path below /etc."""
    units = {
        TARGET: _target(rows),
        SLICE: _slice(),
        LAYOUT: _layout(place),
        RESTORE: _restore(place),
        **{name(role): _role(role, rows, place) for role in rows},
    }
    return {str(USERS): _users(rows), **{str(UNITS / unit): text for unit, text in units.items()}}


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write those files below folder that differ from what is there. Returns which."""
    written = []
    for path, text in files.items():
        file = folder / path
        if not file.is_file() or file.read_text() != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o644)
            written.append(file)
    return written


def show_units(place: Place, output: Path | None, as_json: bool) -> int:
    """Print the units for the configuration that is in force, or write them. Raises ConfigError, UnitError."""
    settings = start.effective(place.config, None, (), ())
    rows = roles((each for each, on in settings.deciders.items() if on), start.deciders())
    files = render(rows, place)
    if output:
        written = [str(file) for file in write(files, output)]
        print("\n".join(written) or "nothing differs")
    elif as_json:
        show.as_json({"schema": SCHEMA, "files": files})
    else:
        print("\n".join(f"# /etc/{path}\n{text}" for path, text in files.items()), end="")
    return exits.FINE


def _users(rows: Iterable[Role]) -> str:
    lines = [f"g trimtab {GROUP}"]
    for role in rows:
        if role.uid_offset:
            lines += [f'u {user(role)} {role.uid} "trimtab {role.name}" / -']
    return _text(["# trimtab: a user for each role; see sysusers.d(5)"], lines)


def _target(rows: Sequence[Role]) -> str:
    wanted = [LAYOUT, RESTORE, *(name(role) for role in rows if not role.oneshot_for)]
    return _text(
        ["[Unit]", "Description=trimtab: tunes this host's kernel, and can undo it", "Documentation=man:trimtab(1)"],
        [f"Wants={unit}" for unit in wanted],
        [f"BindsTo={LAYOUT}", f"After={LAYOUT}", "", "[Install]", "WantedBy=multi-user.target"],
    )


def _slice() -> str:
    return _text(
        ["[Unit]", "Description=What all of trimtab may take", "Documentation=man:trimtab(1)", "", "[Slice]"],
        ["CPUWeight=20", "MemoryMax=512M", "TasksMax=128"],
    )


def _layout(place: Place) -> str:
    config = ("--config", str(place.config)) if place.config else ()
    return _text(
        ["[Unit]", "Description=trimtab: its directories, and its configuration as the roles read it"],
        ["Documentation=man:trimtab(1)", f"PartOf={TARGET}", "", "[Service]", "Type=notify", f"Slice={SLICE}"],
        [_command(place, "trimtab.layout", *place.dirs(), *config), "TimeoutStartSec=30s"],
        # Kept: when all of it ends at once, the roles stop in order in a directory that is still there.
        [f"RuntimeDirectory={place.below(place.run_dir, RUN)}", "RuntimeDirectoryMode=0755"],
        ["RuntimeDirectoryPreserve=yes"],
        [f"StateDirectory={place.below(place.state_dir, STATE)}", "StateDirectoryMode=0711"],
        ["CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID"],
        ["ProtectKernelTunables=yes", "PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"],
        ["RestrictNamespaces=yes", "MemoryDenyWriteExecute=yes", f"SystemCallFilter={' '.join(SYSTEM_CALLS)} @chown"],
        # The publishers' directories are setgid.
        [line for line in HARDENING if not line.startswith("RestrictSUIDSGID=")],
    )


def _restore(place: Place) -> str:
    return _text(
        ["[Unit]", "Description=trimtab: apply again what was confirmed before the boot"],
        ["Documentation=man:trimtab(1)", f"PartOf={TARGET}", f"ConditionPathExists={place.state_dir}/journal.db"],
        ["After=systemd-sysctl.service local-fs.target", f"Before=network.target {LAYOUT}", "", "[Service]"],
        ["Type=oneshot", "RemainAfterExit=yes", f"Slice={SLICE}", _command(place, "trimtab", "restore", *place.dirs())],
        ["TimeoutStartSec=30s", f"ReadWritePaths=-{place.state_dir}"],
        ["CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_SYS_PTRACE"],
        ["RestrictAddressFamilies=AF_UNIX AF_NETLINK", "RestrictNamespaces=net", "MemoryDenyWriteExecute=yes"],
        [f"SystemCallFilter={' '.join(SYSTEM_CALLS)}"],
        HARDENING,
    )


def _role(role: Role, rows: Sequence[Role], place: Place) -> str:
    return _text(
        ["[Unit]", f"Description=trimtab {role.name}: {role.summary}", "Documentation=man:trimtab(1)"],
        _dependencies(role, rows),
        ["", "[Service]", f"Slice={SLICE}"],
        _process(role, place),
        _identity(role),
        _paths(role, place),
        _limits(role),
        HARDENING,
    )


def _dependencies(role: Role, rows: Sequence[Role]) -> list[str]:
    before = [name(other) for other in rows if ORDER[other.kind] < ORDER[role.kind] and not other.oneshot_for]
    # Bound to the layout, so that nothing runs on in directories that are no more.
    lines = [f"PartOf={TARGET}", f"BindsTo={LAYOUT}", f"After={' '.join([LAYOUT, RESTORE, *before])}"]
    if role.oneshot_for:
        # Not after its daemon, which says READY only when this has been.
        lines += [f"PartOf=trimtab-{role.oneshot_for}.service", "StartLimitIntervalSec=60s", "StartLimitBurst=20"]
    else:
        lines += ["StartLimitIntervalSec=0"]
    return lines + [f"Wants={name(other)}" for other in rows if other.oneshot_for == role.name]


def _process(role: Role, place: Place) -> list[str]:
    if role.kind == "loader":
        # The distribution's python3, where its bcc lives, with our file; it takes nothing but the socket.
        file = Path(__file__).resolve().parent.parent.joinpath(*role.module.split(".")).with_suffix(".py")
        socket = place.run_dir / role.oneshot_for / "probes.sock"
        wait = f"until [ -S {socket} ]; do sleep 0.05; done"
        start = f"ExecStart=/bin/sh -c '{wait}; exec {PYTHON} -I -B {file} {socket}'"
        return ["Type=oneshot", start, "Restart=on-failure", "RestartSec=250ms", "TimeoutStartSec=60s"]
    module = role.module.removesuffix(".__main__")
    words = [*role.argv, *place.dirs(), "--config", str(place.run_dir / "config.json")]
    if role.kind == "decider":
        words += ["--tapes", str(tapes_dir(place.state_dir))]
    return [
        "Type=notify",
        "NotifyAccess=main",
        _command(place, module, *words),
        "Restart=on-failure",
        "RestartSec=1s",
        "TimeoutStartSec=30s",
        "TimeoutStopSec=15s",
        f"WatchdogSec={WATCHDOG_S}s",
    ]


def _identity(role: Role) -> list[str]:
    capabilities = " ".join(role.capabilities)
    lines = [f"CapabilityBoundingSet={capabilities}", "SupplementaryGroups=trimtab"]
    if role.uid_offset:
        lines += [f"User={user(role)}", f"Group={user(role)}", f"AmbientCapabilities={capabilities}"]
    return lines


def _paths(role: Role, place: Place) -> list[str]:
    writable = [events_path(place.run_dir, role.name).parent] if role.publishes else []
    if role.kind == "actuator":
        writable += [place.run_dir / "wish", place.run_dir / "control"]
    if writes_kernel(role):
        writable += [place.state_dir]
    lines = [f"ReadWritePaths={path}" for path in writable]
    if role.kind == "decider":
        tapes = " ".join(place.below(tape_dir(place.state_dir, name), STATE) for name in role.argv)
        lines += [f"StateDirectory={tapes}", "StateDirectoryMode=0700"]
    return lines


def _limits(role: Role) -> list[str]:
    loader = role.kind == "loader"
    lines = [
        # It would make /proc/sys and /sys read-only.
        f"ProtectKernelTunables={'no' if writes_kernel(role) else 'yes'}",
        f"RestrictAddressFamilies={' '.join(families(role))}",
        f"RestrictNamespaces={namespaces(role)}",
        f"SystemCallFilter={' '.join(system_calls(role))}",
        f"OOMScoreAdjust={-500 if writes_kernel(role) else 200}",
    ]
    if not role.network:
        # Its own sandbox (bus.sandbox) goes inside of this one.
        lines += ["PrivateNetwork=yes", "ProtectProc=invisible"]
    # bcc's compiler links in memory; kernels before 5.11 count maps as locked memory.
    return [*lines, "LimitMEMLOCK=infinity"] if loader else [*lines, "MemoryDenyWriteExecute=yes"]


def _command(place: Place, module: str, *words: str) -> str:
    return f"ExecStart={' '.join([*place.program, '-m', module, *words])}"


def _text(*parts: Iterable[str]) -> str:
    return "".join(f"{line}\n" for part in parts for line in part)
