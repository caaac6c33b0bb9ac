"""A real pseudo-terminal: the program runs in it, keys are pressed, and the screen is read as a person would see it."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

import pexpect
import pyte

DOWN, UP, ESCAPE, ENTER, CTRL_C = "\x1b[B", "\x1b[A", "\x1b", "\r", "\x03"
OPENS, CLOSES = b"\x1b[?2004h", b"\x1b[?2004l"
MARKS = ("\u203a", ">")  # behind which an answer is typed
PATIENCE = 120  # seconds; nothing takes that long but on a machine that is very busy


class Screen:
    """The program in a terminal of so many columns and rows."""

    def __init__(self, *words, columns=80, rows=40, **environment) -> None:
        self.display = pyte.HistoryScreen(columns, rows, history=5000, ratio=0.5)
        self._stream = pyte.ByteStream(self.display)
        self.raw = b""
        self._start = 0
        names = {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **environment}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "woodshed", *words],
            dimensions=(rows, columns),
            env={**os.environ, **names, "COLUMNS": "", "LINES": ""},
            timeout=60,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background may ignore it
        )
        self.child.delaybeforesend = None

    def _read(self, seconds: float = 0.05) -> bool:
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        for part in re.split(rb"(?<=\x1b\[6n)|(?=\x1b\[[?]2004h)", data):
            if part.startswith(OPENS):  # questions are drawn from here on
                self._start = len(self.display.history.top) + self.display.cursor.y
            self.raw += part
            self._stream.feed(part)
            if part.endswith(b"\x1b[6n"):  # the program asks where the cursor is
                self.child.send(f"\x1b[{self.display.cursor.y + 1};{self.display.cursor.x + 1}R")
        return True

    @property
    def text(self) -> str:
        """What is on the screen now."""
        return "\n".join(row.rstrip() for row in self.display.display).rstrip()

    @property
    def all_text(self) -> str:
        """What was ever printed and stayed, with what is on the screen."""
        past = ["".join(row[x].data for x in range(self.display.columns)).rstrip() for row in self.display.history.top]
        return "\n".join([*past, self.text])

    @property
    def unbroken(self) -> str:
        """The same without line breaks, for what the terminal broke in the middle."""
        rows = [row.ljust(self.display.columns) for row in self.all_text.split("\n")]
        return "".join(rows)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until the screen shows something."""
        until = time.monotonic() + seconds
        is_alive = True
        while text not in self.text:
            if not is_alive or time.monotonic() > until:
                raise AssertionError(f"{text!r} never came up. The screen:\n{self.text}")
            is_alive = self._read()

    def press(self, keys: str) -> None:
        """Press keys."""
        self.child.send(keys)

    @property
    def is_asking(self) -> bool:
        """Whether a question is drawn and waits for keys.

        A question switches the terminal's bracketed paste on and its end switches it off again, so that one which was
        answered is never taken for one that still waits, however slow the machine.
        """
        return self.raw.rfind(OPENS) > self.raw.rfind(CLOSES) and self.text.endswith(MARKS)

    @property
    def question(self) -> str:
        """What the question that waits takes of the screen, up to where the answer is typed."""
        first = max(self._start - len(self.display.history.top), 0)
        return "\n".join(row.strip() for row in self.text.split("\n")[first:]).strip()

    @property
    def title(self) -> str:
        """The title of the question that waits."""
        return self.question.split("\n")[0].split(" (")[0]

    @property
    def selected(self) -> str:
        """The choice that is highlighted: its number, title and note."""
        rows = [row for row in self.question.splitlines()[:-1] if row.startswith(MARKS)]
        return rows[0][1:].strip() if rows else ""

    def is_asked(self, title: str) -> bool:
        """Tell whether the question that waits has this title."""
        return self.is_asking and self.title == title

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Read until something holds.

        Raises:
            AssertionError: when it never does; with the screen.
        """
        until = time.monotonic() + seconds
        is_alive = True
        while not holds():
            if not is_alive or time.monotonic() > until:
                raise AssertionError(f"{what} never came up. The screen:\n{self.text}")
            is_alive = self._read()

    def wait_for_question(self, title: str = "", seconds: float = PATIENCE) -> None:
        """Wait until a question, or any, waits for an answer."""
        self.wait_until(
            (lambda: self.is_asked(title)) if title else (lambda: self.is_asking), f"the question {title!r}", seconds
        )

    def type(self, keys: str) -> None:
        """Press keys that end the question that waits, and see it end."""
        before = self.raw.count(CLOSES)
        self.press(keys)
        self.wait_until(lambda: self.raw.count(CLOSES) > before, f"an end of the question after {keys!r}")

    def answer(self, title: str, keys: str = "", *, end: str = ENTER, seconds: float = PATIENCE) -> None:
        """Wait for a question and answer it."""
        self.wait_for_question(title, seconds)
        self.type(keys + end)

    def enter_until(self, title: str, seconds: float = PATIENCE) -> int:
        """Press Enter at every question until one comes up, which is left waiting; return how often."""
        count = 0
        while True:
            self.wait_for_question(seconds=seconds)
            if self.is_asked(title):
                return count
            self.type(ENTER)
            count += 1

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal, as a dragged window does."""
        self.display.resize(rows, columns)
        self.child.setwinsize(rows, columns)
        self.child.kill(signal.SIGWINCH)

    def finish(self, seconds: float = 30) -> int:
        """Wait until the program ends; return its exit code."""
        until = time.monotonic() + seconds
        while self._read(0.1):
            assert time.monotonic() < until, f"The program does not end. The screen:\n{self.text}"
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else 128 + self.child.signalstatus
