"""What became of each wish, put together from what a tape holds of it: the wish with its evidence, the actuator's
outcomes, the trials that it names, the guard's verdicts. Times are TAI nanoseconds."""

from __future__ import annotations

from bisect import bisect_right
from typing import Literal

from msgspec import Struct

from bus.schema import Outcome, Trial, Verdict, Wish

State = Literal["trial", "confirmed", "reverted", "ceded", "lost", "advised", "failed", "refused"]
STANDING = ("trial", "confirmed")
OUTCOMES_MAX = 50_000
WISHES_MAX = 20_000
REFUSED_MAX = 500
"""Wishes that were refused for the same reason are one line; so many such lines of a host are kept."""
LOOK_BACK = 64
"""A change is explained by one of so many wishes of the same key before it."""

Evidence = dict[str, int | str]
Key = tuple[str, int]
"""Tunable and namespace."""


class Change(Struct, kw_only=True):
    """One change, or a wish that came to nothing."""

    id: int
    """The journal's; 0: not journaled."""
    tunable: str
    netns: int
    decider: str
    t_ns: int
    old: int
    new: int
    state: State
    why: str = ""
    evidence: Evidence = {}
    gate: str = ""
    """What the actuator said to the wish."""
    ended_ns: int = 0
    after: int = 0
    """What stood there when it had ended."""
    end: str = ""
    """Why it is what it is now."""
    end_evidence: Evidence = {}
    times: int = 1
    """How often the same was asked for, and refused."""


