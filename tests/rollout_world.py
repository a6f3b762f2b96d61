"""Hosts with something to roll out to: trimtab in enforce, with a tuner whose evidence a test can make in a host's own
network namespace, without BPF.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet_world import TREE, FleetError, Host, World, bundle

from actuators import history
from bus.roles import BUILT_IN_DECIDERS, GUARD

KEY = "net.ipv4.tcp_fin_timeout"
VALUE = "/proc/sys/net/ipv4/tcp_fin_timeout"
FORMER = "/var/lib/trimtab/former.json"
POLICY = "/etc/trimtab/conf.d/50-policy.toml"
PROGRAM = "/opt/trimtab/current/bin/trimtab"
LOG = "/var/log/trimtab.log"
STATUS = "/run/trimtab/supervisor.json"
AT_ONCE = 3
START_S = 300.0

ROW = f"""
[[tunable]]
name = "{KEY}"
low = 30
high = 960
step = 1.0
cooldown_s = 0.1
per_hour = 60
unit = "s"
scope = "netns"
decider = "no_ports"
summary = "what a test can have changed"
"""
# Doubles it when datagrams come to ports that nobody listens on.
DECIDER = f"""
from bus.schema import VERSION, Counters, Value, Wish
from msgspec import Struct

NAME = "no_ports"
TOPICS = (Value, Counters)


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    many: int = 8
    most: int = 480


class State(Struct):
    policy: Policy
    value: Value | None = None
    seen: int = -1


def start(policy):
    return State(policy)


def step(state, event):
    if type(event) is Value:
        state.value = event if event.tunable == "{KEY}" else state.value
        return state, ()
    count = event.values.get("Udp.NoPorts")
    if count is None:
        return state, ()
    fresh = count - state.seen if state.seen >= 0 else 0
    state.seen = count
    value = state.value
    if not value or value.held or fresh < state.policy.many or value.value >= state.policy.most:
        return state, ()
    want = min(value.value * 2, state.policy.most, value.high)
    why = f"{{fresh}} datagrams in a second came to ports that nobody listens on"
    row = ("{KEY}", value.netns, value.netns_ino, value.value, want, why, {{"event": f"Counters@{{event.t_ns}}"}})
    return state, (Wish(VERSION, event.t_ns, 1_000_000_000, *row),)
"""
PACKAGE = "trimtab_no_ports"
FILES = {
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/decider.py": DECIDER,
    f"{PACKAGE}/tunables.toml": ROW,
    f"{PACKAGE}-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: trimtab-no-ports\nVersion: 0.1.0\n",
    f"{PACKAGE}-0.1.0.dist-info/entry_points.txt": f"[trimtab.tuners]\nno_ports = {PACKAGE}.decider\n",
}
STRAYS = """
import socket
each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(40):
    each.sendto(b"?", ("127.0.0.1", 9))
"""
# A decider dies once what runs with a policy is ready: what its supervisor says is newer than that configuration.
SICKNESS = """
cd /run/trimtab
until grep -q '%s' config.json && [ supervisor.json -nt config.json ] && grep -q '"ready":true' supervisor.json; do
    sleep 0.2
