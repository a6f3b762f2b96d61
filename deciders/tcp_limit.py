"""One TCP buffer limit, tcp_rmem[2] or tcp_wmem[2] of one namespace: what the growth rules know and are set to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import TcpRcvBuf, TcpSndBuf
from deciders.flow import Before, Flow
from deciders.limit import Limit, learn

SocketEvent = TcpRcvBuf | TcpSndBuf


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.tcp_buffer` in the configuration."""

    near: Annotated[float, Meta(gt=0, le=1)] = 0.6
    """A buffer of so much of the limit is near it."""
    window_used: Annotated[float, Meta(gt=0, le=1)] = 0.6
    """A receive limit holds a flow back when the flow, without any queue, would use so much of the largest window."""
    send_used: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """The same of a send limit and the bytes in flight. A receive limit has to be ahead, see tcp_buffer._fills."""
    factor: Annotated[float, Meta(gt=1, le=1.5)] = 1.5
    """One step."""
    gain: Annotated[float, Meta(gt=0, le=1)] = 0.12
    """A rate that rose by this share, and by `sigmas` standard deviations of its noise, is a gain."""
    sigmas: Annotated[float, Meta(ge=0, le=10)] = 3.0
    soak_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.5
    """How long to wait for a gain; at least 24 round trips."""
    rest_s: Annotated[float, Meta(ge=1, le=86400)] = 5.0
    """Rest after two steps without a gain; twice as long each time, up to rest_max_s."""
    rest_max_s: Annotated[float, Meta(ge=1, le=86400)] = 3600.0
    """Also the rest after a step that was taken back."""
    steps_without_gain: Annotated[int, Meta(ge=1, le=16)] = 4
    """No limit goes further than so many steps beyond where growth last helped."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """A limit that nobody needed for so long comes down a step, and another each quarter of it."""
    initial_less: Annotated[float, Meta(ge=0, le=0.5)] = 0.25
    """Connections begin with what all but this share of those that ended needed at least, ..."""
    initial_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.25
    """... and never with more than this share of the largest size; 0: initial sizes are left alone."""


class Attempt(Struct, gc=False):
    """A step upwards, from the wish to the verdict."""

    socket: int
    """The flow that is watched."""
    old: int
    new: int
    buffer_bytes: int
    record_bytes: int
    """As in Sample, when the step was wished for."""
    before: Before
    soak_ns: int
    end_ns: int = 0
    """When the soak ends; 0: not begun."""
    taken: bool = False
    """The flow's buffer has grown. A receiver's does only when it copies more in a round trip than ever before."""


@dataclass(slots=True)
class Standing:
    """How much longer round trips have been than the least, since the limit last changed (deciders.tcp_queue)."""

    epoch: int = -1
    """Which limit that was, by Knob.epoch."""
    since_ns: int = 0
    t_ns: int = 0
    weight: float = 0.0
    """Seconds, each older one weighing less."""
    longer: float = 0.0
    """The same seconds, each times the round trip in relation to the least."""

    @property
    def mean(self) -> float:
        """The round trip in relation to the least; 0: nothing measured."""
        return self.longer / self.weight if self.weight else 0.0


@dataclass(slots=True, kw_only=True)
class Knob(Limit):
    """A limit and what has become of changing it. `noun` is what an operator calls it."""

    tunable: str
    noun: str
    netns: int
    netns_ino: int
    need_ns: int
    """When a socket last made use of it."""
    changed_ns: int = 0
    epoch: int = 0
    """Counts the changes."""
    wished: Attempt | None = None
    attempt: Attempt | None = None
    blind: int = 0
    """Steps since one last brought a gain."""
    rest_ns: int = 0
    """How long the last rest was; the next is twice as long."""
    rest_until_ns: int = 0
    lenient: bool = False
    """A flow without any queue may end the rest: the queue that led to it was another's."""
    back: int = 0
    """The value to go back to, because of back_why; 0: none."""
    back_why: str = ""
    backed_ns: int = 0
    """When a step was last taken back; 0: never."""
    wanted_ns: int = 0
    """When a flow last had use for more than a step less."""
    falling: bool = False
    """It came down for a queue, and has not grown since."""
    standing: Standing = field(default_factory=Standing)
    watch_ns: int = 0
    """No sample for it before this."""
    gave_ns: int = 0
    """When it last came down for want of memory (deciders.tcp_scarce); 0: never."""


class Sample(Struct, gc=False):
    """What one event adds. Its flow's averages are up to date."""

    event: SocketEvent
    flow: Flow
    buffer_bytes: int
    record_bytes: int
    """The most that was copied in one round trip, as the kernel measured it; 0 where it does not."""
    limiting: bool
    """This limit is what holds the flow back."""
    scale_bytes: int
    """The flow's window is as large as its scale allows: how far the limit may grow for others' sake; else 0."""


def learn_limit(knob: Knob, value: int, t_ns: int) -> None:
    """The limit as it was at t_ns."""
    known = knob.value
    if not learn(knob, value, t_ns) or not known:
        return
    wished, attempt = knob.wished, knob.attempt
    knob.epoch += 1
    knob.changed_ns = t_ns
    knob.wished = None
    if value == knob.back:
        knob.blind = max(0, knob.blind - 1)
    knob.back = 0
    if wished is not None and wished.new == value:
        knob.attempt = wished
        wished.end_ns = t_ns + wished.soak_ns
    elif attempt is not None and attempt.new != value:
        # Another hand: whatever the flow does now tells nothing of our step.
        knob.attempt = None
