"""Whether the routes of ours still are what they were made as: looked at when the kernel tells of a change that may
concern them, before each wish for one, and every few seconds.

Ours is taken away at once when the route that it is a copy of has changed or gone, or somebody has made one to the same
destination or inside it. Where ours itself was touched, that is the administrator: hands off, as of any other key.
"""

from __future__ import annotations

from actuators.keeper import Keeper
from actuators.kernel import Kernel
from actuators.routes import Finding, place
from actuators.standing import Standing
from actuators.undo import Ending, Undo
from bus.netns import NamespaceGoneError
from bus.tunables import AT


class RouteWatch:
    """Looks, and ends what is over."""

    def __init__(self, keeper: Keeper, kernel: Kernel, undo: Undo) -> None:
        self._keeper = keeper
        self._kernel = kernel
        self._routes = kernel.routes
        self._undo = undo
        self._said = ""

    @property
    def waitable(self) -> int:
        """Readable when a look is due."""
        return self._routes.ears.fileno()

    def hear(self) -> None:
        """The kernel has told something."""
        for netns in self._routes.heard():
            self.look(netns)

    def tend(self) -> bool:
        """Often: let go of namespaces that nothing but us keeps alive. Returns whether there may be any."""
        for netns in self._routes.ears.netns:
            if not self._kernel.alive(netns):
                self._gone(netns)
        return bool(self._routes.ears.netns)

    def level(self) -> None:
        """Now and then: look everywhere."""
        for netns in {kept.spot.netns for kept in self._standing()}:
            self.look(netns)

    def look(self, netns: int) -> None:
        """Look at all that stands in a namespace, and end what is over."""
        standing = [kept for kept in self._standing() if kept.spot.netns == netns]
        if not standing:
            return
        try:
            for found in self._routes.check(netns, standing[0].site.inode):
                self._end(standing, found)
        except NamespaceGoneError:
            self._gone(netns)
            return
        except OSError as error:
            self._say(f"routes of namespace {netns} cannot be looked at: {error.strerror or error}")
            return
        # What this process has not made, or not to its end, cannot be vouched for.
        strange = {kept.spot for kept in standing if not self._routes.knows(netns, place(kept.spot.tunable)[1])}
        strange &= self._keeper.standing.keys()
        if strange:
            self._undo.trials(Ending("reverted", "nobody knows what it is a copy of", turn=False), spots=strange)

    # --- how ------------------------------------------------------------------------------------------------------

    def _standing(self) -> list[Standing]:
        return [kept for spot, kept in self._keeper.standing.items() if AT in spot.tunable]

    def _end(self, standing: list[Standing], found: Finding) -> None:
        for kept in standing:
            if place(kept.spot.tunable)[1] != found.to:
                continue
            if found.taken:
                self._undo.taken(kept, 0, found.why)
            else:
                self._undo.gone(kept, Ending("reverted", found.why, turn=False))

    def _gone(self, netns: int) -> None:
        self._routes.forget(netns)
        for kept in [kept for kept in self._standing() if kept.spot.netns == netns]:
            self._undo.lost(kept)

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._undo.voice.say(line)
