"""What is typed while a job runs is neither shown nor taken for an answer."""

import io
import os
import select
import sys
import types

import pytest

from woodshed import keyboard
from woodshed.console import Terminal

termios = pytest.importorskip("termios", reason="Windows consoles are simulated below; this needs the real thing")


@pytest.fixture
def typing(monkeypatch):
    """A terminal as standard input; gives the end where a person types."""
    person, ours = os.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(ours, "r", closefd=False))
    monkeypatch.setattr(Terminal, "is_live", True)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())  # as if it were the test's own
    yield person
    os.close(person)
    os.close(ours)


def shown(person, typed):
    """Type a line, let the program read it and print a dot; return what the terminal showed up to that."""
    os.write(person, typed)
    assert sys.stdin.readline() == typed.decode()
    os.write(sys.stdin.fileno(), b".")
    seen = b""
    while b"." not in seen:
        assert select.select([person], [], [], 30)[0], "nothing is shown"
        seen += os.read(person, 1000)
    return seen[: seen.index(b".")]


def test_keys_are_not_echoed_while_a_job_runs_and_are_again_afterwards(typing):
    assert shown(typing, b"a\n") == b"a\r\n"
    with keyboard.unseen_keys(Terminal()):
        assert shown(typing, b"hello\n") == b""
    assert shown(typing, b"b\n") == b"b\r\n"


def test_the_echo_returns_after_an_error_and_after_ctrl_c(typing):
    for trouble in (KeyboardInterrupt, ValueError):
        with pytest.raises(trouble), keyboard.unseen_keys(Terminal()):
            raise trouble
        assert shown(typing, b"x\n") == b"x\r\n"


def test_what_was_typed_is_forgotten(typing):
    os.write(typing, b"start\n")
    keyboard.forget_keys()
    os.write(typing, b"6\n")
    assert sys.stdin.readline() == "6\n"


def test_a_view_that_does_not_redraw_itself_leaves_the_echo_alone(typing, monkeypatch):
    monkeypatch.setattr(Terminal, "is_live", False)
    with keyboard.unseen_keys(Terminal()):
        assert shown(typing, b"a\n") == b"a\r\n"


def test_in_the_background_the_terminal_is_not_touched(typing, monkeypatch):
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    monkeypatch.setattr(termios, "tcsetattr", pytest.fail)
    monkeypatch.setattr(termios, "tcflush", pytest.fail)
    with keyboard.unseen_keys(Terminal()):
        keyboard.forget_keys()
    assert os.write(typing, b"a") == 1


@pytest.mark.parametrize("stdin", [None, io.StringIO("16\n")])
def test_a_pipe_keeps_its_answers_and_a_program_without_input_does_not_fail(monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    with keyboard.unseen_keys(Terminal()):
        keyboard.forget_keys()
    assert stdin is None or stdin.readline() == "16\n"


def test_on_windows_the_waiting_keys_are_read_away(monkeypatch):
    waiting = list("ab\r")
    console = types.SimpleNamespace(kbhit=lambda: bool(waiting), getwch=lambda: waiting.pop(0))
    monkeypatch.setitem(sys.modules, "msvcrt", console)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(keyboard, "_is_keyboard", lambda: True)
    with keyboard.unseen_keys(Terminal()):
        assert len(waiting) == 3
    keyboard.forget_keys()
    assert waiting == []
