"""What the pytest fixtures `tape`, `replay` and `golden` give (plugin): recordings, what a policy would
have had written on them, and whether a decider still wishes what it did."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from bus import config, plugins, roles, tunables
from bus.config import Config
from bus.schema import AnyEvent, Wish
from bus.tape import Head, TapeError
from bus.tape_reader import Unended
from deciders.engine import Asked, decide
from trimtab import start
from trimtab.tape.playback import Playback, decider
from trimtab.tape.reels import Piece, Reels, find_reels
from trimtab.testing import made_tape
from trimtab.testing.outcome import Heard, Result

SECOND_NS = 1_000_000_000


class Tape:
    """A recording: a file, or a directory of them."""

    def __init__(self, path: Path) -> None:
        """Raises TapeError where it is none, or a part of it cannot be played."""
        self.path = path
        self.reels: Reels = find_reels([path])
        wrong = [*self.reels.damage, *self.reels.skipped]
        if wrong:
            raise TapeError("; ".join(wrong))

    @property
    def deciders(self) -> list[str]:
        """Whose recordings are in it."""
        return sorted({piece.decider for piece in self.pieces()})

    def pieces(self, name: str = "") -> list[Piece]:
        """Its segments in the order of time; of one decider, or of all."""
        found = [piece for chain in self.reels.chains for piece in chain if name in ("", piece.decider)]
        return sorted(found, key=lambda piece: (piece.t_ns, piece.number))

    def events(self, name: str = "") -> Iterator[AnyEvent]:
        """The events of one decider's recording (by default of the first by name), in its order."""
        for playback in self.play(name or self.deciders[0]):
            yield from playback.events()

    def play(self, name: str) -> Iterator[Playback]:
        """Each segment, which is to be used up before the next. TapeError where it is damaged, but for its end."""
        for piece in self.pieces(name):
            playback = Playback(piece.open())
            yield playback
            wrong = [str(word) for word in playback.damage if not isinstance(word, Unended)]
            if wrong:
                raise TapeError("; ".join(wrong))


class Opener:
    """The fixture `tape`."""

    def __init__(self, beside: Path, place: Callable[[], Path]) -> None:
        """beside: where relative paths begin. place: makes a directory for tapes that are made of events."""
        self._beside = beside
        self._place = place

    def __call__(self, what: str | Path | Iterable[AnyEvent], decider: str = "tcp_buffer") -> Tape:
        """The recording at a path, or one made of events, as `decider` would have recorded it."""
        if isinstance(what, str | Path):
            return Tape(self._beside / what)
        path = self._place() / "made.tape"
        made_tape.write(path, what, decider)
        return Tape(path)


class Replayer:
    """The fixture `replay`."""

    def __init__(self, beside: Path) -> None:
        self._beside = beside

    def __call__(self, tape: Tape, policy: str | Path | Config | None = None, decider: str = "") -> Result:
        """Run a tape under a policy: a configuration, or a file of one; None: the recorded one. decider: only this one,
        which may be another than has recorded; default: all that have, or else all there are. Each begins knowing
        nothing. Raises ConfigError or TapeError."""
        settings = start.effective(self._beside / policy, None, (), ()) if isinstance(policy, str | Path) else policy
        own = [name for name in tape.deciders if name != roles.GUARD]
        names = [decider] if decider else own or [name for name in start.deciders() if name != roles.GUARD]
        return Result([_run(tape, name, settings) for name in names])


class Golden:
    """The fixture `golden`."""

    def __init__(self, update: bool) -> None:
        self._update = update

    def __call__(self, tape: Tape) -> None:
        """What the tape's deciders wish for its events, from their recorded memory and with the recorded configuration,
        is what the text beside it says, one wish per line. With --update-golden: write that text."""
        __tracebackhide__ = True
        path = tape.path.with_suffix(".wishes")
        found = "".join(f"{line}\n" for name in tape.deciders for line in _wishes(tape, name))
        if self._update:
            path.write_text(found)
            return
        if not path.exists():
            raise AssertionError(f"{path} is not there: run pytest with --update-golden, and look at what it says")
        expected = path.read_text()
        if found != expected:
            lines = difflib.unified_diff(expected.splitlines(), found.splitlines(), str(path), "now", lineterm="", n=1)
            raise AssertionError("other wishes (--update-golden takes them):\n" + "\n".join(lines))


def _run(tape: Tape, name: str, settings: Config | None) -> Heard:
    run: Heard | None = None
    session, began = "", 0
    for playback in tape.play(name if name in tape.deciders else tape.deciders[0]):
        head = playback.head
        run = run or _begun(name, head, settings)
        if session not in ("", head.session):
            run.restart()
        session = head.session
        for block in playback.blocks():
            events = list(block)
            actuator = playback.lanes.get("actuator")
            if actuator and events:
                if began not in (0, actuator.epoch_ns):
                    run.stop(events[0].t_ns)
                began = actuator.epoch_ns
            run.feed(events)
    if run is None:
        raise TapeError(f"{tape.path}: nothing in it that can be played")
    return run


def _begun(name: str, head: Head, settings: Config | None) -> Heard:
    # A fence names namespaces of that host and boot; a configuration that has none leaves it.
    policy = msgspec.structs.replace(settings, netns=settings.netns or head.config.netns) if settings else head.config
    rows = tunables.table(row for tuner in plugins.tuners() for row in tuner.rows)
    known = {tunable: narrow for tunable, narrow in policy.tunables.items() if tunable in rows}
    narrowed = config.narrowed(rows, msgspec.structs.replace(policy, tunables=known))
    return Heard(name, policy, narrowed, head.host.mem_bytes)


def _wishes(tape: Tape, name: str) -> Iterator[str]:
    began = tape.pieces(name)[0].t_ns
    for playback in tape.play(name):
        for _, asked in decide(playback.events(), [decider(playback.head)]):
            for wish in asked:
                yield _line(name, wish, began)


def _line(name: str, wish: Asked, began_ns: int) -> str:
    """One line, readable, with all that is in the wish."""
    after_s = (wish.t_ns - began_ns) / SECOND_NS
    evidence = " ".join(f"{key}={value}" for key, value in wish.evidence.items())
    return f"{after_s:+.9f} s {name}: {_what(wish)}: {wish.why} [{evidence}] for {wish.valid_ns / SECOND_NS:g} s"


def _what(wish: Asked) -> str:
    if isinstance(wish, Wish):
        return f"{wish.tunable} of netns {wish.netns} ({wish.netns_ino}) {wish.believed} -> {wish.want}"
    return f"{'confirm' if wish.confirm else 'revert'} change {wish.change}"
