"""Chromium without a window, driven by the DevTools protocol over a pipe: opens a page, hears what it asks for, looks at it.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROGRAMS = ("chromium", "chromium-headless-shell", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--remote-debugging-pipe", "--mute-audio", "--autoplay-policy=no-user-gesture-required"),
)
_TIMEOUT_S = 60.0


def find_chromium() -> str | None:
    """Return the program, or None if it is not installed."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Tab:
    """One page of a browser.

    Attributes
    ----------
    requested
        URLs that it asked for, the page's own first.
    said
        What stands in its console, and what was not caught.
    """

    _channel: _Channel
    _session: str
    requested: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        loaded = self._channel.listen("Page.loadEventFired")
        self._ask("Page.navigate", url=url)
        self._channel.wait(loaded)
        self.settle()

    def resize(self, width: int, height: int = 900, *, is_dark: bool = False) -> None:
        """Give the window a size in CSS pixels, and a preference of colours."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if is_dark else "light"
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives; a promise is waited for."""
        done = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(
                f"page: expected {expression!r} to give something, got {done['exceptionDetails']['text']}"
            )
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, by its name in JavaScript: a letter, or e.g. ArrowRight."""
        typed = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, **(typed if kind == "keyDown" else {}))

    def save_into(self, folder: Path) -> None:
        """Put what the page lets a person save into a folder."""
        self._ask("Page.setDownloadBehavior", behavior="allow", downloadPath=os.fspath(folder))

    def photograph(self, file: Path, height: int | None = None) -> None:
        """Write a PNG of the page from its top: all of it, or so many pixels."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], height or 16_000), "scale": 1}
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def settle(self, seconds: float = 0.3) -> None:
        """Hear what the page still does for a while."""
        self._channel.wait_for_time(seconds)

    def hear(self, message: dict[str, Any]) -> None:
        """Take in what the browser tells of this page."""
        about = message.get("params", {})
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requested.append(about["request"]["url"])
            case "Log.entryAdded":
                self.said.append(f"{about['entry']['level']}: {about['entry']['text']}")
            case "Runtime.consoleAPICalled":
                self.said.append(f"{about['type']}: {about['args']}")
            case "Runtime.exceptionThrown":
                self.said.append(f"exception: {about['exceptionDetails']['text']}")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._channel.ask(method, parameters, self._session)


class _Channel:
    """Messages to and from a browser, each ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._awaited: dict[str, int] = {}
        self.tabs: dict[str, Tab] = {}

    def ask(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        self._hear_until(lambda: number in self._answers, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"browser: expected an answer to {method}, got {answer['error']['message']}")
        return answer["result"]

    def listen(self, method: str) -> tuple[str, int]:
        return method, self._awaited.setdefault(method, 0)

    def wait(self, listened: tuple[str, int]) -> None:
        method, n_before = listened
        self._hear_until(lambda: self._awaited[method] > n_before, method)

    def wait_for_time(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._hear(left)

    def _hear_until(self, is_done: Any, what: str) -> None:
        end = time.monotonic() + _TIMEOUT_S
        while not is_done():
            if time.monotonic() > end:
                raise TimeoutError(f"browser: {what} did not come within {_TIMEOUT_S:g} s")
            self._hear(1.0)

    def _hear(self, timeout_s: float) -> None:
        if not select.select([self._from], [], [], timeout_s)[0]:
            return
        data = os.read(self._from, 2**16)
        if not data:
            raise RuntimeError("the browser has ended")
        *messages, self._buffer = (self._buffer + data).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
                continue
            if message["method"] in self._awaited:
                self._awaited[message["method"]] += 1
            if (tab := self.tabs.get(message.get("sessionId", ""))) is not None:
                tab.hear(message)


@contextlib.contextmanager
def opened_tab(folder: Path) -> Iterator[Tab]:
    """Start Chromium with a new empty profile in `folder`, and end it with the block."""
    program = find_chromium()
    if program is None:
        raise FileNotFoundError("Chromium is not installed; run `apt-get install chromium`")
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # The browser reads from 3 and writes to 4, whatever these are called here.
    launch = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/bash", "-c", launch, program, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            pass_fds=(to_read, from_write),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Whatever it puts beside its profile goes with it.
            env={**os.environ, "HOME": os.fspath(folder)},
        )
    os.close(to_read)
    os.close(from_write)
    try:
        channel = _Channel(to_write, from_read)
        target = channel.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = channel.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = channel.tabs[session] = Tab(channel, session)
        for domain in ("Page", "Network", "Log", "Runtime"):
            channel.ask(f"{domain}.enable", {}, session)
        yield tab
        channel.ask("Browser.close", {})
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(to_write)
        os.close(from_read)
