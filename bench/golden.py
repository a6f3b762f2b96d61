"""A golden tape from a recording: made anonymous, and only what its decider listens to, from the beginning on.

    .venv/bin/python bench/golden.py RECORDING tests/golden/NAME-recorded.tape [--seconds 30]

RECORDING: a decider's directory of tapes, or one of its files (bench/scenarios --tapes). What others tell on the same
lanes is left out, so that a tape of today needs no topic that its decider does not know. Says so, and writes nothing,
where the decider would not ask for the same things on what is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import takewhile
from pathlib import Path

from bus.codec import encode
from deciders.__main__ import load
from deciders.engine import Asked, decide
from trimtab.tape.scrub import scrub
from trimtab.testing import made_tape
from trimtab.testing.fixtures import Tape


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean.tape"
        scrub([options.recording], clean)
        playback = next(Tape(clean).play(Tape(clean).deciders[0]))
        name, settings = playback.head.decider, playback.head.config
        topics = load(name, settings).topics
        end_ns = playback.head.t_ns + int(options.seconds * 1e9)
        events = list(takewhile(lambda event: event.t_ns < end_ns, playback.events()))
        kept = [event for event in events if isinstance(event, topics)]
    asked: list[list[bytes]] = []
    for stream in (events, kept):
        wishes: list[Asked] = [wish for _, more in decide(stream, [load(name, settings)]) for wish in more]
        asked.append([encode(wish) for wish in wishes])
    if asked[0] != asked[1]:
        sys.exit("on what is left the decider asks for something else")
    made_tape.write(options.output, kept, name, settings)
    print(f"{options.output}: {len(kept)} of {len(events)} events, {len(asked[0])} wishes,"
          f" {options.output.stat().st_size / 1024:.1f} KiB")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
