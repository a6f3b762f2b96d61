"""Golden tapes: real runs, cut short and made anonymous, whose deciders must go on to wish what they did (the texts
beside them; `--update-golden` writes them anew), and tapes with every topic that ever was, which must be read for ever.

guard        a flow whose limits grow while its path begins to lose: steps taken back, others confirmed
tcp_buffer   the same flow as the decider of the limits saw it
neigh_table  1500 neighbours in 1.5 s, with thresholds of 32, 64 and 128
tcp_memory   made: memory and orphans that come in a burst, and a way back that begins after 30 s
receive_path bursts of 500 packets to a slow processor, with a backlog of 64
ip_frag      made: fragments that need 12 MiB, and later some that fail with room left
ports        made: ports and buckets that lack, and a way back that begins after a minute
conntrack    made: connections that come in a burst, and a way back that begins after 30 s
congestion   made: a destination with losses, one where bbr is of no use, and one with short connections
topics-N     made: an event of each topic that there was when it was made

NAME-recorded  of the same decider, a real run of bench/scenarios: what it heard of (bench/golden.py), and no more
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from made_events import sample

from bus import roles
from bus.schema import TOPICS
from bus.tape import FORMAT
from trimtab.testing import made_tape
from trimtab.testing.fixtures import Golden, Opener, Replayer, Tape

GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted(path for path in GOLDEN.glob("*.tape") if not path.name.startswith("topics-"))
RECORDED = "-recorded"
BYTES_MAX = 100 << 10
RMEM = "net.ipv4.tcp_rmem[2]"


def test_every_decider_has_a_golden_tape_and_each_is_small() -> None:
    lacking = roles.BUILT_IN_DECIDERS.keys() - {path.stem for path in RUNS}
    assert {path.stem.removesuffix(RECORDED) for path in RUNS} <= roles.BUILT_IN_DECIDERS.keys()
    assert not lacking, (
        "golden/NAME.tape: a real run after `tape cut` and `tape scrub`, or trimtab.testing.made_tape.write()"
    )
    assert all(path.stat().st_size < BYTES_MAX for path in GOLDEN.iterdir())
    assert FORMAT == 1


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_decider_wishes_what_it_did(path: Path, tape: Opener, golden: Golden) -> None:
    recorded = tape(path)
    assert recorded.deciders == [path.stem.removesuffix(RECORDED)]
    golden(recorded)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_what_was_wished_for_then_is_on_the_tape(path: Path) -> None:
    (playback,) = Tape(path).play(path.stem.removesuffix(RECORDED))
    assert list(playback.events())
    assert playback.asked


def test_a_candidate_policy_is_held_to_what_it_may_do(tape: Opener, replay: Replayer) -> None:
    recorded = tape("golden/tcp_buffer.tape")
    assert replay(recorded).peak(RMEM) == 589_824
    assert replay(recorded, policy="golden/careful.toml").peak(RMEM) <= 400_000


# --- every topic ---------------------------------------------------------------------------------------------------


def topics(path: Path) -> dict[str, list[object]]:
    """Topic -> the fields of its event."""
    (playback,) = Tape(path).play("guard")
    return {type(event).__name__: json.loads(msgspec.json.encode(event))[1:] for event in playback.events()}


def test_what_was_once_written_of_any_topic_is_read_for_ever() -> None:
    paths = sorted(GOLDEN.glob("topics-*.tape"))
    assert paths
    for path in paths:
        expected = json.loads(path.with_suffix(".json").read_text())
        found = topics(path)
        assert found.keys() == expected.keys()
        for topic, fields in expected.items():
            # Later versions may have appended fields.
            assert found[topic][: len(fields)] == fields, topic


def test_every_topic_of_today_is_on_a_golden_tape(request: pytest.FixtureRequest) -> None:
    paths = sorted(GOLDEN.glob("topics-*.tape"))
    known = {topic for path in paths for topic in topics(path)}
    if request.config.getoption("--update-golden") and TOPICS.keys() - known != {"Gap"}:
        path = GOLDEN / f"topics-{len(paths) + 1}.tape"
        made_tape.write(path, [sample(kind) for topic, kind in TOPICS.items() if topic not in known], "guard")
        path.with_suffix(".json").write_text(msgspec.json.format(msgspec.json.encode(topics(path))).decode() + "\n")
        known |= topics(path).keys()
    # A Gap is no publisher's: it is made when a tape is read.
    assert TOPICS.keys() - known == {"Gap"}, "run pytest with --update-golden: it makes a tape of the new topics"
