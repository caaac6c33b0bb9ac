"""Every question knows the same keys, and a wrong answer is told what is accepted."""

import pytest

from tests.wizard.conftest import ScriptedFace
from woodshed.wizard.dialog import YES_NO, BackError, Dialog, RefusedError, ToMenuError, match_choice
from woodshed.wizard.face import Ask, Choice

MODELS = tuple(Choice(f"acestep-v15-{name}", f"acestep-v15-{name}") for name in ("base", "xl-base", "turbo"))


@pytest.mark.parametrize("typed", ["y", "Y", "yes", "YES", "true", "on", "1"])
def test_every_usual_yes_is_understood(typed):
    assert match_choice(YES_NO, typed) == "yes"


@pytest.mark.parametrize("typed", ["n", "no", "NO", "false", "off", "0", "2"])
def test_every_usual_no_is_understood(typed):
    assert match_choice(YES_NO, typed) == "no"


@pytest.mark.parametrize("typed", ["maybe", "3", ""])
def test_anything_else_is_told_yes_or_no(typed):
    with pytest.raises(RefusedError, match="Answer yes or no"):
        match_choice(YES_NO, typed)


@pytest.mark.parametrize(
    ("typed", "word"), [("3", "turbo"), ("acestep-v15-xl-base", "xl-base"), ("TURBO", "turbo"), ("xl", "xl-base")]
)
def test_a_choice_is_made_by_number_name_or_a_part_that_only_it_has(typed, word):
    assert match_choice(MODELS, typed) == f"acestep-v15-{word}"


def test_a_part_that_several_have_is_told_which():
    with pytest.raises(RefusedError, match="base could be acestep-v15-base, acestep-v15-xl-base"):
        match_choice(MODELS, "base")


@pytest.mark.parametrize("typed", ["4", "0", "-1", "nothing like it"])
def test_a_choice_that_is_not_there_is_told_those_that_are(typed):
    with pytest.raises(RefusedError, match=r"Answer with one of acestep-v15-base, .*, or its number; got"):
        match_choice(MODELS, typed)


def test_a_near_miss_is_answered_with_did_you_mean():
    choices = (Choice("cosine", "cosine"), Choice("linear", "linear"))
    with pytest.raises(RefusedError, match="Did you mean cosine"):
        match_choice(choices, "cosien")


@pytest.mark.parametrize(("typed", "error"), [("b", BackError), ("B", BackError), ("q", ToMenuError)])
def test_back_and_menu_work_at_every_question(typed, error):
    with pytest.raises(error):
        Dialog(ScriptedFace([typed])).ask(Ask("Rank"), str, why="It matters.")


def test_a_question_mark_tells_why_and_asks_again():
    face = ScriptedFace(["?", "64"])
    assert Dialog(face).ask(Ask("Rank"), str, why="Lower for `quick` tests.") == "64"
    assert "Lower for quick tests." in face.text
    assert face.titles == ["Rank", "Rank"]


def test_wrong_answers_are_explained_until_one_is_right():
    face = ScriptedFace(["x", "", "linear"])
    choices = (Choice("cosine", "cosine"), Choice("linear", "linear"))
    assert Dialog(face).choose(Ask("Scheduler", choices=choices), why="It matters.") == "linear"
    assert face.text.count("Answer with one of") == 2


def test_enter_takes_the_default_and_is_noted_as_kept():
    face = ScriptedFace([""])
    assert Dialog(face).confirm("Replace it?", default=False, why="It matters.") is False
    assert face.said == ["  Replace it?: no (kept)"]


def test_a_header_is_shown_once_for_a_page():
    face = ScriptedFace()
    dialog = Dialog(face)
    for step in ("[1/2] LoRA", "[1/2] LoRA", "[2/2] CFG"):
        dialog.open_page(step)
    assert [row.split(" -")[0] for row in face.said if row] == ["[1/2] LoRA", "[2/2] CFG"]
