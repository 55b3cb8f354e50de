"""Headless Chromium, driven through its DevTools protocol: keys, scripts, downloads, pictures."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 30.0


class Page:
    """One open page."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Go to an address and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url="about:blank")  # else another #fragment of the same page would not load it again
        self.call("Page.navigate", url=address)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(address)}")

    def value(self, script: str) -> Any:
        """What a script is worth, as JSON; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a script is true."""
        until(lambda: bool(self.value(condition)), condition)

    def press(self, *keys: str) -> None:
        """Keys, one after the other, as a keyboard sends them."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path: Path) -> None:
        """What is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds; fails when it takes too long."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.05)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, which keeps its profile and its downloads under `folder`."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    connect = pytest.importorskip("websockets.sync.client").connect
    profile, downloads = folder / "profile", folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    flags = ["--headless", "--no-sandbox", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
    command = [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            told = profile / "DevToolsActivePort"
            until(lambda: told.is_file() and told.read_text().count("\n") > 0, "Chromium says its port")
            port = told.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE_S) as listed:
                target = next(one for one in json.load(listed) if one["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
                page = Page(socket)
                page.call("Page.enable")
                page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
                yield page
        finally:
            process.kill()
