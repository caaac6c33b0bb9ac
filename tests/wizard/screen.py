"""A real pseudo-terminal: the program runs in it, keys are pressed, and the screen is read as a person would see it."""

import os
import signal
import sys
import time

import pexpect
import pyte

DOWN, UP, ESCAPE, ENTER, CTRL_C = "\x1b[B", "\x1b[A", "\x1b", "\r", "\x03"


class Screen:
    """The program in a terminal of so many columns and rows."""

    def __init__(self, *words, columns=80, rows=40, **environment) -> None:
        self.display = pyte.HistoryScreen(columns, rows, history=5000, ratio=0.5)
        self._stream = pyte.ByteStream(self.display)
        self.raw = b""
        names = {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **environment}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "woodshed", *words],
            dimensions=(rows, columns),
            env={**os.environ, **names, "COLUMNS": "", "LINES": ""},
            timeout=60,
        )
        self.child.delaybeforesend = None

    def _read(self, seconds: float = 0.05) -> bool:
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        if b"\x1b[6n" in data:  # the program asks where the cursor is
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

    def answer(self, question: str, keys: str = ENTER, seconds: float = 60) -> None:
        """Wait for a question and answer it; the question gives way, so that it can come again."""
        self.wait_for(question, seconds)
        self.press(keys)
        until = time.monotonic() + seconds
        while f"{question}\n" in f"{self.text}\n" and time.monotonic() < until and self._read():
            pass

    def enter_until(self, text: str, seconds: float = 120) -> None:
        """Press Enter at every question until something comes up."""
        until = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < until, f"{text!r} never came up. The screen:\n{self.text}"
            if self._is_quiet() and text not in self.text:
                self.press(ENTER)
                self._read(1)

    def _is_quiet(self, seconds: float = 0.15) -> bool:
        """Read what there is; return whether the program then waits for keys at a question."""
        before = len(self.raw)
        assert self._read(seconds), f"The program ended. The screen:\n{self.text}"
        return len(self.raw) == before and self.text.rstrip().endswith(("\u203a", ">"))

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