done 2>/dev/null
for place in /proc/[0-9]*; do
    read -r name 2>/dev/null < $place/comm && [ "$name" = decider-no_port ] && kill -9 ${place#/proc/}
done
"""
HISTORY = "/usr/local/bin/trimtab history --json"
QUICK: dict[str, Any] = {"trimtab_soak": 3, "trimtab_max_pressure": 2}
"""Of a rollout in a test. The machine's stalls are everybody's here, so no gate goes by them."""


def prepare(world: World, policy: str, number: int) -> None:
    """So many hosts, all in enforce with this policy. The first one is installed; the others begin with its files. Of
    the deciders only the guard and the tuner run: the others would take a third of what a host costs."""
    world.variables = {"trimtab_bundle": str(bundle()), "trimtab_patience": 180}
    (first,) = world.hosts.values()
    off = {"deciders": dict.fromkeys(BUILT_IN_DECIDERS.keys() - {GUARD}, False)}
    world.play("site.yml", trimtab_mode="enforce", trimtab_config=off)
    tuner(first)
    first.path(POLICY).write_text(policy)
    # What is confirmed or on trial in it is not another's.
    first.run("/usr/local/bin/trimtab off")
    world.add(number - len(world.hosts), like=first)
    start(list(world.hosts.values()))
    del world.variables["trimtab_bundle"]


def start(hosts: list[Host]) -> None:
    """As the plays start it where no systemd runs; so many at once as the processors get ready in time."""
    waiting, starting = list(hosts), list[Host]()
    deadline_s = time.monotonic() + START_S
    while waiting or starting:
        if waiting and len(starting) < AT_ONCE:
            starting.append(waiting.pop(0))
            starting[-1].run(f"cd / && setsid -f {PROGRAM} run >>{LOG} 2>&1 </dev/null")
        starting = [host for host in starting if not _ready(host)]
        if time.monotonic() > deadline_s:
            raise FleetError("\n".join(f"{host.name}: {host.path(LOG).read_text()}" for host in starting))
        time.sleep(0.05)


def _ready(host: Host) -> bool:
    path = host.path(STATUS)
    return path.exists() and bool(json.loads(path.read_text())["ready"])


def tuner(host: Host) -> None:
    """Install the tuner beside trimtab."""
    (packages,) = host.path("/opt/trimtab/releases").glob("*/lib/python3*/site-packages")
    for name, text in FILES.items():
        (packages / name).parent.mkdir(exist_ok=True)
        (packages / name).write_text(text)


def file(world: World, policy: str) -> str:
    """A file with this policy."""
    path = world.folder / f"policy-{abs(hash(policy)):x}.toml"
    path.write_text(policy)
    return str(path)


def value(host: Host) -> int:
    """Of the tuner's tunable."""
    return int(host.run(f"cat {VALUE}"))


def strays(host: Host) -> None:
    """Give the tuner a reason for one step, and wait until it is made."""
    before, deadline_s = value(host), time.monotonic() + 30
    while value(host) == before:
        if time.monotonic() > deadline_s:
            raise FleetError(f"{host.name}: nothing was changed\n{host.run('cat /var/log/trimtab.log')}")
        host.run(f"python3 -c '{STRAYS}'")
        time.sleep(1.1)


def confirm(host: Host) -> None:
    """Let all that is on trial stay."""
    rows = [json.loads(line) for line in host.run(HISTORY).splitlines()]
    for row in rows:
        if row["state"] == "trial":
            host.run(f"/usr/local/bin/trimtab confirm {row['id']}", check=False)


def sicken(host: Host, sign: str) -> None:
    """Have a decider die, once this is in the configuration in use and all is ready."""
    host.path("/tmp/sickness.sh").write_text(SICKNESS % sign)
    host.run("setsid sh /tmp/sickness.sh >/dev/null 2>&1 </dev/null & echo $! > /tmp/sickness.pid")


def heal(host: Host) -> None:
    """Where it did not come to that."""
    host.run("kill -9 $(cat /tmp/sickness.pid) 2>/dev/null || :")


@contextmanager
def under(host: Host, sign: str, act: Callable[[Host], None]) -> Iterator[None]:
    """As soon as a host has this in the configuration in use: do that to it."""
    done = threading.Event()

    def wait() -> None:
        path = host.path("/run/trimtab/config.json")
        while not done.wait(0.1):
            if path.exists() and sign in path.read_text():
                act(host)
                return

    helper = threading.Thread(target=wait)
    helper.start()
    try:
        yield
    finally:
        done.set()
        helper.join()


def state(host: Host) -> dict[str, Any]:
    """What a rollout may have changed: policy, release, values, and what is held. Read from here: a process of its own
    costs a host more than all of this."""
    policy, status = host.path(POLICY), json.loads(host.path(STATUS).read_text())
    with tempfile.TemporaryDirectory() as name:
        # SQLite follows links by their text, and that of a process's root is "/".
        for file in host.path("/var/lib/trimtab").glob("journal.db*"):
            shutil.copy(file, name)
        holds, standing = history.holds(Path(name)), history.standing(Path(name))
    return {
        "policy": policy.read_text() if policy.exists() else None,
        "running": json.loads(host.path("/run/trimtab/config.json").read_text())["policy"],
        "release": os.readlink(host.path("/opt/trimtab/current")),
        "ready": status["ready"],
        "mode": status["mode"],
        "held": [(hold.spot.tunable, hold.why) for hold in holds],
        "standing": [(change.id, change.state, change.new) for change in standing],
        "values": host.sysctls(),
    }


def differing(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Host -> what of its state differs, then and now; of values only those that do."""
    found: dict[str, dict[str, Any]] = {}
    for name in before.keys() | now.keys():
        was, is_now = before.get(name, {}), now.get(name, {})
        for key in was.keys() | is_now.keys():
            pair = [was.get(key), is_now.get(key)]
            if key == "values" and None not in pair:
                one, other = (dict(values.items() - others.items()) for values, others in (pair, pair[::-1]))
                pair = [one, other]
            if pair[0] != pair[1]:
                found.setdefault(name, {})[key] = pair
    return found


def memo(host: Host) -> str:
    """Where a host stands in a rollout; empty where there never was one."""
    path = host.path(FORMER)
    return json.loads(path.read_text())["state"] if path.exists() else ""


def rolled(world: World, policy: str, check: bool = True, **variables: Any) -> tuple[int, dict[str, Any], str]:
    """rollout.yml: its exit code, its document, what it said."""
    document = world.folder / "rollout.json"
    document.unlink(missing_ok=True)
    more = {"trimtab_json": str(document), "trimtab_policy_file": file(world, policy)}
    played = world.play("rollout.yml", check=check, **{**QUICK, **more, **variables})
    found = json.loads(document.read_text()) if document.exists() else {}
    return played.code, found, played.said


def killed(
    world: World, task: str, nth: int, policy: str, how: signal.Signals = signal.SIGKILL, play: str = "rollout.yml"
) -> str:
    """A play, ended when it has begun a task for the nth time; what it had said."""
    extra = {**world.variables, **QUICK, "trimtab_policy_file": file(world, policy), "trimtab_preview": False}
    argv = world.argv("ansible-playbook", str(TREE / "playbooks" / play), "-e", json.dumps(extra))
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=world.environment(), cwd=world.folder,
        start_new_session=True,
    )  # fmt: skip
    said = ""
    assert process.stdout
    with process.stdout as lines:
        for line in lines:
            said += line
            nth -= line.startswith(f"TASK [{task}]")
            if nth == 0:
                # The task has been sent to hosts by now.
                time.sleep(0.7)
                os.killpg(process.pid, how)
                break
        else:
            raise FleetError(f"never: {task}\n{said}")
        said += lines.read() if how != signal.SIGKILL else ""
    process.wait()
    return said


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    """Host -> what became of it."""
    return {name: row["state"] for name, row in document["hosts"].items()}
