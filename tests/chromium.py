"""A headless Chromium for tests, spoken to through its pipe (the DevTools protocol), with nothing else needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
# Chromium reads its orders from descriptor 3 and answers on 4.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """The browser's path."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """One page in it. `complaints`: what its console holds."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._rest = b""
        self._number = 0
        self._session = ""
        self._asked: dict[str, str] = {}
        self.complaints: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """One order, and its result. AssertionError: the browser says no."""
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._answers, 1 << 20)
            assert more, "Chromium has ended"
            self._rest += more
        raw, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(raw)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self._asked[parameters["requestId"]] = parameters["request"]["url"]
            case "Network.loadingFailed" if parameters.get("blockedReason"):
                # Never sent: the page's own policy forbids it.
                self._asked.pop(parameters["requestId"], None)
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(parameters["args"]))
            case "Page.loadEventFired":
                self._loaded = True

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        self.run("0")
        return list(self._asked.values())

    def open(self, page: Path, wide: int, high: int, scheme: str = "light") -> None:
        """Load it, on a screen of this size in this colour scheme."""
        mobile = wide < 500
        self.call("Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._asked.clear()
        self.complaints.clear()
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._note(self._next())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """With the mouse, at this place of the window."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def move(self, x: float, y: float) -> None:
        """Let the pointer hover there."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """A key."""
        codes = {"Escape": 27, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "Tab": 9}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **more)

    def picture(self, clip: tuple[float, float, float, float] | None = None) -> bytes:
        """A PNG of the window, or of x, y, width, height of the page."""
        more: dict[str, Any] = {}
        if clip:
            more["clip"] = dict(zip(("x", "y", "width", "height", "scale"), (*clip, 1), strict=True))
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=bool(clip), **more)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Started, with one tab; ended with the context."""
    low = (*os.pipe(), *os.pipe())
    # Out of the way of 3 and 4, which two of these become in the child.
    there, mine, answers, theirs = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 20) for number in low)
    for number in low:
        os.close(number)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    argv = [sys.executable, "-c", START, str(there), str(theirs), str(find()), *FLAGS, *sandbox]
    process = subprocess.Popen(
        [*argv, f"--user-data-dir={profile}"], pass_fds=(there, theirs), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(there)
    os.close(theirs)
    try:
        tab = Tab(mine, answers)
        yield tab
        tab.call("Page.close")
    finally:
        os.close(mine)
        os.close(answers)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pixels(png: bytes) -> list[bytes]:
    """The rows of an RGB or RGBA picture of 8 bits (PNG, a W3C recommendation, sections 9 and 10)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, packed, wide, each = 8, b"", 0, 0
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        data = png[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            wide, _, depth, colour = struct.unpack_from(">IIBB", data)
            assert depth == 8
            each = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            packed += data
        place += length + 12
    raw, stride = zlib.decompress(packed), wide * each
    rows: list[bytes] = []
    before = bytes(stride)
    for start in range(0, len(raw), stride + 1):
        before = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), before, each)
        rows.append(before)
    return rows


def _unfiltered(kind: int, row: bytearray, above: bytes, each: int) -> bytes:
    for place in range(len(row)):
        left = row[place - each] if place >= each else 0
        corner = above[place - each] if place >= each else 0
        guess = (0, left, above[place], (left + above[place]) // 2, _paeth(left, above[place], corner))[kind]
        row[place] = (row[place] + guess) & 255
    return bytes(row)


def _paeth(left: int, above: int, corner: int) -> int:
    about = left + above - corner
    return min((left, above, corner), key=lambda value: abs(about - value))
