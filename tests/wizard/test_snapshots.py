"""The main pages as text, at three widths, reviewed by eye; docs/wizard.md shows some of them.

`WOODSHED_SNAPSHOTS=write pytest tests/wizard/test_snapshots.py` writes them anew after a wanted change.
"""

import html
import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.wizard.conftest import ScriptedFace
from woodshed.console import Terminal
from woodshed.settings.files import save_user_settings
from woodshed.wizard import consequences, settings_pages
from woodshed.wizard.face import FANCY, Line
from woodshed.wizard.jobs import Job
from woodshed.wizard.layout import answer_line, line, question
from woodshed.wizard.lines import show_lines
from woodshed.wizard.session import Session

FOLDER = Path(__file__).parent / "snapshots"
DOCS = Path(__file__).parents[2] / "docs" / "wizard.md"
PICTURES = DOCS.parent / "pictures"
WIDTHS = (60, 80, 140)
ANSWERS = {
    "What next?": "lora",
    "How much do you want to decide?": "basic",
    "Begin with a preset?": "quick_test",
    "Rank": ["?", "0", "8"],
    "Batch size": "2",
}
JOBS = ("train", "preprocess", "estimate", "generate", "inspect", "export", "doctor")
PAGES = {
    "first_run": ("First run", "[1/"),
    "start": ("[1/8] Start", "[2/8]"),
    "model": ("  Model", "  Dataset directory"),
    "lora": ("[4/8] LoRA", "[5/8]"),
    "review": ("[8/8] Review", "\nWoodshed"),
}


class DrawnFace(ScriptedFace):
    """Shows questions as the plain face does."""

    glyphs = FANCY

    def __init__(self, answers, width) -> None:
        super().__init__(answers)
        self.width = width

    def ask(self, ask) -> str:
        self.said += ["", *("".join(text for _, text in row).rstrip() for row in question(ask, self.width, FANCY))]
        typed = super().ask(ask)
        self.said.append(f"  {FANCY.mark} {typed}".rstrip())
        return typed

    def note_answer(self, title, value, *, is_kept) -> None:
        """Leave no trace: the question is still there."""


@pytest.fixture
def walked(job_for, monkeypatch):
    """Walk a face from a fresh folder to the review and out."""
    monkeypatch.setattr(consequences, "device_memory", lambda _: 16 * 2**30)
    monkeypatch.setattr(consequences, "matrix_speed", lambda *_: 50e9)

    def save_as_usual(_):
        save_user_settings({"checkpoint_dir": "checkpoints"})  # not absolute: this test's folder has a changing name
        return Path("/home/me/.config/woodshed/settings.toml")

    monkeypatch.setattr(settings_pages, "save_user_settings", save_as_usual)

    def walk(face_of):
        prepared = {title: list(value) if isinstance(value, list) else [value] for title, value in ANSWERS.items()}

        def answer(ask):
            if ask.title == "Ready?":
                prepared["What next?"] = ["leave"]
                return "q"
            left = prepared.get(ask.title, [])
            return left.pop(0) if left else ""

        face = face_of([answer] * 80)
        jobs: dict[str, Job] = {name: job_for(name) for name in JOBS}
        Session(jobs, face).run()
        return face

    return walk


@pytest.fixture
def drawn(walked):
    """Return everything that was shown from a fresh folder to the review at some width."""

    def draw(width):
        face = walked(lambda answers: DrawnFace(answers, width))
        return re.sub(r"Woodshed \d+\.\d+\.\d+", "Woodshed", "\n".join(face.said))

    return draw


PICTURED = {
    "What next?": "menu",
    "Begin with a preset?": "presets",
    "Model": "model",
    "Ready?": "review",
}
"""The questions of which docs/pictures has a picture, as a real terminal looks while they wait."""


