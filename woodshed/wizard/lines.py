"""The face for plain terminals: whole lines printed, whole lines read. Works in a pipe and in a notebook cell."""

import builtins
import inspect
import sys
from collections.abc import Sequence

from rich.text import Text

from woodshed.console import Terminal
from woodshed.keyboard import forget_keys
from woodshed.wizard.face import Ask, EndOfInputError, Glyphs, Line, Style, pick_glyphs
from woodshed.wizard.layout import question

STYLES: dict[Style, str] = {
    "": "",
    "title": "bold",
    "dim": "dim",
    "accent": "cyan",
    "note": "yellow",
    "problem": "red",
}


def show_lines(terminal: Terminal, lines: Sequence[Line]) -> None:
    """Print lines, coloured where the terminal allows it."""
    for pieces in lines:
        text = Text.assemble(*((piece, STYLES[style]) for style, piece in pieces))
        text.rstrip()
        terminal.styled(text)


class LinesFace:
    """Asks through the console's `input`, which notebooks and readline know how to serve."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.glyphs: Glyphs = pick_glyphs("ascii" if terminal.plain else terminal.out.encoding)
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")  # file names that are no text must survive

    @property
    def width(self) -> int:
        """Columns there are for text."""
        return self._terminal.out.width

    def ask(self, ask: Ask) -> str:
        """Print a question and read a line."""
        show_lines(self._terminal, [(("", ""),), *question(ask, self.width, self.glyphs)])
        prompt = f"  {self.glyphs.mark} "
        try:
            typed = input(prompt)
        except EOFError:
            self._terminal.say()
            raise EndOfInputError(ask.title) from None
        if inspect.isbuiltin(builtins.input) and not sys.stdin.isatty():  # a notebook puts its own input there
            self._terminal.say(typed)  # nothing but a pipe leaves it to us to show what was answered
        return typed.strip().lstrip("\ufeff")  # some shells put a mark in front of what they pipe

    def show(self, lines: Sequence[Line]) -> None:
        """Print lines."""
        show_lines(self._terminal, lines)

    def forget_keys(self) -> None:
        """Drop what was typed into a terminal; the lines of a pipe stay."""
        forget_keys()

    def note_answer(self, title: str, value: str, *, is_kept: bool) -> None:
        """Do nothing: question and answer are still on the screen."""