class Ledger:
    """All that is heard of changes on one host. Bounded by the constants above."""

    def __init__(self) -> None:
        self.dropped = 0
        """Outcomes and refusals that were too many to keep."""
        self._outcomes: list[tuple[int, Outcome]] = []
        self._trials: dict[int, tuple[int, Trial]] = {}
        self._wishes: dict[tuple[str, str, int], list[tuple[int, Wish]]] = {}
        self._kept = 0
        self._verdicts: dict[int, Verdict] = {}
        self._refused: dict[tuple[str, str, int, int, str], Change] = {}
        self._gone: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._outcomes or self._trials or self._refused)

    def outcome(self, t_ns: int, event: Outcome) -> None:
        """The actuator's word."""
        if event.verdict == "refused":
            self._refuse(t_ns, event)
        elif len(self._outcomes) < OUTCOMES_MAX:
            self._outcomes.append((t_ns, event))
        else:
            self.dropped += 1

    def trial(self, since_ns: int, event: Trial) -> None:
        """A change is on trial, since then."""
        if event.change not in self._trials and len(self._trials) < OUTCOMES_MAX:
            self._trials[event.change] = (since_ns, event)

    def asked(self, t_ns: int, decider: str, request: Wish | Verdict) -> None:
        """What a decider asked for."""
        if self._kept >= WISHES_MAX:
            return
        self._kept += 1
        if isinstance(request, Verdict):
            self._verdicts[request.change] = request
        else:
            self._wishes.setdefault((decider, request.tunable, request.netns), []).append((t_ns, request))

    def gone(self, t_ns: int, netns: int) -> None:
        """A namespace has gone, and what stood in it."""
        if len(self._gone) < WISHES_MAX:
            self._gone.setdefault(netns, t_ns)

    def gone_ns(self, netns: int) -> int:
        """When a namespace went; 0: it is there."""
        return self._gone.get(netns, 0)

    def _refuse(self, t_ns: int, event: Outcome) -> None:
        # Numbers in the reason differ each time: "last changed 12 ms ago".
        kind = "".join(letter for letter in event.reason if not letter.isdigit())
        key = (event.decider, event.tunable, event.netns, event.want, kind)
        same = self._refused.get(key)
        if same:
            same.times += 1
            same.t_ns, same.ended_ns = min(same.t_ns, t_ns), max(same.ended_ns, t_ns)
        elif len(self._refused) < REFUSED_MAX:
            change = _change(t_ns, event, "refused", event.want)
            change.ended_ns, change.after = t_ns, event.value
            self._refused[key] = change
        else:
            self.dropped += 1

    # --- put together ---------------------------------------------------------------------------------------------

    def settle(self) -> list[Change]:
        """The changes in order of time."""
        for wishes in self._wishes.values():
            wishes.sort(key=lambda entry: entry[0])
        made = self._made()
        for t_ns, event in sorted(self._outcomes, key=lambda entry: entry[0]):
            self._end(made.get((event.tunable, event.netns), []), t_ns, event)
        for change in (change for ours in made.values() for change in ours):
            if change.state in STANDING and change.netns in self._gone:
                change.state, change.ended_ns, change.after = "lost", self._gone[change.netns], change.new
                change.end = "the namespace has gone"
        found = [*(change for ours in made.values() for change in ours), *self._refused.values()]
        for change in found:
            self._explain(change)
        return sorted(found, key=lambda change: (change.t_ns, change.id))

    def _made(self) -> dict[Key, list[Change]]:
        """Those that came about, by key, in order of time."""
        found: dict[int, Change] = {}
        loose: list[Change] = []
        for t_ns, event in self._outcomes:
            if event.verdict not in ("written", "advised", "failed"):
                continue
            state: State = "trial" if event.verdict == "written" else event.verdict
            change = _change(t_ns, event, state, event.value if state == "trial" else event.want)
            if event.change:
                found.setdefault(event.change, change)
            else:
                loose.append(change)
        for number, (since_ns, trial) in self._trials.items():
            if number not in found:
                found[number] = Change(
                    id=number, tunable=trial.tunable, netns=trial.netns, decider=trial.decider, t_ns=since_ns,
                    old=trial.old, new=trial.new, state="trial", gate="written before this recording tells why",
                )  # fmt: skip
            found[number].old, found[number].new = trial.old, trial.new
        keys: dict[Key, list[Change]] = {}
        for change in sorted([*found.values(), *loose], key=lambda change: (change.t_ns, change.id)):
            keys.setdefault((change.tunable, change.netns), []).append(change)
        return keys

    def _end(self, ours: list[Change], t_ns: int, event: Outcome) -> None:
        ending: State
        match event.verdict:
            case "reverted":
                ended, ending = _back_to(ours, t_ns, event.value), "reverted"
            case "ceded":
                ended, ending = [change for change in ours if change.state in STANDING and change.t_ns <= t_ns], "ceded"
            case "confirmed":
                ended, ending = self._confirmed(ours, t_ns, event), "confirmed"
            case _:
                return
        for change in ended:
            change.state, change.end, change.ended_ns, change.after = ending, event.reason, t_ns, event.value
            verdict = self._verdicts.get(change.id)
            meant = verdict is not None and verdict.why in event.reason
            change.end_evidence = dict(verdict.evidence) if verdict and meant else {}

    def _confirmed(self, ours: list[Change], t_ns: int, event: Outcome) -> list[Change]:
        """An outcome names the newest change of its key; the guard's verdict, if it is here, the one that it means.
        Without it: the oldest, as the guard confirms them in their order."""
        waiting = [change for change in ours if change.state == "trial" and change.t_ns <= t_ns]
        for number, change in enumerate(waiting):
            verdict = self._verdicts.get(change.id)
            if verdict and verdict.confirm and verdict.why in event.reason:
                return waiting[: number + 1]
        return waiting[:1]

    def _explain(self, change: Change) -> None:
        wishes = self._wishes.get((change.decider, change.tunable, change.netns), [])
        at = bisect_right(wishes, change.t_ns, key=lambda entry: entry[0])
        for _, wish in reversed(wishes[max(0, at - LOOK_BACK) : at]):
            if wish.why == change.why or (not change.why and wish.want == change.new):
                change.why, change.evidence = wish.why, dict(wish.evidence)
                return


def _change(t_ns: int, event: Outcome, state: State, new: int) -> Change:
    said = {"trial": "granted, written, read back", "advised": "would be granted; nothing written", "failed": "failed"}
    refused = state == "refused"
    return Change(
        id=event.change,
        tunable=event.tunable,
        netns=event.netns,
        decider=event.decider,
        t_ns=t_ns,
        old=event.value if refused else event.believed,
        new=new,
        state=state,
        why="" if refused or state == "failed" else event.reason,
        gate=f"refused: {event.reason}" if refused else said[state],
        end=event.reason if refused or state == "failed" else "",
    )


def _back_to(ours: list[Change], t_ns: int, value: int) -> list[Change]:
    """The newest ones that stand, as far as to the one before which `value` stood; all, if there is none such."""
    standing = [change for change in ours if change.state in STANDING and change.t_ns <= t_ns]
    for number in reversed(range(len(standing))):
        if standing[number].old == value:
            return standing[number:]
    return standing
