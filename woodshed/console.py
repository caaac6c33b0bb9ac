"""The one place that prints: results to standard output, problems to standard error.

Colour and cursor movement are used only on a real terminal and never with `--plain` or NO_COLOR.
"""

import os
import sys
import textwrap
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

NOTEBOOK = "JPY_PARENT_PID"  # Jupyter sets it for its kernels and what they start


class NobodyReadsError(Exception):
    """Whoever read the output through a pipe has closed it, as `| head` does."""


class _Pipe(Console):
    """A console that leaves it to the program what a closed pipe means; rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        """Say so."""
        raise NobodyReadsError


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
        # In a notebook rich would make an HTML cell of every line; text streams come out in order and in one piece.
        console = partial(_Pipe, stderr=stderr, highlight=False, force_jupyter=False)
        if self.plain:
            return console(color_system=None, force_terminal=False, soft_wrap=True)
        return console()

    @property
    def is_live(self) -> bool:
        """Whether a view that redraws itself makes sense; the output of a notebook's cell cannot be redrawn."""
        return self.out.is_terminal and not self.plain and NOTEBOOK not in os.environ

    def hush(self) -> None:
        """Say nothing any more, because nobody is there to read: the terminal was closed."""
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the program
        self.out.file = self.err.file = nowhere

    def lose_reader(self, text: str = "") -> None:
        """Go on without anybody who reads the output; problems are still told where standard error can be read.

        Args:
            text: a last problem.
        """
        self.out.file = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the program
        # What the stream still holds would fail again when the program ends.
        os.dup2(self.out.file.fileno(), sys.stdout.fileno())
        try:
            if text:
                self.problem(text)
        except NobodyReadsError:  # 2>&1
            self.err.file = self.out.file
            os.dup2(self.out.file.fileno(), sys.stderr.fileno())

    def say(self, text: str = "") -> None:
        """Print one line of result, exactly as given."""
        self.out.print(text, markup=False, soft_wrap=True)

    def styled(self, text: Text) -> None:
        """Print one line in which parts are marked, coloured where the terminal allows it."""
        self.out.print(text, soft_wrap=True)

    def title(self, text: str) -> None:
        """Print one line above what belongs to it."""
        self.out.print(text, style="bold", markup=False, soft_wrap=True)

    def data(self, text: str) -> None:
        """Print machine-readable text: no wrapping, no colour, whatever it holds."""
        try:
            print(text, file=self.out.file, flush=True)
        except BrokenPipeError as error:
            raise NobodyReadsError from error

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