class PicturedFace(ScriptedFace):
    """Shows what the face with keys leaves on the screen: answered questions give way to one quiet line."""

    glyphs = FANCY
    width = 80

    def __init__(self, answers) -> None:
        super().__init__(answers)
        self.rows: list[Line] = []
        self.pictures: dict[str, list[Line]] = {}

    def ask(self, ask) -> str:
        here = [line(), *question(ask, self.width - 1, FANCY), line(f"  {FANCY.mark} ")]
        self.pictures.setdefault(ask.title, [*self.rows, *here])
        return super().ask(ask)

    def show(self, lines) -> None:
        for row in lines:
            if row[0][0] == "title" and row[-1][1].endswith(FANCY.rule):  # a new page
                self.rows = []
            self.rows.append(row)

    def note_answer(self, title, value, *, is_kept) -> None:
        self.rows.append(answer_line(title, value, is_kept=is_kept))


def broken(row):
    """Break a line that is wider than the terminal where the terminal would: only the command is."""
    if sum(len(text) for _, text in row) <= 80:
        return [row]
    ((style, text),) = row
    return [line(text[start : start + 80], style) for start in range(0, len(text), 80)]


def picture(rows):
    """Return lines of the screen as an SVG picture of a terminal."""
    terminal = Terminal()
    terminal.out = Console(
        record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    show_lines(terminal, [part for row in rows for part in broken(row)])
    return terminal.out.export_svg(title="woodshed", unique_id="woodshed")


def letters_of(svg):
    """Return the letters in a picture, without the title bar and without space."""
    texts = re.findall(r"<text [^>]*woodshed-r\d[^>]*>(.*?)</text>", svg)
    return "".join(html.unescape("".join(texts)).split())


def test_the_pictures_show_the_pages_as_they_are(walked):
    face = walked(PicturedFace)
    for title, name in PICTURED.items():
        path = PICTURES / f"wizard_{name}.svg"
        rows = face.pictures[title]
        if os.environ.get("WOODSHED_SNAPSHOTS") == "write":
            path.write_text(picture(rows), encoding="utf-8")
        shown = "".join(word for row in rows for _, text in row for word in text.split())
        assert letters_of(path.read_text(encoding="utf-8")) == shown, name
    assert {path.name for path in PICTURES.glob("wizard_*")} == {f"wizard_{name}.svg" for name in PICTURED.values()}


def cut(text, start, end):
    """Return the part of what was shown that a page takes."""
    found = text[text.index(start) :]
    return (found[: found.index(end)] if end else found).rstrip() + "\n"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_pages_look_as_they_were_reviewed(drawn, width):
    text = drawn(width)
    for name, (start, end) in PAGES.items():
        path = FOLDER / f"{name}_{width}.txt"
        page = cut(text, start, end)
        if os.environ.get("WOODSHED_SNAPSHOTS") == "write":
            path.write_text(page, encoding="utf-8")
        assert page == path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_but_the_command_is_wider_than_the_terminal(drawn, width):
    rows = [
        row for row in drawn(width).splitlines() if not row.startswith("  woodshed train") and "/home/me" not in row
    ]
    assert max(map(len, rows)) <= width


def test_the_documentation_shows_the_pages_as_they_are():
    text = DOCS.read_text(encoding="utf-8")
    pattern = re.compile(r"(?<=<!-- )(\w+)( -->\n```text\n)(.*?)(?=```)", flags=re.DOTALL)
    if os.environ.get("WOODSHED_SNAPSHOTS") == "write":
        fresh = pattern.sub(lambda found: found[1] + found[2] + (FOLDER / f"{found[1]}.txt").read_text("utf-8"), text)
        DOCS.write_text(fresh, encoding="utf-8")
        text = fresh
    shown = [(name, page) for name, _, page in pattern.findall(text)]
    assert len(shown) >= 3
    for name, page in shown:
        assert page == (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), name


def test_every_page_has_a_snapshot_at_every_width():
    assert {path.stem for path in FOLDER.glob("*.txt")} == {f"{name}_{width}" for name in PAGES for width in WIDTHS}
