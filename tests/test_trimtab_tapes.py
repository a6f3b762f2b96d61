"""`trimtab tape`: info, dump, cut, merge, scrub, on sound tapes and on damaged ones."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import typing
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tape_damage
import zstandard
from tape_world import BEGIN_NS, HOST, SEC, TAI_NS, TAI_OFFSET_S, Live, batches, record, replayed

from bus import schema
from bus.prefix import fault
from bus.recorder import FLUSH_NS
from bus.schema import TOPICS, Batch, Event, Verdict, Wish
from bus.tape import opening
from bus.tape_reader import find
from trimtab.__main__ import main
from trimtab.tape.scrub import rewritten
from trimtab.tape.scrub_words import FIELDS, Words, people

UTC_S = TAI_NS // SEC - TAI_OFFSET_S
"""CLOCK_REALTIME of the beginning of a tape here: 2026-09-21T14:12:43Z."""
OTHER = msgspec.structs.replace(HOST, name="shop-web-1", boot_id="00000000-77aa-4f7e-9d3c-0123456789ab")
SECRETS = (
    "shop-db-7", "5f2b0c1e", "customer-blue", "bobs-deploy", "alice", "10.1.2.3", "fe80::1", "00:16:3e:aa:bb:cc",
)  # fmt: skip


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty seconds of one decider with a gap, in several segments."""
    folder = tmp_path_factory.mktemp("tape") / "tcp_buffer"
    live = Live(folder)
    live.recorder._segment_bytes = 6000
    found = batches(20, lose=(31,))
    for start in range(0, len(found), 5):
        live.feed(found[start : start + 5], turn=3)
        live.recorder.turn(live.now_ns + FLUSH_NS, live.folded)
    live.close()
    assert len(list(folder.iterdir())) > 3
    return folder


def wishes(*paths: Path) -> list[bytes]:
    """What is recorded as asked, after a look that it replays to the byte."""
    found = replayed(*paths)
    for segment, events, asked, played in found:
        assert asked == played.asked
        assert not played.damage
        assert played.end
        assert played.end.events == segment.head.memory.events + events
    return [raw for _, _, asked, _ in found for _, raw in asked]


