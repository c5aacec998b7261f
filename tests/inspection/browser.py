"""A headless Chromium that is told what to do over two pipes (Chrome DevTools Protocol); needs no other package."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell", "headless_shell")
SECONDS = 60  # for an answer


def find_browser() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Browser:
    """One page in one browser process; ``events`` are what it said unasked, (name, parameters) pairs."""

    def __init__(self, binary: str, profile: Path, *, width: int) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._asked, self._rest, self._session = 0, b"", None
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [
            binary, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
            f"--user-data-dir={profile}", f"--window-size={width},900",
        ]  # fmt: skip

        def reads_from_3_and_writes_to_4() -> None:
            ours = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 100) for end in (theirs_in, theirs_out)]
            os.dup2(ours[0], 3)
            os.dup2(ours[1], 4)

        self._process = subprocess.Popen(
            command, close_fds=False, preexec_fn=reads_from_3_and_writes_to_4, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in), os.close(theirs_out)

    def open(self, address: str) -> None:
        """Shows a page and waits until all of it is there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=address)
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            self._receive()

    def evaluate(self, expression: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"]["value"]

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._asked, "method": method, "params": parameters} | session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._asked:
                assert "result" in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser did not answer in {SECONDS} s"
            received = os.read(self._from, 1 << 20)
            assert received, "the browser has gone"
            self._rest += received
        message, self._rest = self._rest.split(b"\0", 1)
        known = json.loads(message)
        if "method" in known:
            self.events.append((known["method"], known["params"]))
        return known

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to), os.close(self._from)
