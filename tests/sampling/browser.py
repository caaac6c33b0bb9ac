"""A real browser without a window, spoken to through a pipe in the DevTools protocol: nothing to install but it."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 30
BECOME = """import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads from 3 and writes to 4."""


def find_browser():
    """Return the path of a Chromium or Chrome, or None; pipes with fixed numbers exist on POSIX only."""
    if sys.platform == "win32":
        return None
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page in a browser of its own."""

    def __init__(self, program, profile):
        theirs, self._out = os.pipe()
        self._in, back = os.pipe()
        words = [
            *(program, "--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
            *("--autoplay-policy=no-user-gesture-required", "--no-first-run", "--disable-gpu", "about:blank"),
        ]
        become = [sys.executable, "-c", BECOME, str(theirs), str(back), *words]
        self._process = subprocess.Popen(become, pass_fds=(theirs, back), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(back)
        self._left, self._number, self._session = b"", 0, None
        self.requests, self.complaints = [], []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        for end in (self._out, self._in):
            os.close(end)
        self._process.terminate()
        self._process.wait(timeout=SECONDS)

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        """Return the next message; note requests and complaints on the way."""
        until = time.monotonic() + SECONDS
        while b"\0" not in self._left:
            if not select.select([self._in], [], [], max(until - time.monotonic(), 0))[0]:
                raise TimeoutError("the browser is silent")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise TimeoutError("the browser has gone")
            self._left += piece
        line, self._left = self._left.split(b"\0", 1)
        message = json.loads(line)
        given = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(given))
        return message

    def open(self, path):
        self.call("Page.navigate", url=path.as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script):
        """Return what a script gives, waiting for it if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def spoken(self, role):
        """Return what a screen reader says of everything with a role."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == role]
