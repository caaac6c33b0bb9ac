"""What the wizard shows and asks, without a word on how: the two faces (`lines.py`, `keys.py`) do that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Style = Literal["", "title", "dim", "accent", "note", "problem"]
Line = tuple[tuple[Style, str], ...]
"""A line of the screen: pieces of text, each with what it means."""


@dataclass(frozen=True)
class Choice:
    """One of several answers."""

    word: str  # what the answer is stored as
    title: str  # what is shown
    note: str = ""


@dataclass(frozen=True)
class Ask:
    """One question."""

    title: str
    text: tuple[Line, ...] = ()  # what it does, and what should be known before answering
    choices: tuple[Choice, ...] = ()
    default: str = ""  # what Enter accepts: a choice's word, or a value as it is shown; empty when nothing is
    enter: str = ""  # what Enter does, in words: "keeps 64 (default)"
    hints: tuple[str, ...] = ("? why", "b back", "q menu")
    is_path: bool = False
    is_open: bool = False  # with choices: other answers are accepted too
    can_skip: bool = False  # `r` leads to the review
    is_menu: bool = False  # its answer is a way to go, not a value worth noting down


class EndOfInputError(Exception):
    """Nobody answers any more: standard input was a pipe that ran dry, or was closed."""


class Face(Protocol):
    """A way to show and ask."""

    @property
    def width(self) -> int:
        """Columns there are for text."""

    @property
    def glyphs(self) -> "Glyphs":
        """The signs this terminal can show."""

    def ask(self, ask: Ask) -> str:
        """Show a question and return what was typed, without surrounding space; empty for Enter alone.

        Raises:
            EndOfInputError: when there is nothing more to read.
            KeyboardInterrupt: on Ctrl-C.
        """

    def show(self, lines: Sequence[Line]) -> None:
        """Print lines that stay."""

    def forget_keys(self) -> None:
        """Drop what was typed while nobody was asked, so that it does not answer the next question."""

    def note_answer(self, title: str, value: str, *, is_kept: bool) -> None:
        """Leave a trace of an answer, where the question itself does not stay on the screen."""


@dataclass(frozen=True)
class Glyphs:
    """Signs beyond letters."""

    rule: str
    dot: str
    mark: str
    arrow: str


FANCY = Glyphs(rule="\u2500", dot="\u00b7", mark="\u203a", arrow="\u2192")
ASCII = Glyphs(rule="-", dot="|", mark=">", arrow="->")


def pick_glyphs(encoding: str | None) -> Glyphs:
    """Return the signs that an output encoding has."""
    try:
        "".join(vars(FANCY).values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return FANCY
