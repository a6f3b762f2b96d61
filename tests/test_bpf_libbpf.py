"""Places of members from BTF: the running kernel's, which any user may read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import ANY, BITS, Field
from bpf.libbpf import Btf, Libbpf, UnavailableError, verdict

VMLINUX = Path("/sys/kernel/btf/vmlinux")


@pytest.fixture(scope="module")
def btf() -> Iterator[Btf]:
    found = Libbpf().btf(VMLINUX)
    yield found
    found.close()


def at(btf: Btf, of: str, path: str, size: int = ANY) -> int:
    return btf.place(Field("X", of, path, size)).offset


def test_the_first_member_is_at_0_and_arrays_step_by_their_element(btf: Btf) -> None:
    assert at(btf, "sock", "__sk_common") == 0
    first = at(btf, "net", "ipv4.sysctl_tcp_rmem[0]", 4)
    assert [at(btf, "net", f"ipv4.sysctl_tcp_rmem[{index}]", 4) - first for index in range(3)] == [0, 4, 8]


def test_members_of_nested_and_of_anonymous_structures_are_found(btf: Btf) -> None:
    assert at(btf, "sock", "__sk_common.skc_dport", 2) == 12  # linux/inet_hashtables.h relies on it
    assert at(btf, "tcp_sock", "rtt_min.s[0].v", 4) == at(btf, "tcp_sock", "rtt_min") + 4
    assert at(btf, "sock_common", "skc_family", 2) == 16


def test_a_bit_field_has_its_place_within_its_byte(btf: Btf) -> None:
    send = btf.place(Field("X", "tcp_options_received", "snd_wscale", BITS))
    receive = btf.place(Field("X", "tcp_options_received", "rcv_wscale", BITS))
    assert (send.bits, receive.bits) == (4, 4)
    assert send.offset == receive.offset
    assert {send.shift, receive.shift} == {0, 4}


def test_a_whole_byte_serves_as_bits(btf: Btf) -> None:
    assert btf.place(Field("X", "sock_common", "skc_state", BITS))[1:] == (0, 8)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (Field("X", "sock", "sk_no_such", 4), "no struct sock.sk_no_such in BTF"),
        (Field("X", "no_such_struct", "a", 4), "no struct no_such_struct in BTF"),
        (Field("X", "sock", "sk_rcvbuf.more", 4), "no struct sock.sk_rcvbuf.more in BTF"),
        (Field("X", "sock", "sk_rcvbuf[1]", 4), "no struct sock.sk_rcvbuf[1] in BTF"),
        (Field("X", "net", "ipv4.sysctl_tcp_rmem[3]", 4), "no struct net.ipv4.sysctl_tcp_rmem[3] in BTF"),
        (Field("X", "sock", "sk_rcvbuf", 8), "struct sock.sk_rcvbuf is not 8 bytes here"),
        (Field("X", "sock", "__sk_common", 8), "struct sock.__sk_common is not 8 bytes here"),
        (
            Field("X", "tcp_options_received", "rcv_wscale", 1),
            "struct tcp_options_received.rcv_wscale is not 1 bytes here",
        ),
        (Field("X", "sock", "sk_rcvbuf", BITS), "struct sock.sk_rcvbuf does not lie within one byte here"),
    ],
)
def test_what_is_not_there_or_not_of_that_size_is_told_in_one_line(btf: Btf, field: Field, reason: str) -> None:
    with pytest.raises(UnavailableError) as told:
        btf.place(field)
    assert str(told.value) == reason


def test_tracepoints_are_known_by_name(btf: Btf) -> None:
    assert btf.tracepoint("tcp_probe") > 0
    with pytest.raises(UnavailableError, match=r"^no tracepoint no_such in BTF$"):
        btf.tracepoint("no_such")


def test_a_kernel_without_btf_and_a_broken_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^no BTF: .* is not there$"):
        Libbpf().btf(tmp_path / "vmlinux")
    (tmp_path / "vmlinux").write_bytes(b"\x9f\xeb\x01\x00" + b"\xff" * 60)
    with pytest.raises(UnavailableError, match=r"^no BTF: .* does not parse: "):
        Libbpf().btf(tmp_path / "vmlinux")


def test_the_verifiers_verdict_is_the_last_line_that_says_something() -> None:
    log = "0: R1=ctx()\nunknown func bpf_x#999\nprocessed 3 insns (limit 1000000)\nverification time 9 usec\n\n"
    assert verdict(log) == "unknown func bpf_x#999"
    assert verdict("processed 0 insns\n") == verdict("") == ""
    assert len(verdict("x" * 1000)) == 160
