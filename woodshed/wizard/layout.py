"""Lines of the screen: everything the wizard shows is laid out here, for any width from 40 columns on."""

import textwrap
from collections.abc import Iterable, Sequence

from woodshed.wizard.face import Ask, Choice, Glyphs, Line, Style

WIDEST = 100  # longer lines are hard to read
INDENT = "  "


def line(text: str = "", style: Style = "") -> Line:
    """Return a line in one style."""
    return ((style, text),)


def readable(text: str) -> str:
    """Return a declaration's text without the marks that are for Markdown."""
    return text.replace("`", "").replace(" -- ", ": ")


def paragraph(text: str, width: int, style: Style = "", *, indent: str = INDENT, hanging: str = "") -> list[Line]:
    """Break a sentence into indented lines; further lines hang a little deeper where wanted."""
    room = max(min(width, WIDEST), 20)
    broken = textwrap.wrap(
        text, room, initial_indent=indent, subsequent_indent=indent + hanging, break_on_hyphens=False
    )
    return [line(part, style) for part in broken] or [line()]


def header(step: str, width: int, glyphs: Glyphs) -> list[Line]:
    """Return the line above a page: `[3/11] LoRA` and a rule."""
    rule = glyphs.rule * max(min(width, WIDEST) - len(step) - 1, 0)
    return [line(), (("title", step), ("dim", f" {rule}"))]


def question(
    ask: Ask, width: int, glyphs: Glyphs, *, shown: Sequence[tuple[int, Choice]] | None = None, selected: int = -1
) -> list[Line]:
    """Return a question as lines: title, what it does, the choices, and what the keys do.

    Args:
        ask: the question.
        width: columns there are.
        glyphs: signs there are.
        shown: of the choices those to list, with their numbers from 1; all when None.
        selected: the number of the highlighted choice; the one that Enter takes when negative.
    """
    lines = [line(INDENT + ask.title, "title"), *ask.text]
    if ask.choices:
        numbered = list(enumerate(ask.choices, start=1)) if shown is None else list(shown)
        if selected < 0:
            selected = next((number for number, choice in numbered if choice.word == ask.default), -1)
        lines += [line(), *choice_lines(numbered, selected, width, glyphs)]
    return [*lines, line(), *keys(ask, width, glyphs)]


def choice_lines(numbered: Sequence[tuple[int, Choice]], selected: int, width: int, glyphs: Glyphs) -> list[Line]:
    """Return the choices: number, title and note in columns; notes go below where there is no room beside."""
    if not numbered:
        return [line("      nothing matches; Backspace shows all again", "dim")]
    widest = max(len(choice.title) for _, choice in numbered)
    lines: list[Line] = []
    for number, choice in numbered:
        is_selected = number == selected
        mark = glyphs.mark if is_selected else " "
        start = f"  {mark} {number:>2}  "
        style: Style = "accent" if is_selected else ""
        room = min(width, WIDEST) - len(start) - widest - 2
        if not choice.note or room < min(len(choice.note), 24):
            lines.append(((style, start + choice.title),))
            lines += paragraph(choice.note, width, "dim", indent=" " * len(start)) if choice.note else []
        else:
            first, *further = textwrap.wrap(choice.note, room)
            lines.append(((style, start + choice.title.ljust(widest)), ("dim", f"  {first}")))
            lines += [line(" " * (len(start) + widest + 2) + part, "dim") for part in further]
    return lines


def keys(ask: Ask, width: int, glyphs: Glyphs) -> list[Line]:
    """Return what Enter and the other keys do, on one line where there is room for both."""
    room = min(width, WIDEST) - len(INDENT)
    enter = [f"Enter {ask.enter}"] if ask.enter else []
    others = f" {glyphs.dot} ".join(ask.hints)
    together = f" {glyphs.dot} ".join([*enter, others])
    rows = [together] if len(together) <= room else [*enter, others]
    return [row for text in rows for row in paragraph(text, width, "dim")]


def answer_line(title: str, value: str, *, is_kept: bool) -> Line:
    """Return the quiet line that a question leaves behind."""
    return (("dim", f"{INDENT}{title}  ".ljust(28)), ("dim" if is_kept else "", value))


def columns(rows: Iterable[tuple[str, str, str]], width: int) -> list[Line]:
    """Return rows of name, value and remark as three columns; a remark goes below its value where there is no room."""
    rows = list(rows)
    if not rows:
        return []
    first = max(len(name) for name, _, _ in rows) + 2
    room = max(min(width, WIDEST) - len(INDENT) - first, 16)
    usual = [len(value) for _, value, remark in rows if remark and len(value) <= room // 2]
    second = max(usual, default=0) + 2  # a long path must not push every remark aside
    widest = max((len(remark) for _, _, remark in rows), default=0)
    has_third = second + min(widest, 24) <= room
    lines: list[Line] = []
    for name, value, remark in rows:
        is_beside = has_third and len(value) + 2 <= second
        pieces = textwrap.wrap(value, room, break_on_hyphens=False) or [""]
        remarks = textwrap.wrap(remark, room - second if is_beside else room, break_on_hyphens=False)
        head = remarks.pop(0) if is_beside and remarks else ""
        start = INDENT + name.ljust(first)
        below = " " * len(start)
        lines.append((("dim", start), ("", pieces[0].ljust(second) if head else pieces[0]), ("dim", head)))
        lines += [line(below + piece) for piece in pieces[1:]]
        lines += [line(below + " " * (second if is_beside else 0) + piece, "dim") for piece in remarks]
    return lines