def dumped(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> list[dict[str, Any]]:
    assert main(["tape", "dump", "--json", *map(str, argv)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_info_says_what_is_on_a_tape(tape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tape", "info", str(tape), "--json"]) == 0
    (info,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (info["schema"], info["host"], info["decider"]) == ("trimtab.tape/v1", "shop-db-7", "tcp_buffer")
    assert info["segments"] == len(list(tape.iterdir()))
    assert info["sessions"] == 1
    assert info["events"] == sum(info["topics"].values())
    assert (info["topics"]["Tick"], info["gaps"], info["lost"]) == (20, 1, 7)
    assert info["wishes"] == len(wishes(tape))
    assert (info["from_tai_ns"], info["tai_offset_s"]) == (TAI_NS, 37)
    assert info["seconds"] == pytest.approx(20, abs=0.01)
    assert info["size_bytes"] == sum(path.stat().st_size for path in tape.iterdir())
    assert (info["damage"], info["unended"], info["writing"]) == ([], False, False)

    assert main(["tape", "info", str(tape)]) == 0
    out = capsys.readouterr().out
    assert "shop-db-7  tcp_buffer" in out
    assert "0:00:20" in out
    assert "whole" in out


def test_info_has_a_row_per_decider_and_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "a", 3)
    record(tmp_path / "b", 3, code="0.0.1+old")
    record(tmp_path / "c", 3, host=OTHER, tai_offset_s=0)
    assert main(["tape", "info", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["shop-db-7", "shop-db-7", "shop-web-1"]
    assert "0.0.1+old" in "".join(lines[1:4])
    assert "nobody has set the TAI offset" in lines[-1]


def test_dump_prints_each_event_and_wish_in_its_order(tape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = dumped(capsys, tape)
    assert [row["tai_ns"] for row in rows if row["topic"] == "Tick"] == [TAI_NS + number * SEC for number in range(20)]
    assert len([row for row in rows if row["topic"] == "Wish"]) == len(wishes(tape))
    at = 0
    for row in rows:
        at += row["topic"] not in ("Wish", "Verdict")
        assert row["at"] == at
    assert main(["tape", "dump", str(tape), "--only", "Wish,Tick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[5] for line in lines} == {"Wish", "Tick"}
    assert ".000 shop-db-7 tcp_buffer collector-proc Tick seq=0" in lines[0]


def test_what_a_tape_says_does_not_reach_the_terminal_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Live(tmp_path, host=msgspec.structs.replace(HOST, name="\x1b[31m evil"))
    event = schema.Netns(BEGIN_NS, 1, 1, "\x1b]0;owned\x07 a\nb", True)
    live.feed([Batch(1, "collector-bpf", 1, 0, [event])])
    live.close()
    for verb in ("info", "dump"):
        assert main(["tape", verb, str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\x07" not in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("since", "until", "first", "last"),
    [
        ("+5s", "+8s", 5, 8),
        ("-5s", None, 16, 19),
        (None, "-15s", 0, 5),
        ("+5000ms", "+0.1m", 5, 6),
        ("2026-09-21T14:12:48Z", "2026-09-21T14:12:50.5+00:00", 5, 7),
        ("2026-09-21T16:12:48+02:00", None, 5, 19),
        ("14:12:48+00:00", "14:12:50Z", 5, 7),
        ("+1h", None, None, None),
    ],
)
def test_times_are_of_day_of_a_date_or_counted(
    tape: Path, capsys: pytest.CaptureFixture[str], since: str | None, until: str | None, first: int | None,
    last: int | None,
) -> None:  # fmt: skip
    limits = [*(["--from", since] if since else []), *(["--to", until] if until else [])]
    ticks = [row["fields"]["seq"] for row in dumped(capsys, tape, *limits, "--only", "Tick")]
    assert ticks == ([] if first is None or last is None else list(range(first, last + 1)))


def test_a_time_of_day_is_the_first_one_after_the_beginning_in_local_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "EST5")
    import time

    time.tzset()
    try:
        record(tmp_path, 20)
        rows = dumped(capsys, tmp_path, "--from", "09:12:48", "--only", "Tick")
        assert [row["fields"]["seq"] for row in rows] == list(range(5, 20))
        # Long past on the day when it began: it is the next day's, when nothing was recorded.
        assert dumped(capsys, tmp_path, "--from", "09:12:00") == []
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("option", "word"),
    [("--from", "25:00"), ("--to", "tomorrow"), ("--from", "+5"), ("--to", "-5y"), ("--from", ""), ("--to", "+٣s"),
     ("--from", "+1e9s"), ("--to", "2026-13-01"), ("--only", "Nothing"), ("--only", "Tick,")],
)  # fmt: skip
def test_a_word_that_is_no_time_or_topic_is_named(
    tape: Path, capsys: pytest.CaptureFixture[str], option: str, word: str
) -> None:
    assert main(["tape", "dump", str(tape), option, word]) == 64
    said = capsys.readouterr().err
    assert option in said
    assert repr(word.rpartition(",")[2] if option == "--only" else word) in said


def test_a_time_that_ends_before_it_begins_is_a_usage_error(tape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tape", "dump", str(tape), "--from", "+5s", "--to", "+4s"]) == 64
    assert "'+4s' is not after --from '+5s'" in capsys.readouterr().err


def test_dump_ends_in_peace_when_its_reader_does(tape: Path) -> None:
    argv = f"{sys.executable} -m trimtab tape dump {tape} | head -1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", argv], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_every_piece_replays_exactly(tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut at a hundred moments: between segments, blocks, batches, within a batch, at the gap."""
    chance = random.Random(1)
    rows = dumped(capsys, tape)
    moments = sorted({(row["tai_ns"] - TAI_NS) / 1e6 for row in rows})
    for number in range(50):
        begin, end = sorted(chance.sample(moments, 2))
        out = tmp_path / f"{number}.tape"
        span = ["--from", f"+{begin:.6f}ms", "--to", f"+{end:.6f}ms"]
        assert main(["tape", "cut", str(tape), *span, "-o", str(out)]) == 0
        wishes(out)
        kept = dumped(capsys, out)
        # By the order in which they were decided on, which is not quite that of time.
        first = next(place for place, row in enumerate(rows) if row["tai_ns"] - TAI_NS >= round(begin * 1e6))
        wanted = [row["at"] for row in rows[first : first + len(kept)]]
        assert [row["at"] for row in kept] == wanted
        assert kept[-1]["tai_ns"] - TAI_NS <= round(end * 1e6) + SEC
        whole = {(row["at"], row["topic"]): row["fields"] for row in rows}
        assert all(whole[row["at"], row["topic"]] == row["fields"] for row in kept)


def test_a_piece_that_begins_or_ends_at_a_gap_replays(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = dumped(capsys, tape)
    gap = next(number for number, row in enumerate(rows) if row["topic"] == "Gap")
    for number, row in enumerate(rows[gap - 8 : gap + 8]):
        moment = f"+{(row['tai_ns'] - TAI_NS) / 1e6:.6f}ms"
        before, behind = tmp_path / f"{number}a.tape", tmp_path / f"{number}b.tape"
        assert main(["tape", "cut", str(tape), "--to", moment, "-o", str(before)]) == 0
        assert main(["tape", "cut", str(tape), "--from", moment, "-o", str(behind)]) == 0
        wishes(before, behind)
        kept = [[(each["at"], each["fields"]) for each in dumped(capsys, path)] for path in (before, behind)]
        whole = [(each["at"], each["fields"]) for each in rows]
        assert whole[: len(kept[0])] == kept[0]
        assert whole[-len(kept[1]) :] == kept[1]


def test_a_piece_knows_the_probes_that_were_told_of_before_it(tmp_path: Path) -> None:
    record(tmp_path / "t", 9)
    out = tmp_path / "out.tape"
    assert main(["tape", "cut", str(tmp_path / "t"), "--from", "+3s", "-o", str(out)]) == 0
    assert [probe.name for probe in replayed(out)[0][0].head.probes] == ["tcp_rcvbuf"]


def test_a_piece_of_a_piece_replays_and_says_that_it_was_cut(tape: Path, tmp_path: Path) -> None:
    piece, crumb = tmp_path / "piece.tape", tmp_path / "crumb.tape"
    assert main(["tape", "cut", str(tape), "--from", "+3.21s", "--to", "+12.34s", "-o", str(piece)]) == 0
    assert main(["tape", "cut", str(piece), "--from", "+2s", "--to", "-2s", "-o", str(crumb)]) == 0
    assert wishes(piece)
    assert wishes(crumb)
    *_, (_, _, _, played) = replayed(crumb)
    assert played.end
    assert played.end.why == "cut"
    assert crumb.stat().st_mode & 0o777 == 0o600
    first = replayed(crumb)[0][0].head
    assert first.tai_ns == TAI_NS + 5 * SEC + 210_000_000
    assert [probe.name for probe in first.probes] == ["tcp_rcvbuf"]


def test_several_deciders_are_cut_into_one_file(tmp_path: Path) -> None:
    for name in ("tcp_buffer", "neigh_table", "guard"):
        live = Live(tmp_path / "t" / name, name)
        live.feed(batches(9))
        live.close()
    out = tmp_path / "out.tape"
    assert main(["tape", "cut", str(tmp_path / "t"), "--from", "+4s", "--to", "+6s", "-o", str(out)]) == 0
    wishes(out)
    found = [(segment.source, segment.head.decider) for segment, *_ in replayed(out)]
    assert found == [(0, "guard"), (1, "neigh_table"), (2, "tcp_buffer")]


def test_a_decider_that_is_not_here_is_cut_at_its_segments_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "t", 9, decider="theirs", module="their.tuner")
    out = tmp_path / "out.tape"
    assert main(["tape", "cut", str(tmp_path / "t"), "--from", "+4s", "--to", "+6.5s", "-o", str(out)]) == 0
    assert "theirs cannot be cut then, and is from its segment's beginning: no decider 'theirs'" in (
        capsys.readouterr().err
    )
    assert [row["fields"]["seq"] for row in dumped(capsys, out, "--only", "Tick")] == list(range(7))


def test_a_tape_that_is_decided_otherwise_here_is_cut_at_its_segments_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Live(tmp_path / "t")
    live.feed(batches(5))
    live.recorder.asked(live.folded + 1, Wish(1, 1, 1, "net.ipv4.tcp_rmem[2]", 7, 7, 1, 2, "because", {}))
    live.feed(batches(9)[len(batches(5)) :])
    live.close()
    out = tmp_path / "out.tape"
    assert main(["tape", "cut", str(tmp_path / "t"), "--from", "+6s", "-o", str(out)]) == 0
    assert "decides otherwise than the recorded one" in capsys.readouterr().err
    assert len(dumped(capsys, out, "--only", "Tick")) == 9


def test_a_cut_of_nothing_and_a_file_that_is_there_are_errors(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.tape"
    assert main(["tape", "cut", str(tape), "--from", "+9h", "-o", str(out)]) == 1
    assert "nothing on these tapes is from that time" in capsys.readouterr().err
    assert not out.exists()
    out.write_text("kept")
    (tmp_path / "link.tape").symlink_to(tmp_path / "nowhere")
    for target in (out, tmp_path / "link.tape"):
        for verb in ("cut", "merge", "scrub"):
            assert main(["tape", verb, str(tape), "-o", str(target)]) == 1
            assert capsys.readouterr().err.endswith(f"{target}: File exists\n")
    assert out.read_text() == "kept"


def test_hosts_are_merged_in_order_of_atomic_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "t" / "a", 9)
    # Booted at another time, so its clock counts from elsewhere; and two seconds later.
    record(tmp_path / "t" / "b", 9, host=OTHER, tai_ns=TAI_NS + 5 * SEC // 2)
    out, again = tmp_path / "out.tape", tmp_path / "again.tape"
    assert main(["tape", "merge", str(tmp_path / "t"), "-o", str(out)]) == 0
    assert capsys.readouterr().err == ""
    assert sorted(wishes(out)) == sorted(wishes(tmp_path / "t"))
    rows = dumped(capsys, out, "--only", "Tick")
    assert [row["tai_ns"] for row in rows] == sorted(row["tai_ns"] for row in rows)
    assert [row["host"] for row in rows[:5]] == ["shop-db-7", "shop-db-7", "shop-db-7", "shop-web-1", "shop-db-7"]
    assert main(["tape", "merge", str(out), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert main(["tape", "info", str(out), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_host_without_atomic_time_is_named_when_it_is_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "t" / "a", 3)
    record(tmp_path / "t" / "b", 3, host=OTHER, tai_offset_s=0)
    assert main(["tape", "merge", str(tmp_path / "t"), "-o", str(tmp_path / "out.tape")]) == 0
    assert "nobody has set the TAI offset of shop-web-1: placed by the wall clock there" in capsys.readouterr().err


def unpacked(path: Path) -> bytes:
    """All that is in a tape."""
    return b"\n".join(
        zstandard.ZstdDecompressor().decompress(frame[4]) for frame in tape_damage.frames(path.read_bytes())
    )


def test_a_scrubbed_tape_replays_as_before_and_names_nobody(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = b"\n".join(unpacked(path) for path in find([tape]))
    assert all(secret.encode() in before for secret in SECRETS)
    out = tmp_path / "out.tape"
    assert main(["tape", "scrub", str(tape), "-o", str(out)]) == 0
    assert [secret for secret in SECRETS if secret.encode() in unpacked(out)] == []
    assert wishes(out) == wishes(tape)
    rows, plain = dumped(capsys, out), dumped(capsys, tape)
    assert [(row["at"], row["topic"], row["tai_ns"]) for row in rows] == [
        (row["at"], row["topic"], row["tai_ns"]) for row in plain
    ]
    # The same by the same, all over the tape; another time by another.
    names = {row["fields"]["name"] for row in rows if row["topic"] == "Netns"}
    assert len(names) == 1
    (reason,) = {row["fields"]["reason"] for row in rows if row["topic"] == "Outcome"}
    assert rows[0]["host"] in reason
    assert main(["tape", "scrub", str(tape), "-o", str(tmp_path / "other.tape")]) == 0
    assert names.isdisjoint(row["fields"].get("name") for row in dumped(capsys, tmp_path / "other.tape"))


def test_destinations_are_scrubbed_in_keys_and_memory_and_the_tape_replays_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded, out = Path(__file__).parent / "golden/congestion.tape", tmp_path / "out.tape"
    assert main(["tape", "scrub", str(recorded), "-o", str(out)]) == 0
    assert not [prefix for prefix in (b"10.1.2.0", b"10.9.0.0", b"2001:db8") if prefix in unpacked(out)]
    assert len(wishes(out)) == len(wishes(recorded)) > 3
    rows, plain = dumped(capsys, out), dumped(capsys, recorded)
    # The same by the same, in events and in wishes, and never two by one.
    places = {
        (old["fields"].get("prefix", ""), new["fields"].get("prefix", ""))
        for old, new in zip(plain, rows, strict=True)
        if old["topic"] == "Flows"
    }
    assert len(places) == len(dict(places)) == len({new for _, new in places}) == 3
    keys = {row["fields"]["tunable"] for row in rows if row["topic"] == "Wish"}
    assert {key.partition("@")[2] for key in keys} <= {new for _, new in places}
    assert {key.partition("@")[0] for key in keys} == {"route.congctl", "route.initcwnd"}


def test_a_memory_of_destinations_is_scrubbed_as_their_events_are() -> None:
    words = Words(b"x" * 32, ())
    known = {("10.1.2.0/24", 7): ["2001:db8:1::/48", "cubic", "route.congctl@10.1.2.0/24", 10.5, "10.1.2.3"]}
    (key, (six, *rest)) = next(
        iter(msgspec.msgpack.decode(rewritten(msgspec.msgpack.encode(known), words.destination)).items())
    )
    assert ip_network(key[0]).subnet_of(ip_network("10.0.0.0/8"))
    assert ip_network(six).subnet_of(ip_network("fd00::/8"))
    assert rest[:3] == ["cubic", f"route.congctl@{key[0]}", 10.5]
    assert key[0] != "10.1.2.0/24"


def test_of_many_destinations_no_two_are_made_one() -> None:
    words = Words(b"x" * 32, ())
    made = {words.destination(f"192.{number // 256}.{number % 256}.0/24") for number in range(2000)}
    assert len(made) == 2000
    assert all(fault(prefix) == "" for prefix in made)


def test_a_third_partys_words_and_memory_are_scrubbed_too(tmp_path: Path) -> None:
    policy = {"theirs": {"only": ["customer-blue"], "alice": 1}}
    live = Live(tmp_path / "t", decider="theirs", module="their.tuner")
    live._head["config"] = msgspec.structs.replace(live.config, policy=policy)
    memory = msgspec.msgpack.encode({"customer-blue": [1, "shop-db-7"]})
    live._head["memory"] = msgspec.structs.replace(live.head(0).memory, state=memory)
    live.recorder.turn(live.now_ns, 0)
    live.recorder.asked(
        1, Wish(1, 1, 1, "a.b", 7, 7, 1, 2, "customer-blue on 10.1.2.3 is slow", {"x": "customer-blue"})
    )
    live.feed(batches(2))
    live.close()
    out = tmp_path / "out.tape"
    assert main(["tape", "scrub", str(tmp_path / "t"), "-o", str(out)]) == 0
    assert [secret for secret in SECRETS if secret.encode() in unpacked(out)] == []
    assert b"is slow" in unpacked(out)


@pytest.mark.parametrize("kind", [*TOPICS.values(), Wish, Verdict, Batch])
def test_every_field_that_can_hold_a_word_has_its_row(kind: type[Any]) -> None:
    """A new field of the schema is kept or replaced on purpose."""

    def wordy(hint: Any) -> bool:
        if typing.get_origin(hint) is typing.Literal or (isinstance(hint, type) and issubclass(hint, Event)):
            return False
        return hint is str or any(wordy(each) for each in typing.get_args(hint))

    hints = typing.get_type_hints(kind)
    fields = {field for field in kind.__struct_fields__ if field != "events" and wordy(hints[field])}
    assert {field for topic, field in FIELDS if topic == kind.__name__} == fields


@pytest.mark.parametrize(
    ("text", "secrets", "kept"),
    [
        ("lost 10.1.2.3/24 at 14:05:00", ["10.1.2.3"], ["/24", "14:05:00"]),
        ("from 2001:db8::7, fe80::1%eth0: none", ["2001:db8::7", "fe80::1"], [", ", ": none"]),
        ("::ffff:10.1.2.3 and ::1.", ["10.1.2.3", "::1"], [" and "]),
        ("52:54:00:12:34:56 or 52-54-00-12-34-56", ["52:54", "52-54"], [" or "]),
        ("/home/eve/x: no; /proc/sys/net stays", ["eve"], [": no; /proc/sys/net stays"]),
        ("mail eve@example.org now", ["eve", "example.org"], ["mail ", " now"]),
        ("db-1.corp.example is db-1, not adb-1x", ["db-1.corp", "is db-1"], ["adb-1x"]),
        ("5f2b0c1e-77aa-4f7e-9d3c-0123456789ab", ["5f2b0c1e"], []),
        ("kernel 6.1.0 wants net.ipv4.tcp_rmem[2] of 7 packets::", [], ["6.1.0", "net.ipv4.tcp_rmem[2]", "packets::"]),
    ],
)
def test_names_addresses_and_paths_are_found_in_a_text(text: str, secrets: list[str], kept: list[str]) -> None:
    said = Words(b"key", {"db-1", "host", ""}).put("text", text)
    assert [secret for secret in secrets if secret in said] == []
    assert [word for word in kept if word not in said] == []
    assert (said == text) == (not secrets)


def test_values_and_devices_of_a_sysctl_are_replaced_where_they_are_no_numbers() -> None:
    words = Words(b"key", ())
    assert words.put("value", "4096\t131072 -1\n") == "4096\t131072 -1\n"
    assert "corp" not in words.put("value", "corp.example")
    assert words.put("sysctl", "net/ipv4/conf/all/forwarding") == "net/ipv4/conf/all/forwarding"
    device = words.put("sysctl", "net/ipv6/neigh/tenant7/gc_stale_time")
    assert "tenant7" not in device
    assert device.startswith("net/ipv6/neigh/dev-")
    assert words.put("name", "host") == "host"
    assert len(words.put("text", "10.1.2.3 " * 40)) <= 400


def test_people_are_known_by_how_a_sentence_names_them() -> None:
    text = "bobs-deploy (pid 12, uid 0, bob.service) wrote 5; held by eve; in /home/mallory/x; reverted by trimtab"
    assert people(text) == {"bobs-deploy", "bob.service", "eve", "mallory"}


def damaged(sound: bytes, count: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    yield b""
    yield b"\x7fELF" + bytes(4000)
    yield opening()
    for _ in range(count):
        yield tape_damage.wild(chance, sound)


def all_verbs(tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, seed: int) -> None:
    sound = opening() + b"".join(path.read_bytes().removeprefix(opening()) for path in find([tape])[:3])
    path, out = tmp_path / "t.tape", tmp_path / "out.tape"
    verbs = (
        ["tape", "info"], ["tape", "info", "--json"], ["tape", "dump"], ["tape", "dump", "--json", "--from", "-3s"],
        ["tape", "cut", "--from", "+2s", "--to", "-1s", "-o", str(out)], ["tape", "merge", "-o", str(out)],
        ["tape", "scrub", "-o", str(out)], ["replay", "--jobs", "1"],
    )  # fmt: skip
    for number, copy in enumerate(damaged(sound, count, seed)):
        path.write_bytes(copy)
        for verb in verbs:
            out.unlink(missing_ok=True)
            try:
                code = main([*verb, str(path)])
            except Exception:
                print(f"copy {number} of seed {seed}: {verb}")
                raise
            said = capsys.readouterr().err
            # What is left of it may be shorter than the times say, or be decided otherwise.
            more = {"cut": 64, "replay": 2}
            assert code in (0, 1, 3, *(more[word] for word in verb if word in more)), (number, verb)
            assert code in (0, 2, 64) or said.startswith("trimtab: "), (number, verb)
            assert "Traceback" not in said
            if out.exists() and code == 0 and number > 2:
                assert main(["tape", "info", str(out)]) in (0, 3)
                capsys.readouterr()


def test_no_verb_stumbles_over_a_damaged_tape(tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_verbs(tape, tmp_path, capsys, 25, 3)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_verb_stumbles_over_hundreds_of_damaged_tapes(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_verbs(tape, tmp_path, capsys, 500, 4)


@pytest.mark.parametrize("verb", ["info", "dump"])
def test_one_bad_file_does_not_keep_the_others_from_being_read(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (tmp_path / "bad.tape").write_bytes(b"\x7fELF")
    (tmp_path / "newer.tape").write_bytes(opening()[:-1] + b"\x02")
    os.mkfifo(tmp_path / "pipe.tape")
    record(tmp_path, 2)
    assert main(["tape", verb, str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"trimtab: {tmp_path}/bad.tape: not a tape of trimtab's",
        f"trimtab: {tmp_path}/newer.tape: format 2, and this trimtab reads format 1; use a newer one",
        f"trimtab: {tmp_path}/pipe.tape: not a file",
    ]
    assert "tcp_buffer" in said.out


@pytest.mark.parametrize("kind", ["removed", "last", "duplicated", "swapped"])
def test_frames_that_are_missing_doubled_or_out_of_order_are_told_of(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    found = tape_damage.frames(find([tape])[0].read_bytes())
    blocks = [number for number, frame in enumerate(found) if frame[0] == "block"]
    first, second = blocks[0], blocks[1]
    match kind:
        case "removed":
            del found[first]
        case "last":
            del found[blocks[-1]]
        case "duplicated":
            found.insert(first, found[first])
        case _:
            found[first], found[second] = found[second], found[first]
    (tmp_path / "t.tape").write_bytes(tape_damage.join(found))
    assert main(["tape", "info", str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert "missing" in said.err or "taken out" in said.err
    assert "damaged" in said.out


def test_a_tape_cut_in_half_is_not_called_whole(tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = find([tape])[0].read_bytes()
    (tmp_path / "half.tape").write_bytes(sound[: len(sound) * 2 // 3])
    assert main(["tape", "info", str(tmp_path)]) == 3
    assert capsys.readouterr().out.splitlines()[1].endswith("  damaged")


def test_a_full_disk_is_told_of_by_the_name_of_what_it_had_no_room_for(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, unlimited[1]))
        for verb in (("tape", "merge"), ("report",)):
            assert main([*verb, str(tape), "-o", str(tmp_path / "out")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, ignored)
    assert capsys.readouterr().err == f"trimtab: {tmp_path}/out: File too large\n" * 2
    assert list(tmp_path.glob("*out*")) == []


def test_a_missing_head_is_told_of(tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [frame for path in find([tape])[:3] for frame in tape_damage.frames(path.read_bytes())]
    headless = [number for number, frame in enumerate(frames) if frame[0] == "head"][1]
    del frames[headless]
    (tmp_path / "t.tape").write_bytes(tape_damage.join(frames))
    assert main(["tape", "info", str(tmp_path)]) == 3
    assert "the head of a segment is missing; skipped to the next segment" in capsys.readouterr().err


def test_a_tape_without_an_end_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = Live(tmp_path / "t")
    live.feed(batches(5))
    assert main(["tape", "info", str(tmp_path)]) == 0
    assert "being written" in capsys.readouterr().out
    assert live.recorder._file
    live.recorder._file.let_go()
    assert main(["tape", "info", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "not closed" in said.out
    assert "the segment has no end" in said.err
