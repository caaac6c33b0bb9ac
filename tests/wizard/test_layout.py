"""Whatever the width, nothing that can break is wider than the terminal, and columns stay aligned."""

import pytest

from woodshed.settings.reference import PAGES
from woodshed.wizard.draft import Draft
from woodshed.wizard.face import ASCII, FANCY, Ask, Choice, pick_glyphs
from woodshed.wizard.layout import choice_lines, columns, header, keys, paragraph, question, readable
from woodshed.wizard.questions import setting_question


def plain(lines):
    return ["".join(text for _, text in pieces) for pieces in lines]


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_every_question_of_every_command_fits_the_terminal(width):
    for kind in PAGES.values():
        draft = Draft(kind)
        for name in kind.model_fields:
            rows = plain(question(setting_question(draft, name, width), width, ASCII))
            assert max(map(len, rows)) <= width, (name, rows)


def test_long_lines_stop_where_reading_gets_hard():
    assert max(map(len, plain(paragraph("word " * 100, 300)))) <= 100
    assert len(plain(header("[1/2] LoRA", 300, FANCY))[1]) == 100


def test_a_header_fills_the_line():
    assert plain(header("[3/11] LoRA", 20, ASCII)) == ["", "[3/11] LoRA --------"]


def test_keys_go_to_further_lines_where_they_do_not_fit():
    ask = Ask("Rank", enter="keeps 64 (default)")
    assert plain(keys(ask, 80, ASCII)) == ["  Enter keeps 64 (default) | ? why | b back | q menu"]
    assert plain(keys(ask, 40, ASCII)) == ["  Enter keeps 64 (default)", "  ? why | b back | q menu"]


def test_the_choice_that_enter_takes_is_marked():
    choices = (Choice("a", "a"), Choice("b", "b", "the second"))
    rows = plain(question(Ask("Which", choices=choices, default="b", enter="takes b"), 60, ASCII))
    assert "  >  2  b  the second" in rows
    assert "     1  a" in rows


def test_notes_go_below_on_narrow_terminals():
    numbered = [(1, Choice("x", "a rather long title of a choice", "what it is good for, in some words"))]
    assert len(choice_lines(numbered, 1, 120, ASCII)) == 1
    assert plain(choice_lines(numbered, 1, 50, ASCII))[1].strip().startswith("what it is good for")


def test_no_match_is_said():
    assert "nothing matches" in plain(choice_lines([], 1, 60, ASCII))[0]


def test_columns_are_aligned_and_remarks_go_below_where_there_is_no_room():
    rows = [("Rank", "16", "your answer"), ("Learning rate", "1e-4", "default")]
    assert plain(columns(rows, 80)) == ["  Rank           16    your answer", "  Learning rate  1e-4  default"]
    narrow = plain(columns([("Output directory", "/a/very/long/path/to/a/folder", "your answer")], 60))
    assert narrow == ["  Output directory  /a/very/long/path/to/a/folder", "                    your answer"]
    assert columns([], 80) == []


def test_marks_for_markdown_are_not_shown():
    assert readable("`self` = audio -- only") == "self = audio: only"


@pytest.mark.parametrize(("encoding", "found"), [("utf-8", FANCY), ("cp1252", ASCII), ("ascii", ASCII), (None, ASCII)])
def test_signs_are_those_the_terminal_can_show(encoding, found):
    assert pick_glyphs(encoding) is found


def test_a_note_that_is_longer_than_its_column_goes_on_below_it():
    numbered = [(1, Choice("a", "small", "a note that needs more than one line here")), (2, Choice("b", "none"))]
    assert plain(choice_lines(numbered, 1, 40, ASCII)) == [
        "  >  1  small  a note that needs more",
        "               than one line here",
        "     2  none",
    ]
