"""The foreground supervisor: one process per role, kept alive, watched, stopped in order. One loop, no thread.

It speaks sd_notify(3) with the roles, so that they need not know whether it is this or systemd that runs them; a
message counts only when the kernel says that a role's own process sent it. To a manager of its own it says READY, too.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bus.notify import notify
from bus.roles import Role
from trimtab import announce, rundir
from trimtab.child import WATCHDOG_S
from trimtab.ear import Ear, Signals
from trimtab.process import Process, ending

STAGES = {"decider": 0, "loader": 0, "collector": 1, "actuator": 2, "deadman": 3}
"""The order in which kinds of roles stop."""
STOP_S = (2.0, 4.0, 10.0, 11.0)
"""By when, after a stop was asked for, deciders, collectors, the actuator and the dead-man have ended or are killed."""
UNKILLABLE_S = 0.7
"""So long after that the others are no longer kept waiting by one that does not die: a hung disk's (see bus.disk)."""
WRITE_S = 1.0
NAP_S = 0.5
"""While all is well, what the roles say waits so long: to be woken by each costs more than all they say."""
AFTER_S = 0.1
"""Naps end so long after a whole second, or half of one: by then the roles have said what they say each second."""
AWAKE_S = 60.0
"""So long no naps after one in which as much was said as can wait."""
LATE_S = 2.0
SLOW_START_S = 10.0
ONESHOT_TRIES = 4

Say = Callable[[str], None]
Arguments = Callable[[Role], Sequence[str]]


