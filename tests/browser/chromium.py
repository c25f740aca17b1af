"""Chromium without a window, driven over a pipe by its DevTools protocol: no package, no driver."""

import base64
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--mute-audio",
    "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
)  # fmt: skip
# Chromium expects its ends of the pipes as descriptors 3 and 4
LAUNCHER = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page of a running Chromium, which reads from `requests` and writes to `replies`."""

    def __init__(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        self.requests, self.replies = requests, replies
        self.count, self.session = 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol; events that come before it are passed over."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters, **self.session}
        self.requests.write(json.dumps(message).encode() + b"\0")
        while (reply := json.loads(self._read())).get("id") != self.count:
            pass
        assert "error" not in reply, reply
        return reply["result"]

    def _read(self) -> bytes:
        characters = bytearray()
        while (character := self.replies.read(1)) != b"\0":
            assert character, "Chromium has ended"
            characters += character
        return bytes(characters)

    def open(self, url: str) -> None:
        """Returns once the page is loaded, if not all that its scripts do."""
        self.call("Page.navigate", url=url)
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value, as JSON allows it, of a JavaScript expression, which may be a promise."""
        options = {"awaitPromise": True, "returnByValue": True}
        result = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def choose(self, selector: str, *files: Path) -> None:
        """Gives files to a file picker."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector('{selector}')")["result"]
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["objectId"])

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def chromium(program: str, folder: Path, *options: str) -> Iterator[Page]:
    """An empty page of a new Chromium, which keeps its files in `folder` and ends with the context."""
    theirs_in, requests = os.pipe()
    replies, theirs_out = os.pipe()
    passed = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]  # out of the launcher's way
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root may not have it
    command = [program, *OPTIONS, *sandbox, *options, f"--user-data-dir={folder}", "about:blank"]
    launcher = [sys.executable, "-c", LAUNCHER, *map(str, passed), *command]
    silent = subprocess.DEVNULL
    with subprocess.Popen(launcher, pass_fds=passed, stdout=silent, stderr=silent) as process:
        for end in (theirs_in, theirs_out, *passed):
            os.close(end)
        with open(requests, "wb", buffering=0) as to_browser, open(replies, "rb") as from_browser:
            try:
                yield Page(to_browser, from_browser)
            finally:
                process.terminate()
