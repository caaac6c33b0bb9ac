"""Words, numbers and a block of lines that every long job shares."""

import math

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from woodshed.console import Terminal

FADE = 0.95  # what a value still weighs when the next one comes: about the last twenty count


def duration(seconds: float) -> str:
    """Return a time as people read it: 0.4 s, 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 10:
        return f"{round(seconds, 1):g} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def time_left(done: int, total: int, seconds: float) -> str:
    """Return how long the rest takes at the pace so far."""
    return duration(seconds / done * (total - done)) if done else "?"


def pace(seconds: float, unit: str) -> str:
    """Return how fast something repeats that takes so many seconds, as the larger of 1.25 steps/s and 12.5 s/step."""
    if not seconds:
        return ""
    return f"{1 / seconds:.2f} {unit}s/s" if seconds <= 10 else f"{seconds:.1f} s/{unit}"


class Smoothed:
    """A running mean in which older values fade; numbers that are not finite do not count."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        """Count one more value."""
        if math.isfinite(value):
            self._sum = FADE * self._sum + (1 - FADE) * value
            self._weight = FADE * self._weight + (1 - FADE)

    @property
    def value(self) -> float:
        """The mean; not a number as long as nothing was counted."""
        return self._sum / self._weight if self._weight else math.nan


class LiveBlock:
    """A bar with lines of text below it, redrawn in place, and gone when the job ends.

    No line ever wraps: what the terminal has no room for is cut.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._live = Live(console=terminal.out, refresh_per_second=4, transient=True)

    def show(self, title: str, done: int, total: int, count: str, *lines: str | Text) -> None:
        """Draw the block as it is now.

        Args:
            title: before the bar.
            done, total: how much of the bar is full.
            count: behind the bar.
            lines: below it.
        """
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        row.add_row(title, ProgressBar(total=max(total, 1), completed=done), count)
        texts = [line if isinstance(line, Text) else Text(line) for line in lines if line]
        for text in texts:
            text.no_wrap, text.overflow = True, "ellipsis"
        self._live.update(Group(row, *texts))
        self._live.start(refresh=True)  # does nothing when it has started

    def stop(self) -> None:
        """Take the block off the screen."""
        self._live.stop()
