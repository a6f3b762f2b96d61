"""The two ends of a bulk TCP transfer, each a process of its own (trimtab.flow starts them).

    python -I -m trimtab.bulk receive LISTEN_FD INTERVAL_S
    python -I -m trimtab.bulk send ADDRESS PORT CONGESTION INTERVAL_S SECONDS [SECONDS...]

Both print one JSON object per interval and nothing else: the receiver {"t_ns": end of the interval, "span_ns": its
length, "bytes": received in it}, the sender {"t_ns", "rtt_us": smoothed, "retransmits": since the connection began}.
Neither sets a buffer size: the kernel's own limits are what is measured.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

RECEIVE_BYTES = 1 << 20
ZEROS = bytes(1 << 16)
CONNECT_S = 3.0
TCP_INFO_BYTES = 104
"""Enough of struct tcp_info (linux/tcp.h) for both of these, whose places are ABI."""
TCPI_RTT = 68
TCPI_TOTAL_RETRANS = 100


def say(**line: Any) -> None:
    """Print one line for whoever started us."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def receive(listener: socket.socket, interval_s: float) -> None:
    """Count what all connections bring, from the first one on, until stdin closes and the last connection has."""
    peers: dict[int, socket.socket] = {}
    buffer = bytearray(RECEIVE_BYTES)
    waiting = {listener.fileno(), sys.stdin.fileno()}
    total = begun_ns = 0
    interval_ns = int(interval_s * 1e9)
    while sys.stdin.fileno() in waiting or peers:
        now_ns = time.monotonic_ns()
        if begun_ns and now_ns - begun_ns >= interval_ns:
            say(t_ns=now_ns, span_ns=now_ns - begun_ns, bytes=total)
            begun_ns, total = now_ns, 0
        wait_s = (begun_ns + interval_ns - now_ns) / 1e9 if begun_ns else None
        for fd in select.select([*waiting, *peers], [], [], wait_s)[0]:
            if fd in peers:
                size = _received(peers[fd], buffer)
                total += size
                if not size:
                    peers.pop(fd).close()
            elif fd == listener.fileno():
                peer = listener.accept()[0]
                peers[peer.fileno()] = peer
                begun_ns = begun_ns or time.monotonic_ns()
            else:
                waiting.remove(fd)


def _received(peer: socket.socket, buffer: bytearray) -> int:
    try:
        return peer.recv_into(buffer)
    except ConnectionError:
        return 0


def send(connect: Sequence[str], turns: Sequence[float], interval_s: float) -> None:
    """Send zeros over one connection after the other, so many seconds each. OSError: there is none to be had."""
    address, port, congestion = connect
    for seconds in turns:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            if congestion:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
            sock.settimeout(CONNECT_S)
            sock.connect((address, int(port)))
            _fill(sock, seconds, interval_s)


def _fill(sock: socket.socket, seconds: float, interval_s: float) -> None:
    # The interval is a timeout, too, so that a stalled connection is reported and does not go on for ever.
    sock.settimeout(interval_s)
    now_s = time.monotonic()
    end_s, report_s = now_s + seconds, now_s + interval_s
    while now_s < end_s:
        with contextlib.suppress(TimeoutError):
            sock.send(ZEROS)
        now_s = time.monotonic()
        if now_s >= report_s:
            _report(sock)
            report_s = now_s + interval_s


def _report(sock: socket.socket) -> None:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    rtt_us, retransmits = (struct.unpack_from("I", info, place)[0] for place in (TCPI_RTT, TCPI_TOTAL_RETRANS))
    say(t_ns=time.monotonic_ns(), rtt_us=rtt_us, retransmits=retransmits)


def main(argv: Sequence[str]) -> int:
    """Be one end; 1 with one line when there is no connection to be had."""
    try:
        if argv[0] == "receive":
            with socket.socket(fileno=int(argv[1])) as listener:
                receive(listener, float(argv[2]))
        else:
            interval_s, *turns = map(float, argv[4:])
            send(argv[1:4], turns, interval_s)
    except BrokenPipeError:
        # Nobody reads our lines any more: the lab is gone.
        return 1
    except OSError as error:
        sys.stderr.write(f"bulk {argv[0]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
