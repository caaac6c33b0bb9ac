"""Words and bars that every long job shares."""

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from woodshed.console import Terminal


def duration(seconds: float) -> str:
    """Return a time as people read it: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def time_left(done: int, total: int, seconds: float) -> str:
    """Return how long the rest takes at the pace so far."""
    return duration(seconds / done * (total - done)) if done else "?"


class _Status(ProgressColumn):
    """The free text of a task, cut to what the terminal has room for."""

    def render(self, task: "object") -> Text:
        return Text(str(getattr(task, "fields", {}).get("status", "")), overflow="ellipsis", no_wrap=True)


def progress_bar(terminal: Terminal) -> Progress:
    """Return a bar with a title before and a status line after it, which fits a 60-column terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None if terminal.out.width >= 100 else 12),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        _Status(),
        console=terminal.out,
        refresh_per_second=4,
        transient=True,
        expand=True,
    )
