"""What the journal holds: one Change per row of its history, one Key per key that was ever touched or is held.

    intent --> trial --> confirmed    by the guard after its soak, or an operator; ends like a trial, but not by a stop
       |         |-----> reverted     by the guard, a lease run out, a stop, a change of mode, or found after a crash
       |         |-----> rolled_back  by an operator, and the key is held until `release`
       |         |-----> ceded        somebody else wrote the key: the administrator wins
       |         '-----> lost         the namespace has gone, or the host has rebooted
       '-> failed                     the kernel said no; nothing of ours stands
    advised                           mode advise: what would have been done

`STANDING` are the states in which a value of ours may stand in the kernel.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Literal

from msgspec import Struct

from bus.tunables import base

State = Literal["intent", "trial", "confirmed", "failed", "reverted", "rolled_back", "ceded", "lost", "advised"]
STATES: tuple[State, ...] = (
    "intent",
    "trial",
    "confirmed",
    "failed",
    "reverted",
    "rolled_back",
    "ceded",
    "lost",
    "advised",
)
STANDING: tuple[State, ...] = ("intent", "trial", "confirmed")
ON_TRIAL: tuple[State, ...] = ("intent", "trial")

STOPPED_WHY = "trimtab stops"
LEFT_BEHIND_WHY = "left by a run that did not stop in order"
NO_TURN = (STOPPED_WHY, LEFT_BEHIND_WHY)
"""Why a stop or a start of ours put a key back: that is no change of mind, and does not count among its turns."""

MACHINE_ID = Path("/etc/machine-id")
Evidence = dict[str, int | str]


class Spot(Struct, frozen=True, order=True):
    """One key: a tunable in one place. netns: the namespace's cookie, 0 for the host as a whole."""

    tunable: str
    netns: int


def others(spot: Spot, other: Spot) -> bool:
    """Whether these are two keys of one row in one namespace: two destinations."""
    return other != spot and other.netns == spot.netns and base(other.tunable) == base(spot.tunable)


class Site(Struct, frozen=True):
    """How a namespace is found and called, which its cookie does not tell."""

    inode: int = 0
    name: str = ""
    """Its name under /run/netns, "host" for the initial one, empty where it has none or for the host as a whole."""


class Twin(Struct, frozen=True):
    """What stood in a tunable's twin before trimtab's first write, which made it 0. The name is kept as well: a value
    is put back also where the row that tells it has gone."""

    name: str
    value: int


class Swap(Struct, frozen=True):
    """What a compare-and-write found and left. Nothing was written unless `found` is what was to be replaced."""

    found: int
    stands: int
    """Read back after the write."""
    error: str
    """What the kernel said to the write; empty when it took it."""
    theirs: bool = False
    """Somebody else wrote its twin meanwhile, so that what stands is theirs, whatever it is."""


class Stamp(Struct, frozen=True):
    """One moment on three clocks, in nanoseconds."""

    t_ns: int
    """CLOCK_MONOTONIC, the clock of all events."""
    boot_ns: int
    """CLOCK_BOOTTIME: goes on in suspend, so that what ends at a time ends then."""
    tai_ns: int
    tai_known: bool
    """False: nobody has told the kernel the TAI offset, and tai_ns is UTC."""


class Intent(Struct, frozen=True):
    """A change about to be made (or, in mode advise, that would be)."""

    spot: Spot
    site: Site
    decider: str
    old: int
    new: int
    why: str
    evidence: Evidence
    original: int
    """What stood there before trimtab's first write."""
    twin: Twin | None = None
    """Where the original is 0 because its twin counted."""


class Change(Struct, frozen=True):
    """One row of the history."""

    id: int
    t_tai_ns: int
    tai_known: bool
    t_ns: int
    boot_ns: int
    boot_id: str
    tunable: str
    scope: str
    """host or netns."""
    netns: int
    netns_ino: int
    netns_name: str
    decider: str
    old: int
    new: int
    why: str
    evidence: Evidence
    state: State
    detail: str
    """What ended it, in words; empty while it stands."""
    ended_tai_ns: int
    """0 while it stands."""
    advice: str
    """Stable id of a piece of advice: the same for the same key, values and decider; else empty."""
    repeats: int
    """How often the same advice came again."""
    twin: str = ""
    """The tunable's twin, where that counted before trimtab's first write, ..."""
    twin_value: int = 0
    """... and what stood there."""

    @property
    def spot(self) -> Spot:
        return Spot(self.tunable, self.netns)

    @property
    def site(self) -> Site:
        return Site(self.netns_ino, self.netns_name)


class Stood(Struct, frozen=True):
    """One change that stands, as far as undoing it goes."""

    id: int
    """0: known from originals.log only."""
    decider: str
    old: int
    new: int
    state: State
    t_ns: int = 0
    """When it was made, CLOCK_MONOTONIC; 0 where that is not known."""
    twin: Twin | None = None
    """As in its Intent: the same in every change of a key."""


class Key(Struct, frozen=True):
    """One key that trimtab has written and not given back."""

    spot: Spot
    site: Site
    original: int
    last_written: int | None
    """None: nothing of ours is known to stand (an intent may have been carried out, though)."""


class Confirmed(Struct, frozen=True):
    """A key that was confirmed in an earlier boot."""

    tunable: str
    scope: str
    machine: str
    """Where: see `machine`."""
    decider: str
    original: int
    value: int
    ids: tuple[int, ...]
    twin: Twin | None = None


class Hold(Struct, frozen=True):
    """Hands off a key, over restarts, until `release`. netns 0 of a namespace's tunable: in every namespace."""

    spot: Spot
    why: str
    since_tai_ns: int
    ever: bool = False
    """In every boot, not only in this one: what is held is the host's, or of its initial namespace."""
    until_tai_ns: int = 0
    """When it ends by itself; 0: not before `release`."""


def advice(intent: Intent) -> str:
    """The id of a piece of advice: the same for the same, also on the next day, by a name rather than a cookie where
    there is one."""
    where = intent.site.name or str(intent.spot.netns)
    words = (intent.spot.tunable, where, str(intent.old), str(intent.new), intent.decider)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def stamp() -> Stamp:
    """Now."""
    tai_ns, utc_ns = time.clock_gettime_ns(time.CLOCK_TAI), time.clock_gettime_ns(time.CLOCK_REALTIME)
    # The offset is whole seconds, and 37 or more once it is set; the two readings lie microseconds apart.
    known = tai_ns - utc_ns > 500_000_000
    return Stamp(time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), tai_ns, known)


def machine() -> str:
    """What must be the same for a confirmed value to hold: the kernel's release and the machine-id(5)."""
    try:
        ident = MACHINE_ID.read_text().strip()
    except OSError:
        ident = ""
    return f"{os.uname().release} {ident}"
