"""Asking until there is an answer: the keys that every question knows, and what a wrong answer is told."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from woodshed.settings.declare import did_you_mean
from woodshed.wizard.face import Ask, Choice, Face, Line
from woodshed.wizard.layout import header, paragraph, readable

T = TypeVar("T")

YES = frozenset({"y", "yes", "true", "on", "1"})
NO = frozenset({"n", "no", "false", "off", "0"})
YES_NO = (Choice("yes", "yes"), Choice("no", "no"))


class BackError(Exception):
    """The user wants the question before this one."""


class ToMenuError(Exception):
    """The user wants the menu."""


class ToReviewError(Exception):
    """The user wants the review, with everything else as it stands."""


class RefusedError(Exception):
    """An answer that is not accepted.

    Args:
        problems: what is accepted, as full sentences.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Dialog:
    """Asks through a face."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self._page = ""

    def open_page(self, step: str, *, page: str = "") -> None:
        """Show a page's header, unless it is the page that is open.

        Args:
            step: what the header says.
            page: what tells it from others, where `step` alone does not.
        """
        if (page or step) != self._page:
            self._page = page or step
            self.face.show(header(step, self.face.width, self.face.glyphs))

    def close_page(self) -> None:
        """Let the next page show its header even if it is the same one."""
        self._page = ""

    def say(self, *sentences: str) -> None:
        """Print sentences in the ordinary way."""
        for sentence in sentences:
            self.face.show(paragraph(sentence, self.face.width))

    def note(self, *sentences: str) -> None:
        """Print sentences that deserve attention."""
        for sentence in sentences:
            self.face.show(paragraph(sentence, self.face.width, "note"))

    def problem(self, *sentences: str) -> None:
        """Print what went wrong."""
        for sentence in sentences:
            self.face.show(paragraph(sentence, self.face.width, "problem"))

    def announce_loading(self) -> None:
        """Say why the next answer takes seconds, the first time that something needs PyTorch."""
        if "torch" not in sys.modules:
            self.face.show(paragraph("Loading PyTorch, which takes a few seconds.", self.face.width, "dim"))

    def show(self, lines: Iterable[Line]) -> None:
        """Print lines as they are."""
        self.face.show(list(lines))

    def ask(self, ask: Ask, read: Callable[[str], T], *, why: str) -> T:
        """Ask until the answer is accepted.

        Args:
            ask: the question.
            read: turns what was typed into a value; Enter alone is the empty string. Raises RefusedError.
            why: what `?` tells.

        Raises:
            BackError: on `b`.
            ToMenuError: on `q`.
            ToReviewError: on `r`, where the question offers it.
        """
        while True:
            typed = self.face.ask(ask)
            if typed == "?":
                self.note(readable(why))
            elif typed.lower() == "b":
                raise BackError
            elif typed.lower() == "q":
                raise ToMenuError
            elif typed.lower() == "r" and ask.can_skip:
                raise ToReviewError
            else:
                try:
                    return read(typed)
                except RefusedError as refused:
                    self.problem(*refused.problems)

    def choose(self, ask: Ask, *, why: str) -> str:
        """Ask for one of the choices and return its word; Enter alone takes the default."""

        def read(typed: str) -> str:
            if not typed and ask.default:
                return ask.default
            return match_choice(ask.choices, typed)

        word = self.ask(ask, read, why=why)
        if not ask.is_menu:
            title = next(choice.title for choice in ask.choices if choice.word == word)
            self.face.note_answer(ask.title, title, is_kept=word == ask.default)
        return word

    def confirm(self, title: str, *, default: bool, why: str) -> bool:
        """Ask a yes-or-no question."""
        word = "yes" if default else "no"
        return self.choose(Ask(title, (), YES_NO, word, f"means {word}"), why=why) == "yes"


def match_choice(choices: Sequence[Choice], typed: str) -> str:
    """Return the word of the choice that was meant: by its number, its word or title, or a part that only it has.

    Raises:
        RefusedError: when none or several match, naming them.
    """
    wanted = typed.casefold()
    if typed.isdecimal() and 1 <= int(typed) <= len(choices):
        return choices[int(typed) - 1].word
    for choice in choices:
        if wanted in (choice.word.casefold(), choice.title.casefold()):
            return choice.word
    if {choice.word for choice in choices} == {"yes", "no"}:
        if wanted in YES | NO:
            return "yes" if wanted in YES else "no"
        raise RefusedError(f"Answer yes or no (y or n); got {typed or 'nothing'}.")
    near = matching(choices, typed) if typed else []
    if len(near) == 1:
        return near[0].word
    if near:
        raise RefusedError(f"{typed} could be {', '.join(choice.title for choice in near)}. Type a little more.")
    words = [choice.word for choice in choices]
    hint = did_you_mean(typed, words)
    raise RefusedError(f"Answer with one of {', '.join(words)}, or its number; got {typed or 'nothing'}.{hint}")


def matching(choices: Sequence[Choice], typed: str) -> list[Choice]:
    """Return the choices that hold what was typed, anywhere in word, title or note."""
    wanted = typed.casefold()
    return [choice for choice in choices if any(wanted in part.casefold() for part in (choice.word, choice.title))] or [
        choice for choice in choices if wanted in choice.note.casefold()
    ]
