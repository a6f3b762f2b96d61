"""One wish from its lane to the kernel, in the order that makes a change safe.

    owner, gate -> journal the original and the intent -> compare, write, read back -> journal the outcome -> tell

Each step is a method of its own. A process that dies between any two leaves a key at its original or at a value that
the journal names (actuators.undo takes it up). Whatever is wrong with a wish becomes a Refused, counted by its kind.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection

from actuators import gate
from actuators.gate import Grant, Refused, View
from actuators.parts import Parts
from actuators.records import Intent, Spot, Swap, Twin, others
from actuators.state_dir import JournalError
from actuators.voice import Verdict, clipped
from bus.config import Mode
from bus.netns import NamespaceGoneError
from bus.schema import Outcome, Wish
from bus.tunables import Tunable, base, row_of

REFUSALS_TOLD = 100
"""So many refusals a second and decider are published; the rest of a flood is only counted."""


class Writer:
    """Grants wishes and makes the changes."""

    def __init__(self, parts: Parts, fence: Collection[int]) -> None:
        self.mode: Mode = "observe"
        self.refused: Counter[str] = Counter()
        """Refusals by their kinds."""
        self._rows = parts.rows
        self._bounds = parts.bounds
        self._fence = fence
        self._keeper = parts.keeper
        self._kernel = parts.kernel
        self._undo = parts.undo
        self._leases = parts.leases
        self._routes = parts.routes
        self._voice = parts.voice
        self._said: set[tuple[str, str]] = set()
        self._second = 0
        self._told: Counter[str] = Counter()

    def handle(self, wish: Wish, asker: str) -> None:
        """Grant or refuse one wish, do what is granted, and tell what became of it."""
        row = row_of(self._rows, wish.tunable)
        refused = gate.screen(row, wish, asker, self._fence, time.monotonic_ns())
        value = wish.believed
        if row and not refused:
            if row.instances:
                self._routes.look(wish.netns)
            try:
                value = self._kernel.read(Spot(wish.tunable, wish.netns), wish.netns_ino)
            except NamespaceGoneError as error:
                refused = Refused("gone", f"{error.strerror}")
            except OSError as error:
                refused = Refused("unreadable", f"{wish.tunable} cannot be read: {error.strerror}")
            else:
                refused = self._with_value(row, wish, asker, value)
        if refused:
            self._refuse(wish, asker, refused, value)

    # --- the steps ------------------------------------------------------------------------------------------------

    def _with_value(self, row: Tunable, wish: Wish, asker: str, value: int) -> Refused | None:
        spot = Spot(wish.tunable, wish.netns)
        kept = self._keeper.standing.get(spot)
        if kept and kept.stands != value:
            self._undo.cede(kept, value)
        answer = gate.admit(
            row, self._bounds[base(row.name)], wish, asker, self._view(row, wish, value), time.monotonic_ns()
        )
        if isinstance(answer, Refused):
            if answer.kind == "turns" and self.mode == "enforce":
                self._park(spot, answer)
            return answer
        if objection := self._kernel.objection(spot, wish.netns_ino, answer.new):
            return Refused("route", objection)
        intent = self._intent(wish, asker, answer)
        if self.mode == "observe":
            return Refused("observe", "mode observe: nothing is written")
        try:
            if self.mode == "advise":
                self._advise(wish, intent)
            else:
                self._change(wish, intent)
        except JournalError as error:
            return Refused("journal", f"no journal, no change: {error}")
        return None

    def _park(self, spot: Spot, refused: Refused) -> None:
        """Two deciders that want opposite things, or one that cannot make up its mind: the key rests."""
        why = f"parked: {refused.reason}"
        with contextlib.suppress(JournalError):
            self._keeper.hold(spot, why)
            self._voice.parked(spot, self._kernel.site(spot.netns), why)

    def _view(self, row: Tunable, wish: Wish, value: int) -> View:
        spot = Spot(wish.tunable, wish.netns)
        kept = self._keeper.standing.get(spot)
        return View(
            value,
            kept.original if kept else value,
            self._keeper.held(spot),
            self._kernel.related(row.related, wish.netns, wish.netns_ino),
            self._keeper.pace.changed_ns(spot),
            self._fence,
            self._keeper.pace.turns(spot),
            self._keeper.pace.rising(spot),
            self._keeper.pace.by[row.decider],
            self._keeper.pace.by.total(),
            Spot(row.twin, wish.netns) in self._keeper.standing,
            sum(others(spot, one) for one in self._keeper.standing) if row.instances else 0,
        )

    def _intent(self, wish: Wish, asker: str, grant: Grant) -> Intent:
        spot = Spot(grant.tunable, grant.netns)
        kept = self._keeper.standing.get(spot)
        original = kept.original if kept else grant.old
        twin = kept.twin if kept else self._twin(grant)
        site = self._kernel.site(grant.netns)
        return Intent(spot, site, asker, grant.old, grant.new, wish.why, dict(wish.evidence), original, twin)

    def _twin(self, grant: Grant) -> Twin | None:
        counts = grant.beside and not grant.old
        return Twin(self._rows[grant.tunable].twin, grant.beside) if counts else None

    def _advise(self, wish: Wish, intent: Intent) -> None:
        number, fresh = self._keeper.advise(intent)
        if fresh:
            self._voice.advised(intent, number)
        self._tell(wish, intent.decider, "advised", intent.why, intent.old, number)

    def _change(self, wish: Wish, intent: Intent) -> None:
        before = self._keeper.standing.get(intent.spot)
        stood = before.stands if before else None
        number = self._keeper.intend(intent)
        self._leases.begin(intent.decider)
        late_ns = time.monotonic_ns() - wish.t_ns - wish.valid_ns
        if late_ns > 0:
            # A slow disk: by now the wish is about a host that was.
            why = f"the journal was so slow that the wish expired {late_ns // 1_000_000} ms ago"
            self._keeper.settle(intent.spot, "failed", why, stood, (number,))
            self._tell(wish, intent.decider, "failed", why, intent.old, number)
            return
        try:
            swap = self._kernel.swap(intent.spot, intent.site.inode, intent.old, intent.new, intent.twin)
        except NamespaceGoneError:
            self._undo.lost(self._keeper.standing[intent.spot])
            self._tell(wish, intent.decider, "failed", "the namespace has gone", intent.old, number)
            return
        except OSError as error:
            # It could be read a moment ago, and whether it was written is not known: taken for written, since what
            # is taken for ours is compared before it is put back.
            self._keeper.standing[intent.spot].stands = intent.new
            self._tell(wish, intent.decider, "failed", error.strerror or str(error), intent.old, number)
            return
        self._settle(wish, intent, number, swap, stood)

    def _settle(self, wish: Wish, intent: Intent, number: int, swap: Swap, stood: int | None) -> None:
        if swap.found == intent.old and swap.stands == intent.new and not swap.error and not swap.theirs:
            self._keeper.settle(intent.spot, "trial", "", intent.new, (number,))
            self._voice.changed(intent, number)
            self._tell(wish, intent.decider, "written", intent.why, intent.new, number)
        elif swap.stands == intent.old and not swap.theirs:
            why = swap.error or f"the kernel took the write and {intent.old} still stands there"
            self._keeper.settle(intent.spot, "failed", why, stood, (number,))
            self._tell(wish, intent.decider, "failed", why, swap.stands, number)
        else:
            # Somebody wrote between our look and our write, or between our write and our second look. What stands
            # there now is not ours to overwrite.
            expected = intent.old if swap.found != intent.old else intent.new
            self._undo.cede(self._keeper.standing[intent.spot], swap.stands, expected)

    def _refuse(self, wish: Wish, asker: str, refused: Refused, value: int) -> None:
        self.refused[refused.kind] += 1
        if (asker, refused.kind) not in self._said:
            self._said.add((asker, refused.kind))
            self._voice.say(
                f"refused {asker}'s wish for {wish.tunable} ({refused.kind}): {refused.reason}  "
                "[the first of its kind; the others are counted in `trimtab status`]"
            )
        second = time.monotonic_ns() // 1_000_000_000
        if second != self._second:
            self._second = second
            self._told.clear()
        self._told[asker] += 1
        if self._told[asker] > REFUSALS_TOLD:
            return
        self._tell(wish, asker, "refused", refused.reason, value, 0)

    def _tell(self, wish: Wish, decider: str, verdict: Verdict, why: str, value: int, change: int) -> None:
        self._voice.emit(
            Outcome(
                time.monotonic_ns(),
                decider,
                wish.tunable,
                wish.netns,
                wish.believed,
                wish.want,
                verdict,
                clipped(why),
                value,
                change,
            )
        )
