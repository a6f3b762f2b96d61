"""The keys as they stand, told every few seconds and after every change; and whether they are still ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from actuators.others import ceded
from actuators.parts import Parts
from actuators.records import Spot, stamp
from actuators.undo import Ending
from bus.netns import NamespaceGoneError
from bus.schema import AnyEvent, Outcome, Value
from bus.tunables import AT, base


class Watch:
    """Reads keys and tells their values."""

    def __init__(self, parts: Parts) -> None:
        self._bounds = parts.bounds
        self._keeper = parts.keeper
        self._kernel = parts.kernel
        self._undo = parts.undo
        self._rows = parts.rows
        self._say = parts.voice.say
        self._emit = parts.voice.emit
        own = parts.kernel.own
        self._always = [
            Spot(row.name, 0 if row.scope == "host" else own) for row in parts.rows.values() if not row.instances
        ]
        self._touched: dict[Spot, int] = {}

    def cede(self, root: Path, to: Collection[str]) -> None:
        """Look who else tunes this host, and keep hands off what is theirs. What is on trial there goes back; what
        is confirmed stays until it is undone or written over."""
        names = ceded(root, self._rows, to)
        before = self._keeper.ceded
        # Other tuners and sysctl.d set the host's values and those of its initial namespace.
        self._keeper.ceded = {spot: names[spot.tunable] for spot in self._always if spot.tunable in names}
        for spot, why in self._keeper.ceded.items():
            if before.get(spot) != why:
                self._say(f"hands off {spot.tunable}: {why}  [see `cede` in trimtab(1)]")
                self._undo.trials(Ending("reverted", f"hands off: {why}", turn=False), spots=[spot])

    def level(self) -> None:
        """Tell every key of the host, of its initial namespace, and of every namespace that was touched."""
        for spot, kept in self._keeper.standing.items():
            self._touched[spot] = kept.site.inode
        for spot in dict.fromkeys([*self._always, *self._touched]):
            self._tell(spot, self._touched.get(spot, 0))

    def after(self, events: Iterable[AnyEvent]) -> None:
        """Tell the keys that these outcomes changed."""
        for event in events:
            if isinstance(event, Outcome) and event.verdict not in ("refused", "advised"):
                spot = Spot(event.tunable, event.netns)
                self._touched.setdefault(spot, 0)
                self._tell(spot, self._touched[spot])

    def _tell(self, spot: Spot, inode: int) -> None:
        kept = self._keeper.standing.get(spot)
        try:
            value = self._kernel.read(spot, inode)
        except NamespaceGoneError:
            self._touched.pop(spot, None)
            if kept:
                self._undo.lost(kept)
            return
        except OSError:
            # Not there on this kernel (no IPv6), or not in this namespace.
            return
        if AT in spot.tunable:
            # Why nothing of ours stands there any more, actuators.route_watch knows. There may be ever new ones.
            if not kept:
                self._touched.pop(spot, None)
        elif kept and value != kept.stands:
            self._undo.cede(kept, value)
            kept = None
        bounds = self._bounds.get(base(spot.tunable))
        if bounds:
            site = self._kernel.site(spot.netns)
            original = kept.original if kept else value
            held = bool(self._keeper.held(spot))
            self._emit(
                Value(
                    stamp().t_ns, spot.tunable, spot.netns, site.inode, value, original, bounds.low, bounds.high, held
                )
            )
