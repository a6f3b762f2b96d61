"""A network of one's own to try things in: namespaces joined by a veth pair or by a relay with delay, loss and rate.

    with Lab() as lab:
        a, b = lab.netns("a"), lab.netns("b")
        relay = lab.relay(a, b, Way(delay_ms=20, rate_mbit=400))
        a.sysctl("net.ipv4.tcp_wmem", "4096 16384 262144")
        for sample in lab.bulk(a, b, Plan(seconds=5)):
            print(sample.mbit)
        relay.set(loss=0.01)

Needs root. Touches nothing of the host's: all devices are inside the namespaces, which have no names. The namespaces
hang on descriptors of this process, all processes end with it: nothing stays, whatever ends it. The demo, tests and
bench use it. To be made and used in one thread, the one that lives longest (see Children.start).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute

from trimtab.flow import Flow, Plan
from trimtab.namespace import Children, NetNs
from trimtab.relay import REQUEST_BYTES, Way

__all__ = ["Flow", "Lab", "Link", "NetNs", "Plan", "Relay", "RelayError", "Way"]

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
NUD_PERMANENT = 0x80
"""linux/neighbour.h"""
TUN_QUEUE_PACKETS = 10_000
"""What a device holds while the relay is at something else: its queue must not be the bottleneck."""
CONTROL_TIMEOUT_S = 10.0


class RelayError(OSError):
    """The relay refused what was asked, or is gone."""


@dataclasses.dataclass(frozen=True)
class Link:
    """Two namespaces joined: each side's address and interface."""

    a: NetNs
    b: NetNs
    a_address: str
    b_address: str
    a_device: str
    b_device: str

    def address_of(self, netns: NetNs) -> str:
        """The address of that side."""
        return self.a_address if netns is self.a else self.b_address


class Relay:
    """A link through a relay process, whose settings can be changed as it runs."""

    def __init__(self, link: Link, pid: int, control: socket.socket) -> None:
        self.link = link
        self.pid = pid
        self._control = control

    def set(self, way: str = "", **settings: float) -> None:
        """Change fields of relay.Way (loss=0.01), both ways or only "ab" or "ba". RelayError when refused."""
        self._ask({"set": settings} | ({"way": way} if way else {}))

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counters of each way, "ab" and "ba"; see relay.Lane.stats."""
        return self._ask({"stats": True})

    def close(self) -> None:
        """End the relay; its devices go with it."""
        self._control.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._control.send(json.dumps(request).encode())
            answer: dict[str, Any] = json.loads(self._control.recv(REQUEST_BYTES) or "{}")
        except OSError as error:
            raise RelayError(f"the relay does not answer: {error}") from None
        if "error" in answer or not answer:
            raise RelayError(answer.get("error", "the relay is gone"))
        return answer


class Lab:
    """See the module. A context manager; close() may be called more than once."""

    def __init__(self) -> None:
        self._children = Children()
        self._namespaces: list[NetNs] = []
        self._links: list[Link] = []
        self._relays: list[Relay] = []

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and let go of all namespaces."""
        for relay in self._relays:
            relay.close()
        self._children.close()
        for netns in self._namespaces:
            netns.close()

    def netns(self, name: str = "") -> NetNs:
        """A new namespace; the name is only for people."""
        netns = NetNs(name or f"tt{len(self._namespaces)}", self._children)
        self._namespaces.append(netns)
        return netns

    def veth(self, a: NetNs, b: NetNs, mtu: int = 1500) -> Link:
        """Join two namespaces by a veth pair."""
        link = self._link(a, b, "veth")
        a.run(_veth, link, b.fd, mtu)
        for netns, address, device in _sides(link):
            netns.run(_up, device, address)
        return link

    def relay(self, a: NetNs, b: NetNs, way: Way, mtu: int = 1500, *, offload: bool = True, seed: int = 1) -> Relay:
        """Join two namespaces by a relay: `way` holds for both ways (delay_ms=20: a round trip of 40).

        offload: the devices take segments of up to 64 KiB, as a network card with TSO and GRO does, and several Gbit/s
        pass; without it each packet passes, and is lost, by itself. seed: of the losses.
        """
        link = self._link(a, b, "tun")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(CONTROL_TIMEOUT_S)
        with contextlib.ExitStack() as once_started, theirs:
            tuns: list[int] = []
            for netns, address, device in _sides(link):
                tuns.append(netns.run(_tun, device, offload))
                once_started.callback(os.close, tuns[-1])
                netns.run(_up, device, address, mtu=mtu, txqlen=TUN_QUEUE_PACKETS)
                netns.run(_keep_neighbour, device)
            options = [f"--{field.replace('_', '-')}={value}" for field, value in dataclasses.asdict(way).items()]
            argv = [sys.executable, "-I", "-m", "trimtab.relay", f"--seed={seed}", *options]
            argv += ["--control", str(theirs.fileno()), "--tun", *map(str, tuns)]
            child = self._children.start(argv, pass_fds=[*tuns, theirs.fileno()])
        relay = Relay(link, child.pid, ours)
        self._relays.append(relay)
        relay.stats()  # answers once it runs
        return relay

    def bulk(self, sender: NetNs, receiver: NetNs, plan: Plan) -> Flow:
        """Send bulk TCP over the last link made between these two. LookupError when there is none."""
        for link in reversed(self._links):
            if {link.a, link.b} == {sender, receiver}:
                return Flow(sender, receiver, link.address_of(receiver), plan, self._children)
        raise LookupError(f"nothing joins {sender.name} and {receiver.name}")

    def _link(self, a: NetNs, b: NetNs, kind: str) -> Link:
        number = len(self._links)
        net, device = f"10.77.{number}", f"{kind}{number}"
        link = Link(a, b, f"{net}.1", f"{net}.2", device, device)
        self._links.append(link)
        return link


def _sides(link: Link) -> Iterator[tuple[NetNs, str, str]]:
    yield link.a, link.a_address, link.a_device
    yield link.b, link.b_address, link.b_device


def _tun(device: str, offload: bool) -> int:
    """A new TUN device in the calling thread's namespace; it lives as long as a descriptor of it does."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if offload else 0)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    if offload:
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return fd


def _veth(link: Link, peer_fd: int, mtu: int) -> None:
    with IPRoute() as route:
        peer = {"ifname": link.b_device, "net_ns_fd": peer_fd, "mtu": mtu}
        route.link("add", ifname=link.a_device, kind="veth", mtu=mtu, peer=peer)


def _up(device: str, address: str, **settings: int) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=device)[0]
        route.addr("add", index=index, address=address, prefixlen=24)
        route.link("set", index=index, state="up", **settings)


def _keep_neighbour(device: str) -> None:
    """Have the kernel keep the one neighbour entry that a device without addresses uses, that of 0.0.0.0.

    The ARP table is the host's, for all namespaces: while it is full an entry that was collected cannot be made again,
    and each packet is dropped. A permanent one is not collected and does not count (arp_constructor in net/ipv4/arp.c,
    neigh_alloc in net/core/neighbour.c).
    """
    with IPRoute() as route:
        route.neigh("add", dst="0.0.0.0", ifindex=route.link_lookup(ifname=device)[0], state=NUD_PERMANENT)