class Supervisor:
    """Runs `roles` below run_dir (which rundir has laid out) until SIGTERM, SIGINT or SIGHUP."""

    def __init__(self, roles: Sequence[Role], run_dir: Path, arguments: Arguments, mode: str, say: Say) -> None:
        address = run_dir / rundir.NOTIFY
        self._processes = [Process(role, arguments(role), address) for role in roles]
        self._mode = mode
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._ear = Ear(address)
        self._signals = Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        self._stop_s = 0.0
        self._stage = 0
        self._unclean = False
        self._board = announce.Board(run_dir, say)
        self._begun_s = time.monotonic()
        self._told = ""
        self._napping = False
        self._hear_s = 0.0
        """When to listen again, while napping; else when the next nap may begin."""

    def run(self) -> int:
        """Until all have ended after a stop. 0: in order; 1: something had to be killed, or failed on its way out."""
        self._selector.register(self._signals.socket, selectors.EVENT_READ, self._signalled)
        self._selector.register(self._ear.socket, selectors.EVENT_READ, self._notified)
        try:
            # Those that are ready last begin first: their oneshot takes longer than all the rest.
            for process in sorted(self._processes, key=lambda process: not self._oneshots(process)):
                if process.daemon:
                    self._start(process)
            while not self._over():
                self._turn()
            self._say(f"stopped in {time.monotonic() - self._stop_s:.1f} s")
        finally:
            self._close()
        return 1 if self._unclean else 0

    # --- the loop

    def _turn(self) -> None:
        wake_s = self._next_s()
        for key, _ in self._selector.select(max(0.0, wake_s - time.monotonic())):
            # What came before in this batch may have ended a process, and its descriptors with it.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        now_s = time.monotonic()
        self._nap(now_s)
        if now_s - wake_s > LATE_S:
            # Stopped (Ctrl-Z) or starved for a while: what the roles said meanwhile did not fit the socket's queue.
            for process in self._processes:
                process.seen_s = now_s
        if self._stop_s:
            self._stopping(now_s)
        else:
            self._keep_alive(now_s)
        # With the nap that ends next to it.
        if now_s - self._board.written_s >= WRITE_S - (NAP_S / 2 if self._napping else 0.0):
            self._write()

    def _next_s(self) -> float:
        """When something is due although no descriptor is readable."""
        due = [self._hear_s if self._napping else self._board.written_s + WRITE_S]
        due += [process.start_s for process in self._processes if process.state == "waiting"]
        if self._stop_s:
            end_s = self._stop_s + STOP_S[self._stage]
            due.append(end_s if time.monotonic() < end_s else end_s + UNKILLABLE_S)
        return min(due)

    def _keep_alive(self, now_s: float) -> None:
        for process in self._processes:
            if process.state == "waiting" and now_s >= process.start_s:
                self._start(process)
            elif process.child and process.daemon and now_s - process.seen_s > WATCHDOG_S:
                self._say(f"{process.name}: silent for {WATCHDOG_S} s; killing it")
                process.seen_s = now_s
                process.send(signal.SIGKILL)
        if not self._told and now_s - self._begun_s > SLOW_START_S:
            self._told = "late"
            waiting = ", ".join(process.name for process in self._processes if process.state != "running")
            self._say(f"not ready after {SLOW_START_S:g} s; waiting for {waiting}")

    # --- starting and ending

    def _start(self, process: Process) -> None:
        now_s = time.monotonic()
        try:
            started = process.start(now_s)
        except OSError as error:
            process.again(now_s)
            self._say(f"{process.name}: cannot be started: {error.strerror}; again in {process.delay_s:g} s")
            return
        self._selector.register(started.pidfd, selectors.EVENT_READ, lambda: self._ended(process))
        self._selector.register(started.output, selectors.EVENT_READ, lambda: self._pass_on(process.lines()))
        self._start_oneshots(process)

    def _ended(self, process: Process) -> None:
        assert process.child
        now_s = time.monotonic()
        self._selector.unregister(process.child.pidfd)
        self._selector.unregister(process.child.output)
        asked_to = process.state == "stopping"
        code, last = process.reap(now_s)
        self._pass_on(last)
        if asked_to or self._stop_s:
            process.become("stopped")
            # SIGTERM: told to stop before it could listen, with nothing begun.
            self._unclean = self._unclean or (process.daemon and code not in (0, -signal.SIGTERM))
        elif process.daemon:
            process.again(now_s)
            self._drop_oneshots(process)
            self._write()
            self._say(f"{process.name}: {ending(code)}; again in {process.delay_s:g} s")
        else:
            self._oneshot_ended(process, code, now_s)
        self._write()

    def _start_oneshots(self, daemon: Process) -> None:
        """A daemon has begun: what belongs to it begins, too, and waits until it listens. Or it has spoken for the
        first time: what its last life had left behind has been buried by now."""
        for process in self._oneshots(daemon):
            if process.state == "stopped":
                process.failures = 0
                self._start(process)

    def _drop_oneshots(self, daemon: Process) -> None:
        """A daemon has died: what was started for it is of no use to the next one."""
        for process in self._oneshots(daemon):
            process.become("stopping" if process.child else "stopped")
            process.send(signal.SIGKILL)

    def _oneshots(self, daemon: Process) -> list[Process]:
        return [process for process in self._processes if process.role.oneshot_for == daemon.name]

    def _oneshot_ended(self, process: Process, code: int, now_s: float) -> None:
        if code == 0:
            process.become("done")
        elif process.failures < ONESHOT_TRIES:
            process.again(now_s)
            self._say(f"{process.name}: {ending(code)}; again in {process.delay_s:g} s")
        else:
            process.become("failed")
            self._say(f"{process.name}: {ending(code)}; not tried again until {process.role.oneshot_for} restarts")

    # --- stopping

    def _stopping(self, now_s: float) -> None:
        while self._stage < len(STOP_S):
            group = [each for each in self._processes if each.child and STAGES[each.role.kind] == self._stage]
            late_s = now_s - self._stop_s - STOP_S[self._stage]
            if not group or late_s > UNKILLABLE_S:
                self._leave(group)
                self._stage += 1
                continue
            for process in group:
                if process.state != "stopping":
                    process.become("stopping")
                    process.send(signal.SIGTERM)
                elif late_s >= 0 and process.kill():
                    self._say(f"{process.name}: did not stop in time; killing it")
            return

    def _leave(self, group: Sequence[Process]) -> None:
        for process in group:
            self._unclean = True
            self._say(f"{process.name}: does not die, as a process that waits for a disk; going on without it")

    def _over(self) -> bool:
        return self._stage >= len(STOP_S)

    # --- listening

    def _signalled(self) -> None:
        number = self._signals.next()
        if self._stop_s:
            self._say(f"{number.name}: already stopping")
            return
        self._say(f"{number.name}: stopping")
        notify("STOPPING=1")
        self._stop_s = time.monotonic()
        for process in self._processes:
            if not process.child:
                process.become("stopped")
        self._stopping(self._stop_s)
        self._write()

    def _nap(self, now_s: float) -> None:
        """Listen now and then while all runs, and to each word as it comes otherwise."""
        if self._napping and (now_s >= self._hear_s or not self._ready):
            heard = 0
            while heard < self._ear.room and self._notified():
                heard += 1
            self._hear_s = _wake_s(now_s)
            if heard >= self._ear.room or not self._ready:
                self._napping = False
                self._hear_s = now_s + AWAKE_S if heard >= self._ear.room else 0.0
                self._selector.register(self._ear.socket, selectors.EVENT_READ, self._notified)
        elif not self._napping and self._ready and now_s >= self._hear_s:
            self._napping = True
            self._hear_s = _wake_s(now_s)
            self._selector.unregister(self._ear.socket)

    def _notified(self) -> bool:
        """Whether there was something to hear."""
        heard = self._ear.hear()
        if not heard:
            return False
        pid, message = heard
        for process in self._processes:
            if process.child and process.child.pid == pid:
                first = not process.spoken
                if process.heard(message, time.monotonic()):
                    self._running(process)
                if first and not self._stop_s:
                    self._start_oneshots(process)
        return True

    def _running(self, process: Process) -> None:
        assert process.child
        # Written before it is said: whoever reads the line finds it so.
        self._write()
        if self._told == "ready":
            self._say(f"{process.name}: running again, pid {process.child.pid}")
        elif self._ready:
            self._told = "ready"
            self._say(announce.ready_block(self._processes, self._mode))
            notify("READY=1")

    def _pass_on(self, lines: Sequence[str]) -> None:
        for line in lines:
            # What is missing from the start on stands in the block that says "ready".
            if self._told == "ready" or ": without " not in line:
                self._say(line)

    # --- telling

    @property
    def _ready(self) -> bool:
        return not self._stop_s and all(process.state == "running" for process in self._processes if process.daemon)

    def _write(self) -> None:
        self._board.write(announce.document(self._processes, self._mode, self._ready))

    def _close(self) -> None:
        self._write()
        self._selector.close()
        self._ear.close()
        self._signals.close()


def _wake_s(now_s: float) -> float:
    """The end of a nap that begins now."""
    return (now_s // NAP_S + 1) * NAP_S + AFTER_S
