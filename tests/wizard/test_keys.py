"""Real key strokes on the face for terminals: arrows, filtering, Escape, help, Ctrl-C, completed paths."""

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from woodshed.console import Terminal
from woodshed.wizard.face import Ask, Choice, EndOfInputError
from woodshed.wizard.keys import KeysFace

UP, DOWN, ESCAPE, ENTER, TAB = "\x1b[A", "\x1b[B", "\x1b", "\r", "\t"
CHOICES = tuple(Choice(word, word) for word in ("both", "self", "cross"))
MODELS = tuple(Choice(f"acestep-v15-{name}", f"acestep-v15-{name}") for name in ("base", "turbo", "xl-turbo"))
MANY = tuple(Choice(f"word{number}", f"word{number}") for number in range(1, 40))


def press(ask, keys):
    """Answer a question with these key strokes."""
    with create_pipe_input() as source:
        source.send_text(keys)
        return KeysFace(Terminal(), source=source, sink=DummyOutput()).ask(ask)


@pytest.mark.parametrize(
    ("keys", "answer"),
    [
        (ENTER, ""),  # keeps the default
        (DOWN + ENTER, "cross"),
        (UP + ENTER, "both"),
        (UP + UP + ENTER, "cross"),  # round the corner
        ("cr" + ENTER, "cross"),
        ("3" + ENTER, "cross"),
        ("self" + ENTER, "self"),
        ("b" + ENTER, "b"),  # back, though both begins with it
        ("bo" + ENTER, "both"),
        ("q" + ENTER, "q"),
        ("nothing" + ENTER, "nothing"),  # for the wizard to refuse
        ("x\x7fcr" + ENTER, "cross"),  # mended with Backspace
        (ESCAPE, "b"),
        ("?", "?"),
    ],
)
def test_a_choice_is_made_with_the_keys_of_a_menu_or_by_typing(keys, answer):
    assert press(Ask("Attention type", choices=CHOICES, default="self"), keys) == answer


def test_r_is_a_key_only_where_the_question_says_so():
    assert press(Ask("Adapter", choices=CHOICES), "r" + ENTER) == "cross"
    assert press(Ask("Adapter", choices=CHOICES, can_skip=True), "r" + ENTER) == "r"
    assert press(Ask("Adapter", choices=CHOICES, can_skip=True), "ross" + ENTER) == "cross"


def test_typing_filters_and_arrows_move_among_what_is_left():
    ask = Ask("Model", choices=MODELS, default="acestep-v15-base")
    assert press(ask, "turbo" + ENTER) == "acestep-v15-turbo"
    assert press(ask, "turbo" + DOWN + ENTER) == "acestep-v15-xl-turbo"


def test_long_lists_scroll_to_what_is_selected():
    assert press(Ask("Which", choices=MANY), DOWN * 30 + ENTER) == "word31"
    assert press(Ask("Which", choices=MANY), UP + ENTER) == "word39"


@pytest.mark.parametrize(
    ("keys", "answer"),
    [("16" + ENTER, "16"), (ENTER, ""), ("  16 " + ENTER, "16"), ("what?" + ENTER, "what?"), ("'b'" + ENTER, "'b'")],
)
def test_text_is_typed_and_a_question_mark_is_help_only_at_the_start(keys, answer):
    assert press(Ask("Rank", default="64"), keys) == answer


def test_ctrl_c_and_ctrl_d_end_the_question():
    with pytest.raises(KeyboardInterrupt):
        press(Ask("Rank"), "1\x03")
    with pytest.raises(EndOfInputError):
        press(Ask("Rank"), "\x04")


def test_the_question_leaves_one_quiet_line(capsys):
    face = KeysFace(Terminal())
    face.note_answer("Rank", "16", is_kept=False)
    assert capsys.readouterr().out == "  Rank                      16\n"


def test_keys_that_came_with_the_last_enter_can_be_forgotten():
    with create_pipe_input() as source:
        face = KeysFace(Terminal(), source=source, sink=DummyOutput())
        source.send_text("8" + ENTER + "16" + ENTER)
        assert face.ask(Ask("Rank")) == "8"
        face.forget_keys()
        source.send_text("24" + ENTER)
        assert face.ask(Ask("Alpha")) == "24"
