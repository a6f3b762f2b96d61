"""What the actuator says: lines for the operator, events for the other roles. Sentences are made here and only here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

from actuators.records import Intent, Site, Spot, Twin
from actuators.standing import Standing
from bus.schema import AnyEvent
from bus.tunables import Tunable, row_of

Verdict = Literal["written", "advised", "refused", "failed", "reverted", "confirmed", "ceded"]
TEXT_MAX = 400
"""bus.schema.Text."""


class Voice(Struct, frozen=True):
    """Where lines and events go."""

    say: Callable[[str], None]
    emit: Callable[[AnyEvent], None]
    rows: Mapping[str, Tunable]

    def changed(self, intent: Intent, change: int) -> None:
        """A change was made."""
        verb = "set" if self._words(intent.spot) else "raised" if intent.new > intent.old else "lowered"
        self.say(f"{verb} {self._what(intent)}: {intent.why}  [change {change}, undo: trimtab rollback {change}]")

    def advised(self, intent: Intent, change: int) -> None:
        """A change would have been made."""
        way = "raise" if intent.new > intent.old else "lower"
        verb = "would set" if self._words(intent.spot) else f"would {way}"
        self.say(f"{verb} {self._what(intent)}: {intent.why}  [advice {change}]")

    def undone(self, kept: Standing, target: int, why: str) -> None:
        """A value was put back."""
        self.say(f"put back {self._move(kept.spot, kept.site, kept.stands, target, kept.twin)}: {why}")

    def confirmed(self, kept: Standing, change: int, why: str) -> None:
        """A change on trial stays."""
        self.say(
            f"confirmed {kept.spot.tunable} = {kept.stands}{where(kept.spot, kept.site)}: {why}  "
            f"[change {change}, undo: trimtab rollback {change}]"
        )

    def leased(self, kept: Standing, change: int, why: str) -> None:
        """A change is found good, and stays on its lease."""
        value = self.shown(kept.spot, kept.stands)
        self.say(
            f"{kept.spot.tunable} = {value}{where(kept.spot, kept.site)} stays while its decider asks for it: {why}  "
            f"[change {change}, undo: trimtab rollback {change}]"
        )

    def stuck(self, kept: Standing, target: int, error: str) -> None:
        """A value could not be put back."""
        move = self._move(kept.spot, kept.site, kept.stands, target, kept.twin)
        self.say(f"CANNOT put back {move}: {error}; trimtab's value still stands there")

    def ceded(self, kept: Standing, why: str) -> None:
        """A key is the administrator's now."""
        self.say(
            f"hands off {kept.spot.tunable}{where(kept.spot, kept.site)}: {why}; before trimtab there stood "
            f"{self._beside(kept.spot, kept.original, kept.twin)}  [until: trimtab release {kept.spot.tunable}]"
        )

    def parked(self, spot: Spot, site: Site, why: str) -> None:
        """A key rests."""
        self.say(f"hands off {spot.tunable}{where(spot, site)}: {why}  [until: trimtab release {spot.tunable}]")

    def _what(self, intent: Intent) -> str:
        return self._move(intent.spot, intent.site, intent.old, intent.new, intent.twin)

    def _move(self, spot: Spot, site: Site, old: int, new: int, twin: Twin | None) -> str:
        row = row_of(self.rows, spot.tunable)
        before, after = self._beside(spot, old, twin), self._beside(spot, new, twin)
        unit = row.after if row and after != "none" else ""
        return f"{spot.tunable} {before} -> {after}{unit}{where(spot, site)}"

    def shown(self, spot: Spot, value: int) -> str:
        """A value of this key as people read it."""
        row = row_of(self.rows, spot.tunable)
        return row.shown(value) if row else f"{value}"

    def _beside(self, spot: Spot, value: int, twin: Twin | None) -> str:
        """A value; a 0 with what its twin is then."""
        return f"{value} ({twin.name} {twin.value})" if twin and not value else self.shown(spot, value)

    def _words(self, spot: Spot) -> bool:
        row = row_of(self.rows, spot.tunable)
        return row is not None and bool(row.words)


def where(spot: Spot, site: Site) -> str:
    """ " in netns web (4026532201)", or nothing for the host as a whole."""
    if not spot.netns:
        return ""
    return f" in netns {site.name} ({site.inode})" if site.name else f" in netns {site.inode} (cookie {spot.netns})"


def clipped(text: str) -> str:
    """At most as long as a message may be."""
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 3] + "..."
