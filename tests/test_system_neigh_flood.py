"""Gratuitous ARP without end: told of, and nothing written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from instance_world import Trimtab, instance

from trimtab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CLAIMS = """
import itertools, socket, struct, sys, time
device, address = sys.argv[1], socket.inet_aton(sys.argv[2])
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind((device, 0))
for number in itertools.count(1):
    card = bytes((2, 0, 0, 0, number >> 8 & 255, number & 255))
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + card + address + card + address
    sender.send(b"\\xff" * 6 + card + struct.pack("!H", 0x0806) + arp)
    time.sleep(0.02)
"""


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


@pytest.mark.long
def test_two_hosts_that_claim_one_address_all_the_time_are_told_of_in_the_status(trimtab: Trimtab) -> None:
    with Lab() as lab:
        a, b = lab.netns("a"), lab.netns("b")
        link = lab.veth(a, b)
        known = f"{link.b_address} lladdr 02:00:00:00:00:09 dev {link.a_device} nud reachable"
        a.command(["ip", "neigh", "replace", *known.split()])
        trimtab.start("--mode", "enforce", "--only", "neigh_table")
        b.popen([sys.executable, "-I", "-c", CLAIMS, link.b_device, link.b_address])
        trimtab.until(lambda: "drop_gratuitous_arp" in trimtab.run("status").stdout, "advice")
        assert f"netns {a.inode}" in trimtab.run("status").stdout
        assert a.sysctl("net.ipv4.conf.all.drop_gratuitous_arp") == "0"
        assert trimtab.documents("history") == []
