"""The one place that prints: results to standard output, problems to standard error.

Colour and cursor movement are used only on a real terminal and never with `--plain` or NO_COLOR.
"""

import sys
import textwrap
from functools import partial

from rich.console import Console


class Terminal:
    """Where the program speaks.

    Args:
        plain: no colour, no cursor movement, whatever the terminal could do.
    """

    def __init__(self, *, plain: bool = False) -> None:
        _speak_utf8()
        self.plain = plain
        self.out = self._console(stderr=False)
        self.err = self._console(stderr=True)

    def _console(self, *, stderr: bool) -> Console:
        if self.plain:
            return Console(stderr=stderr, highlight=False, color_system=None, force_terminal=False, soft_wrap=True)
        return Console(stderr=stderr, highlight=False)

    @property
    def is_live(self) -> bool:
        """Whether a view that redraws itself makes sense."""
        return self.out.is_terminal and not self.plain

    def say(self, text: str = "") -> None:
        """Print one line of result, exactly as given."""
        self.out.print(text, markup=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """Print one line above what belongs to it."""
        self.out.print(text, style="bold", markup=False, soft_wrap=True)

    def data(self, text: str) -> None:
        """Print machine-readable text: no wrapping, no colour, whatever it holds."""
        print(text, flush=True)

    def problem(self, text: str) -> None:
        """Print a sentence of trouble to standard error."""
        _print_sentence(self.err, text, "red")

    def hint(self, text: str) -> None:
        """Print a sentence of advice."""
        _print_sentence(self.out, text, "yellow")


def printable(text: str, *, keep: str = "") -> str:
    """Return a text that cannot command the terminal: what a file is called or says may hold anything.

    Args:
        text: anything.
        keep: letters that stay although they do not print, such as line breaks.
    """
    return "".join(letter if letter.isprintable() or letter in keep else "?" for letter in text)


def _print_sentence(console: Console, text: str, style: str) -> None:
    """Break lines between words where people read, never inside one (a path); a pipe gets the sentence as one line."""
    text = printable(text, keep="\n")
    if console.is_terminal:
        fit = partial(textwrap.fill, width=console.width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(map(fit, text.splitlines()))
    console.print(text, style=style, markup=False, soft_wrap=True)


def _speak_utf8() -> None:
    """Make song names printable on consoles with an old code page; an odd character then shows as an escape."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
