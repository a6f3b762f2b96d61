"""TCP: a long fat path, memory for many flows, a rush to one listener, one client's local ports, a path with losses."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from scene import Scene, Settings

from trimtab.lab import Lab, Way

PORT = 8080
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: an end without TIME_WAIT."""


class IperfScene(Scene):
    """Mbit/s that iperf3 gets through a path."""

    unit = "Mbit/s"
    way = Way()
    flows = 1
    seconds = 6
    measure_s = 20.0

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.address = lab.relay(self.a, self.b, self.way).link.b_address

    def round(self) -> float:
        """New connections, without their first two seconds."""
        server = self.b.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        argv = ["iperf3", "-J", "-c", self.address, "-P", str(self.flows), "-O", "2", "-t", str(self.seconds)]
        said = json.loads(self.a.command(argv, timeout_s=60))
        server.wait(10)
        return float(said["end"]["sum_received"]["bits_per_second"]) / 1e6


class TcpBuffer(IperfScene):
    """One flow over 300 Mbit/s and 160 ms: 6 MB are under way, as much again waits to be acknowledged."""

    name = decider = "tcp_buffer"
    way = Way(delay_ms=80, rate_mbit=300, queue_kib=8192)
    best: ClassVar[Settings] = {"net.ipv4.tcp_rmem": "4096 131072 67108864", "net.ipv4.tcp_wmem": "4096 16384 67108864"}


class TcpMemory(IperfScene):
    """Twelve flows over 400 Mbit/s and 30 ms, on a host with little memory for TCP."""

    name = decider = "tcp_memory"
    way = Way(delay_ms=15, rate_mbit=400, queue_kib=4096)
    flows = 12
    host = True
    start: ClassVar[Settings] = {"net.ipv4.tcp_mem": "450 600 900"}
    best: ClassVar[Settings] = {"net.ipv4.tcp_mem": "73728 98304 147456"}


class ListenQueue(Scene):
    """Seven thousand clients come at once to a server that is busy just then, and listens anew after each time."""

    name = decider = "listen_queue"
    crowd = 7000
    best: ClassVar[Settings] = {"net.core.somaxconn": 16384, "net.ipv4.tcp_max_syn_backlog": 16384}

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        self.address = lab.veth(self.a, self.b).b_address
        self.server = self.b.run(socket.create_server, ("0.0.0.0", PORT))
        self.server.setblocking(False)

    def round(self) -> float:
        """How many wait for it before the first that found no room tries again, a second later."""
        self.b.run(self.server.listen, 65535)
        self.a.run(self._rush)
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.server.accept()[0].close()
                taken += 1
        time.sleep(1.0)
        return 100 * min(1.0, taken / self.crowd)

    def _rush(self) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(self.crowd):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.setblocking(False)
                sock.connect_ex((self.address, PORT))

    def close(self) -> None:
        """Our end."""
        self.server.close()


TAKER = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}), backlog=4096)
while True:
    taken = server.accept()[0]
    taken.recv(1)
    taken.close()
"""


class Ports(Scene):
    """Six hundred short connections a second to one place; each leaves its port in TIME_WAIT for a minute."""

    name = decider = "ports"
    per_s = 600
    start: ClassVar[Settings] = {"net.ipv4.ip_local_port_range": "32768 38767"}
    best: ClassVar[Settings] = {"net.ipv4.ip_local_port_range": "10240 65535", "net.ipv4.tcp_tw_reuse": 1}
    warm_s = 30.0
    measure_s = 20.0

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.address = lab.veth(self.a, self.b).b_address
        self.server = self.b.popen([sys.executable, "-I", "-c", TAKER])
        time.sleep(0.5)

    def round(self) -> float:
        """How many of a second's find a port at the first try."""
        return 100 * self.a.run(self._connect) / self.per_s

    def _connect(self) -> int:
        found, began_s = 0, time.monotonic()
        for number in range(self.per_s):
            time.sleep(max(0.0, began_s + number / self.per_s - time.monotonic()))
            with contextlib.suppress(OSError), socket.create_connection((self.address, PORT), 5.0):
                found += 1
        return found


SINK = """
import socket, sys, threading
def drain(end):
    with end:
        while end.recv(1 << 20):
            pass
server = socket.socket(fileno=int(sys.argv[1]))
while True:
    threading.Thread(target=drain, args=(server.accept()[0],)).start()
"""


class Congestion(Scene):
    """Three at a time, connections of 1 MB over 40 Mbit/s and 20 ms, on which two packets of a hundred are lost. Needs
    a kernel that has bbr (tcp_available_congestion_control)."""

    name = decider = "congestion"
    unit = "Mbit/s"
    far = "203.0.113.5"
    size = 1_000_000
    at_once = 3
    seconds = 5.0
    # Nothing of the path is to be remembered from one connection for the next.
    start: ClassVar[Settings] = {"net.ipv4.tcp_congestion_control": "reno", "net.ipv4.tcp_no_metrics_save": 1}
    best: ClassVar[Settings] = {"net.ipv4.tcp_congestion_control": "bbr"}
    measure_s = 20.0

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        # Without offload, so that each packet is lost by itself.
        link = lab.relay(self.a, self.b, Way(delay_ms=10, rate_mbit=40, loss=0.02), offload=False).link
        self.b.command(["ip", "addr", "add", f"{self.far}/32", "dev", "lo"])
        self.a.command(["ip", "route", "add", "default", "via", link.b_address])
        with self.b.run(socket.create_server, ("0.0.0.0", PORT), backlog=64) as server:
            self.b.popen([sys.executable, "-I", "-c", SINK, str(server.fileno())], pass_fds=[server.fileno()])

    def round(self) -> float:
        """What those get through that have ended within a few seconds, each followed by the next."""
        began_s = time.monotonic()
        with ThreadPoolExecutor(self.at_once) as threads:
            ended = sum(threads.map(lambda _: self.a.run(self._send, began_s + self.seconds), range(self.at_once)))
        return ended * self.size * 8e-6 / (time.monotonic() - began_s)

    def _send(self, until_s: float) -> int:
        ended = 0
        while time.monotonic() < until_s:
            with socket.create_connection((self.far, PORT), 20.0) as sock:
                sock.sendall(bytes(self.size))
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
            ended += 1
        return ended
