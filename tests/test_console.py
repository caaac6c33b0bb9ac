"""What is printed is exactly what was said, on any terminal."""

import io

import pytest

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
