"""The table of probes agrees with the sources, the messages and itself."""

from __future__ import annotations

import re
from typing import get_type_hints

import pytest

from bpf import BITS, HERE, PROBES, ROAD_NAMES, Probe
from bus.schema import TOPICS

each = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)


def source(probe: Probe) -> str:
    shared = (road.source for road in probe.roads if road.source)
    return "\n".join((HERE / name).read_text() for name in dict.fromkeys((*probe.sources, *shared)))


def headers() -> str:
    return (HERE / "include" / "trimtab.h").read_text()


def test_names_are_given_once_and_topics_too_but_to_probes_that_count_together() -> None:
    assert len({probe.name for probe in PROBES}) == len(PROBES)
    together = {probe.topic: probe.sources[0] for probe in PROBES}
    assert all(probe.sources[0] == together[probe.topic] for probe in PROBES)
    assert len({(probe.topic, probe.roads[0].target) for probe in PROBES}) == len(PROBES)


@each
def test_a_record_is_its_events_fields_in_their_order(probe: Probe) -> None:
    fields = TOPICS[probe.topic].__struct_fields__
    form = re.sub(r"\d+x", "", probe.record.format.lstrip("="))
    codes = "".join("s" if code == "s" else code * int(number or 1) for number, code in re.findall(r"(\d*)(\D)", form))
    assert len(codes) == len(fields)
    hints = get_type_hints(TOPICS[probe.topic])
    named = fields[probe.names.field] if probe.names else ""
    for code, field in zip(codes, fields, strict=True):
        assert hints[field] is (str if field == named else {"Q": int, "?": bool, "s": str}[code]), field


@each
def test_every_member_read_is_in_the_row_and_every_one_in_the_row_is_read(probe: Probe) -> None:
    named = {field.macro for field in probe.fields}
    assert named <= {word.removeprefix("OFF_") for word in re.findall(r"\w+", source(probe) + headers())}
    own = {
        word.removeprefix("OFF_")
        for word in re.findall(
            r"\b(?:OFF_)?(?:SK|TP|NET|TBL|DEV|TASK|NSPROXY|SYSCTL|HEAD|SET)_[A-Z0-9_]+\b", source(probe)
        )
    }
    assert own - {"SYSCTL_NAME", "SYSCTL_VALUE", "SYSCTL_COMM", "SYSCTL_TABLE_KNOWN"} <= named


@each
def test_a_member_without_which_the_typed_road_cannot_load_is_essential(probe: Probe) -> None:
    typed = set(re.findall(r"TYPED_U32\(\w+, (\w+)\)|TYPED_U64\(\w+, OFF_(\w+)\)", source(probe)))
    essential = {field.macro for field in probe.fields if field.essential}
    assert {name for pair in typed for name in pair if name} <= essential


@each
def test_every_road_has_its_function_in_the_source(probe: Probe) -> None:
    assert probe.roads
    for road in probe.roads:
        for function in filter(None, (road.function, road.refused)):
            assert re.search(rf"^int {function}\(", source(probe), re.MULTILINE)
        assert road.kind in ROAD_NAMES


@each
def test_a_function_that_several_probes_share_runs_the_part_of_each(probe: Probe) -> None:
    for name in {road.source for road in probe.roads if road.source}:
        shared = (HERE / name).read_text()
        assert f"#ifdef PART_{probe.name}\n    {probe.name}_part(" in shared
        assert re.search(rf"\b{probe.name}_part\(", (HERE / probe.sources[-1]).read_text())


@each
def test_a_bit_field_is_read_as_bits_and_nothing_else_is(probe: Probe) -> None:
    bits = set(re.findall(r"(?:PEEK|READ)_BITS\((?:typed, )?\w+, (\w+)\)", source(probe)))
    assert {field.macro for field in probe.fields if field.size == BITS} == bits


@each
def test_a_ring_holds_at_least_five_hundred_records_and_is_a_power_of_two(probe: Probe) -> None:
    assert probe.ring_bytes & (probe.ring_bytes - 1) == 0
    assert probe.ring_bytes % 65536 == 0, "a page is up to 64 KiB on some machines"
    assert probe.ring_bytes // (probe.record.size + 8) >= 500


@each
def test_a_row_says_what_it_is_for_and_what_is_lost_without_it(probe: Probe) -> None:
    assert probe.summary
    assert probe.without


def test_each_source_says_its_licence_since_the_kernel_asks_for_it() -> None:
    for path in [*HERE.glob("*.c"), HERE / "include" / "trimtab.h"]:
        assert "SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0" in path.read_text().splitlines()[0], path
