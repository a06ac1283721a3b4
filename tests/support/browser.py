"""A headless Chromium that a test talks to through a pipe: no driver, no library, no port."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from support.host import require

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
_ANSWER_S = 60.0


def _raised(fd: int) -> int:
    """The same open file under a number that is out of the way of 3 and 4."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return high


class Browser:
    """A browser with one page open.

    Parameters
    ----------
    profile
        An empty directory for its files.
    """

    def __init__(self, profile: Path) -> None:
        require("chromium", CHROMIUM is not None, "install it with: apt-get install chromium")
        assert CHROMIUM is not None
        self._number = 0
        self._session = ""
        self._read = b""
        to_read, self._to = map(_raised, os.pipe())
        self._from, to_write = map(_raised, os.pipe())
        # It reads descriptor 3 and writes 4: a shell puts ours there.
        script = f'exec "$@" 3<&{to_read} 4>&{to_write} {to_read}<&- {to_write}>&-'
        try:
            self._process = subprocess.Popen(
                ["bash", "-c", script, "bash", CHROMIUM, *_QUIET, f"--user-data-dir={profile}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(to_read, to_write),
            )
        finally:
            os.close(to_read)
            os.close(to_write)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is there."""
        self._ask("Page.navigate", url=url)
        deadline = time.monotonic() + _ANSWER_S
        while self.value("location.href + document.readyState") != f"{url}complete":
            assert time.monotonic() < deadline, f"{url} is not loaded"
            time.sleep(0.02)

    def look_like(self, *, width: int, height: int, scheme: str = "light", scale: int = 1) -> None:
        """Have a window of this size, for someone who prefers this colour scheme."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._ask("Emulation.setEmulatedMedia", features=[feature])

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        answer = self._ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._ask("Browser.close")
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise OSError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            piece = os.read(self._from, 1 << 16) if ready else b""
            if not piece:
                raise OSError("the browser does not answer")
            self._read += piece
        line, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(line))
