"""What systemd takes from the roles beside what their rows say: systemd.exec(5), "Sandboxing"."""

from __future__ import annotations

from bus.roles import Role

HARDENING = (
    "Environment=LC_ALL=C.UTF-8",
    "LockPersonality=yes",
    "NoNewPrivileges=yes",
    "PrivateDevices=yes",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHome=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectSystem=strict",
    "RemoveIPC=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
)
"""For all. Not PrivateUsers=: uid 0 would lose its right to vm.* and kernel.*."""
SYSTEM_CALLS = ("@system-service",)


def writes_kernel(role: Role) -> bool:
    """It writes tunables."""
    return role.kind in ("actuator", "deadman")


def families(role: Role) -> tuple[str, ...]:
    """The kinds of sockets that it opens."""
    netlink = writes_kernel(role) or role.argv == ("netlink",)
    return ("AF_UNIX", "AF_NETLINK") if netlink else ("AF_UNIX",)


def namespaces(role: Role) -> str:
    """Which it enters: with CAP_SYS_ADMIN another network's, the loader excepted."""
    return "net" if "CAP_SYS_ADMIN" in role.capabilities and role.kind != "loader" else "yes"


def system_calls(role: Role) -> tuple[str, ...]:
    """What it may call."""
    if role.kind == "loader":
        return (*SYSTEM_CALLS, "bpf", "perf_event_open")
    # What it shuts itself in with (bus.sandbox); named, since systemd before 255 has no group for them.
    own = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp")
    return SYSTEM_CALLS if role.network else (*SYSTEM_CALLS, *own)
