from bus.schema import Counters, Value
from trimtab_icmp_answers.decider import COUNTER, TUNABLE, Policy, start, step

SECOND_NS = 1_000_000_000
NETNS = 7


def value(now: int, *, original: int = 128, held: bool = False) -> Value:
    return Value(0, TUNABLE, NETNS, 0, now, original, 100, 16000, held)


def wanted(*events: Value | Counters, policy: Policy | None = None) -> list[int]:
    state, wants = start(policy or Policy()), []
    for event in events:
        state, wishes = step(state, event)
        wants += [wish.want for wish in wishes]
    return wants


def counted(second: int, withheld: int) -> Counters:
    return Counters(second * SECOND_NS, NETNS, "net/netstat", {COUNTER: withheld})


def test_doubles_when_messages_are_withheld() -> None:
    assert wanted(value(128), counted(1, 100), counted(2, 108)) == [256]


def test_what_was_withheld_before_the_first_reading_is_no_reason() -> None:
    assert wanted(value(128), counted(1, 100_000)) == []


def test_stops_at_most_and_at_the_rows_bound() -> None:
    assert wanted(value(256), counted(1, 0), counted(2, 99), policy=Policy(most=300)) == [300]
    assert wanted(value(300), counted(1, 0), counted(2, 99), policy=Policy(most=300)) == []


def test_goes_back_after_a_long_quiet_and_never_below_the_original() -> None:
    policy = Policy(quiet_s=10)
    assert wanted(value(1024), counted(1, 5), counted(10, 5), policy=policy) == []
    assert wanted(value(1024), counted(1, 5), counted(11, 5), policy=policy) == [512]
    assert wanted(value(200), counted(1, 5), counted(11, 5), policy=policy) == [128]
    assert wanted(value(128), counted(1, 5), counted(11, 5), policy=policy) == []


def test_keeps_its_hands_off_a_key_that_is_held() -> None:
    assert wanted(value(128, held=True), counted(1, 0), counted(2, 99)) == []
