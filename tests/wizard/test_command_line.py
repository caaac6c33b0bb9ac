"""The command that the wizard prints gives exactly the settings that the wizard starts."""

import shlex

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.wizard.answers import TITLES
from tests.wizard.conftest import ScriptedFace, settings_of
from woodshed.errors import SettingsError
from woodshed.settings.declare import choices_of
from woodshed.settings.files import save_preset
from woodshed.settings.schema import GenerateSettings, PreprocessSettings, TrainSettings
from woodshed.wizard.command_line import command_text, command_words, quoted
from woodshed.wizard.dialog import BackError, Dialog, ToMenuError
from woodshed.wizard.draft import Draft
from woodshed.wizard.questions import read_answer, setting_choices
from woodshed.wizard.walk import Walk

WORDS = st.sampled_from(
    ["q_proj", "q_proj,v_proj", "up_proj down_proj", "--yes", "-1", "", "a b", "'x'", "ünï", "$HOME"]
)
NUMBERS = st.sampled_from(["1", "2", "0", "-1", "1e-4", "0,5", "0.25", "16", "auto", "x", "3.0", "-", "1_0", " 7"])


def answers_for(name, kind):
    """Draw an answer to a setting's question, a sensible one or not."""
    choices = setting_choices(kind.model_fields[name])
    special = st.sampled_from(["", "?", "b"])
    likely = st.sampled_from([choice.word for choice in choices]) if choices else NUMBERS | WORDS
    return likely | special


@pytest.fixture
def jobs(job_for):
    return {name: job_for(name) for name in ("train", "preprocess", "generate")}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("adapter", ["lora", "lokr"])
def test_any_sequence_of_answers_gives_the_settings_of_the_command_that_is_printed(data, jobs, monkeypatch, adapter):
    """Basic and Advanced, with and without a preset, wrong answers, help, steps back, out to the menu and in again."""
    monkeypatch.setattr("woodshed.wizard.checks.check", lambda _name, value, _draft: value)  # folders need not exist
    monkeypatch.setattr("woodshed.wizard.checks.with_choices", lambda ask, *_: ask)
    monkeypatch.setattr("woodshed.wizard.walk.Walk._suggestion", lambda *_: "suggested")
    save_preset("mine", {"rank": 8, "lokr_factor": 4, "seed": 7, "optimizer_type": "prodigy"}, replace=True)
    draft = Draft(TrainSettings, {"adapter_type": adapter})
    patience = data.draw(st.integers(10, 90))
    count = 0

    def answer(ask):
        nonlocal count
        count += 1
        name = TITLES.get(ask.title.split(" (")[0])
        if count > patience:  # enough wrong answers and steps back
            return ""
        if name is not None:
            return data.draw(answers_for(name, TrainSettings))
        words = [choice.word for choice in ask.choices]
        return data.draw(st.sampled_from([*words, "", "?", "b", "q"]))

    for _ in range(100):
        walk = Walk(Dialog(ScriptedFace([answer] * 400)), jobs["train"], draft, lambda _: None)
        try:
            walk.run()
            break
        except (BackError, ToMenuError):
            continue  # the menu offers the same training again
    event(f"{'Advanced' if draft.is_advanced else 'Basic'}, {'a' if draft.preset else 'no'} preset")
    found = settings_of("train", command_words(jobs["train"], draft))
    wanted = draft.resolve().settings
    assert found == wanted
    empty = {name for name, value in wanted if value == ()}  # a list that stays empty needs no flag
    assert found.model_fields_set - empty == wanted.model_fields_set - empty


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12).map(str.strip).filter("--".__ne__)
"""Whatever people type, but for two dashes alone, which argparse drops wherever they stand."""


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", ["preprocess", "generate"])
def test_free_text_survives_the_command_line(data, name, jobs):
    kind = {"preprocess": PreprocessSettings, "generate": GenerateSettings}[name]
    draft = Draft(kind)
    for setting, field in kind.model_fields.items():
        if choices_of(field) or field.annotation is bool:
            continue
        typed = data.draw(TEXT | NUMBERS)
        if typed:
            draft.try_answer(setting, read_answer(field, typed))
        if draft.is_missing(setting):
            draft.try_answer(setting, "60")
    assert settings_of(name, command_words(jobs[name], draft)) == draft.resolve().settings


def test_the_command_is_quoted_for_the_shell(jobs):
    draft = Draft(PreprocessSettings)
    for name, value in {
        "model": "base",
        "audio_dir": "my songs",
        "tensor_output": "out",
        "custom_tag": "--yes",
    }.items():
        assert draft.try_answer(name, value) == []
    text = command_text(jobs["preprocess"], draft)
    assert "--audio-dir 'my songs'" in text
    assert "--custom-tag=--yes" in text
    assert shlex.split(text)[2:] == command_words(jobs["preprocess"], draft)


def test_windows_gets_its_own_quotes(monkeypatch):
    monkeypatch.setattr("os.name", "nt")
    assert quoted(["woodshed", "train", "--output-dir", "C:\\my out"]) == 'woodshed train --output-dir "C:\\my out"'


def test_a_preset_is_named_and_the_answers_over_it_are_flags(jobs):
    draft = Draft(TrainSettings, {"adapter_type": "lora"})
    assert draft.try_preset("quick_test") == ()
    assert draft.try_answer("gradient_checkpointing", False) == []
    words = command_words(jobs["train"], draft)
    assert words[:2] == ["--preset", "quick_test"]
    assert "--no-gradient-checkpointing" in words
    assert "--rank" not in words
    with pytest.raises(SettingsError, match="model is required"):
        draft.resolve()


@pytest.mark.parametrize("typed", ["", []])
def test_a_list_that_was_emptied_wins_over_the_preset(jobs, typed):
    save_preset("mine", {"rank_pattern": ["q_proj=8"]})
    draft = Draft(TrainSettings, {"adapter_type": "lora"})
    assert draft.try_preset("mine") == ()
    for name, value in {"model": "base", "dataset_dir": "songs", "output_dir": "out", "rank_pattern": typed}.items():
        assert draft.try_answer(name, value) == []
    found = settings_of("train", command_words(jobs["train"], draft))
    assert found == draft.resolve().settings
    assert found.rank_pattern == ()
