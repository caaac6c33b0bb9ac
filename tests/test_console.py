"""What is printed is exactly what was said, on any terminal."""

import io

import pytest
from rich.console import Console

from woodshed.console import Terminal


def test_lines_are_printed_as_given_without_markup_or_wrapping(capsys):
    Terminal(plain=True).say("[3/11] LoRA " + "x" * 300)
    assert capsys.readouterr().out == "[3/11] LoRA " + "x" * 300 + "\n"


def test_problems_go_to_standard_error(capsys):
    Terminal().problem("There is no file [a].")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "There is no file [a]." in captured.err


def test_a_pipe_gets_no_colour_and_no_live_view(capsys):
    terminal = Terminal()
    terminal.hint("careful")
    assert not terminal.is_live
    assert "\x1b" not in capsys.readouterr().out


def test_plain_is_not_live_even_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert not Terminal(plain=True).is_live


@pytest.mark.parametrize("text", ["ünï 音楽", "emoji 🎵"])
def test_names_that_the_code_page_lacks_do_not_crash(monkeypatch, text):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stream)
    terminal = Terminal(plain=True)
    terminal.say(text)
    terminal.data(text)
    stream.flush()
    assert stream.buffer.getvalue()


SENTENCE = "A setting that cannot be used, with the reason why, and what to do instead of it, in one long sentence."


@pytest.fixture
def narrow():
    """A terminal of 40 columns whose output can be read."""
    terminal = Terminal()
    terminal.out = terminal.err = Console(file=io.StringIO(), force_terminal=True, width=40, color_system=None)
    return terminal


@pytest.mark.parametrize("speak", [Terminal.hint, Terminal.problem])
def test_on_a_terminal_sentences_break_between_words_and_never_inside_a_path(narrow, speak):
    path = "/a/very/long/folder/name/that/is/longer/than/the/terminal/is/wide/song.wav"
    speak(narrow, f"{SENTENCE} {path} {SENTENCE}")
    lines = [line.rstrip() for line in narrow.out.file.getvalue().splitlines()]
    assert " ".join(lines) == f"{SENTENCE} {path} {SENTENCE}"
    assert [line for line in lines if len(line) > 40] == [path]


@pytest.mark.parametrize("plain", [True, False])
def test_in_a_pipe_a_sentence_is_one_line(plain, capsys):
    terminal = Terminal(plain=plain)
    terminal.hint(SENTENCE * 3)
    terminal.problem(SENTENCE * 3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (SENTENCE * 3 + "\n", SENTENCE * 3 + "\n")


def test_a_result_is_never_broken_so_that_it_can_be_copied(narrow):
    narrow.say("woodshed train " + "--flag value " * 9)
    assert narrow.out.file.getvalue().count("\n") == 1


def test_a_notebook_gets_text_instead_of_a_cell_for_every_line(monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    terminal = Terminal()
    terminal.say("Rank")
    terminal.hint("careful")
    assert capsys.readouterr().out == "Rank\ncareful\n"
    assert not terminal.is_live


def test_what_a_notebook_starts_is_not_live_though_it_looks_like_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert Terminal().is_live
    monkeypatch.setenv("JPY_PARENT_PID", "123")
    assert not Terminal().is_live
