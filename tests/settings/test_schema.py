"""What the types of the schema accept."""

from pathlib import Path

import pytest

from woodshed.settings.schema import PreprocessSettings, TrainSettings

REQUIRED = {"model": "base", "dataset_dir": "d", "output_dir": "o"}


@pytest.mark.parametrize(
    "given",
    [
        "q_proj k_proj",
        "q_proj,k_proj",
        " q_proj , k_proj ",
        ["q_proj", "k_proj"],
        ["q_proj,k_proj"],
        ("q_proj k_proj",),
    ],
)
def test_words_come_with_spaces_or_commas_in_one_string_or_several(given):
    assert TrainSettings(**REQUIRED, target_modules=given).target_modules == ("q_proj", "k_proj")


def test_an_empty_path_is_no_path():
    assert TrainSettings(**REQUIRED, log_dir="").log_dir is None
    assert PreprocessSettings(model="m", tensor_output="t", audio_dir="").audio_dir is None


def test_training_and_preprocessing_share_one_declaration_of_the_model():
    for name in ("checkpoint_dir", "model", "device", "precision"):
        assert TrainSettings.model_fields[name].title == PreprocessSettings.model_fields[name].title


def test_paths_are_paths():
    settings = TrainSettings(**REQUIRED, resume_from="out/checkpoint-epoch-3")
    assert settings.resume_from == Path("out/checkpoint-epoch-3")


@pytest.mark.parametrize(("name", "value"), [("shift", 3.0), ("num_inference_steps", 8)])
def test_playback_is_auto_or_a_number(name, value):
    assert getattr(TrainSettings(**REQUIRED), name) == "auto"
    assert getattr(TrainSettings(**REQUIRED, **{name: str(value)}), name) == value
