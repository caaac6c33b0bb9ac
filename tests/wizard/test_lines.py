"""The face for pipes, notebooks and --plain: whole lines in, whole lines out, and no sign that cannot be shown."""

import io
import sys

import pytest

from woodshed.console import Terminal
from woodshed.wizard.face import ASCII, Ask, Choice, EndOfInputError
from woodshed.wizard.lines import LinesFace
from woodshed.wizard.session import choose_face


@pytest.fixture
def typed(monkeypatch):
    """Put lines into standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_line_is_read_and_shown_where_no_terminal_echoes_it(typed, capsys):
    typed("  16 \n")
    assert LinesFace(Terminal(plain=True)).ask(Ask("Rank", enter="keeps 64 (default)")) == "16"
    out = capsys.readouterr().out
    assert "  Rank\n" in out
    assert "Enter keeps 64 (default)" in out
    assert out.endswith("  >   16 \n")


def test_an_empty_line_is_enter_alone_and_a_mark_of_powershell_is_dropped(typed):
    face = LinesFace(Terminal(plain=True))
    typed("\n\ufeff8\n")
    assert face.ask(Ask("Rank")) == ""
    assert face.ask(Ask("Rank")) == "8"


def test_the_end_of_input_names_the_question(typed):
    typed("")
    with pytest.raises(EndOfInputError, match="Rank"):
        LinesFace(Terminal(plain=True)).ask(Ask("Rank"))


def test_choices_are_numbered(typed, capsys):
    typed("2\n")
    assert LinesFace(Terminal(plain=True)).ask(Ask("Which", choices=(Choice("a", "a"), Choice("b", "b")))) == "2"
    assert "     2  b" in capsys.readouterr().out


def test_plain_output_is_ascii_without_escapes(typed, capsys):
    typed("\n")
    face = LinesFace(Terminal(plain=True))
    assert face.glyphs is ASCII
    face.show([(("title", "Rank"), ("problem", " bad"))])
    face.ask(Ask("Rank", choices=(Choice("a", "a"),), default="a"))
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out


@pytest.mark.parametrize("plain", [True, False])
def test_without_a_terminal_the_face_is_lines(plain):
    assert isinstance(choose_face(Terminal(plain=plain)), LinesFace)


def test_a_notebook_is_given_the_prompt_for_its_input_box_and_shows_the_answer_itself(monkeypatch, capsys):
    prompts = []
    monkeypatch.setattr("builtins.input", lambda prompt="": prompts.append(prompt) or "16")
    assert LinesFace(Terminal(plain=True)).ask(Ask("Rank")) == "16"
    assert prompts == ["  > "]
    assert "16" not in capsys.readouterr().out
