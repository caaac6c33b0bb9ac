"""A setting becomes a question: nothing is lost between its declaration, the screen, and what is stored."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodshed.settings.reference import PAGES
from woodshed.settings.schema import GenerateSettings, PreprocessSettings, TrainSettings
from woodshed.wizard.dialog import RefusedError
from woodshed.wizard.draft import Draft
from woodshed.wizard.questions import read_answer, setting_question, short_number, shown


def plain(ask):
    return " ".join("".join(text for _, text in pieces).strip() for pieces in ask.text)


@pytest.mark.parametrize("kind", PAGES.values(), ids=list(PAGES))
def test_every_setting_asks_with_its_title_its_purpose_and_what_enter_does(kind):
    for name, field in kind.model_fields.items():
        ask = setting_question(Draft(kind), name, 80)
        assert ask.title.startswith(field.title)
        assert field.description.split()[0].strip("`") in plain(ask)
        assert bool(ask.enter) != field.is_required(), name


def test_a_default_an_answer_and_a_suggestion_are_told_apart(draft):
    assert setting_question(draft, "rank", 80).enter == "keeps 64 (default)"
    draft.try_answer("rank", "16")
    assert setting_question(draft, "rank", 80).enter == "keeps 16 (your answer)"
    assert setting_question(draft, "alpha", 80).enter == "keeps 32 (2 x rank)"
    assert setting_question(draft, "output_dir", 80, suggestion="out").enter == "takes out"


def test_a_setting_without_effect_says_why(draft):
    draft.try_answer("scheduler_type", "constant")
    assert "Has no effect here: the constant schedule has no warm-up" in plain(
        setting_question(draft, "warmup_steps", 80)
    )


def test_units_are_named_unless_the_title_does(song_draft, draft):
    assert setting_question(song_draft, "max_duration", 80).title == "Max duration (seconds)"
    assert setting_question(draft, "save_every", 80).title == "Save every N epochs"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (5e-5, "5e-5"), (1.5e-4, "1.5e-4"), (128.0, "128"), (0.1, "0.1"), (0.0, "0"), (1e20, "1e20")],
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert short_number(value) == text


@given(st.floats(allow_nan=False))
def test_a_number_as_shown_is_the_number(value):
    assert float(short_number(value)) == value or math.isinf(value)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "none"), ("", "none"), ((), "none"), (True, "yes"), (("a", "b"), "a b"), (3, "3")]
)
def test_values_are_shown_in_words(value, text):
    assert shown(value) == text


def field(name, kind=TrainSettings):
    return kind.model_fields[name]


def test_answers_are_read_as_the_flags_would_give_them():
    assert read_answer(field("rank"), "16") == "16"
    assert read_answer(field("dropout"), "0,2") == read_answer(field("shift"), "0,2") == "0.2"
    assert read_answer(field("gradient_checkpointing"), "n") is False
    assert read_answer(field("scheduler_type"), "2") == "cosine_restarts"
    assert read_answer(field("log_dir"), '"C:\\my logs"') == "C:\\my logs"
    assert read_answer(field("log_dir"), "-") == ""
    assert read_answer(field("adapter", GenerateSettings), "-") == ""
    assert read_answer(field("custom_tag", PreprocessSettings), '"b"') == "b"
    assert not read_answer(field("output_dir"), "~/out").startswith("~")


def test_a_word_that_is_no_choice_is_refused():
    with pytest.raises(RefusedError, match="cosine"):
        read_answer(field("scheduler_type"), "sinus")
