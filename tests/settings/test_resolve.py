"""Precedence, origins, and every problem in one message."""

import dataclasses
from pathlib import Path

import pytest

from woodshed.errors import SettingsError
from woodshed.settings.declare import declarations
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings, TrainSettings


def problems_of(call, *arguments, **named):
    with pytest.raises(SettingsError) as caught:
        call(*arguments, **named)
    return caught.value.problems


def test_a_later_layer_wins_and_every_value_remembers_its_origin(resolved):
    result = resolved(Layer("preset p", {"rank": 8, "epochs": 5}), Layer("run.toml", {"epochs": 6}), seed="7")
    assert (result.settings.rank, result.settings.epochs, result.settings.seed) == (8, 6, 7)
    assert result.origins["rank"] == "preset p"
    assert result.origins["epochs"] == "run.toml"
    assert result.origins["seed"] == "command line"
    assert result.origins["dropout"] == "default"


def test_text_from_the_command_line_becomes_numbers_words_and_paths(resolved):
    settings = resolved(
        learning_rate="2e-4", gradient_checkpointing="no", target_modules="q_proj,v_proj k_proj"
    ).settings
    assert settings.learning_rate == 2e-4
    assert settings.gradient_checkpointing is False
    assert settings.target_modules == ("q_proj", "v_proj", "k_proj")
    assert settings.output_dir == Path("out")


def test_target_words_may_come_as_several_arguments_too(resolved):
    assert resolved(target_modules=["q_proj", "k_proj v_proj"]).settings.target_modules == (
        "q_proj",
        "k_proj",
        "v_proj",
    )


@pytest.mark.parametrize(("size", "alpha"), [("rank", "alpha"), ("lokr_linear_dim", "lokr_linear_alpha")])
def test_alpha_follows_the_rank_unless_set(resolved, size, alpha):
    followed = resolved(**{size: "16"})
    assert getattr(followed.settings, alpha) == 32
    assert followed.origins[alpha] == f"2 x {size}"
    assert getattr(resolved(**{size: "16", alpha: "5"}).settings, alpha) == 5


def test_prodigy_moves_rate_and_schedule_unless_set(resolved):
    moved = resolved(optimizer_type="prodigy")
    assert (moved.settings.learning_rate, moved.settings.scheduler_type) == (1.0, "constant")
    assert moved.origins["learning_rate"] == "prodigy"
    kept = resolved(optimizer_type="prodigy", learning_rate="0.5", scheduler_type="cosine").settings
    assert (kept.learning_rate, kept.scheduler_type) == (0.5, "cosine")


def test_windows_has_no_workers_unless_asked(resolved, monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    assert resolved().settings.num_workers == 0
    assert resolved().origins["num_workers"] == "Windows"


BAD = {
    "rank": ("0", "rank must be at least 1; got 0 (command line)."),
    "dropout": ("1", "dropout must be less than 1; got 1 (command line)."),
    "learning_rate": ("-1", "learning_rate must be more than 0; got -1 (command line)."),
    "epochs": ("0", "epochs must be at least 1; got 0 (command line)."),
    "batch_size": ("0", "batch_size must be at least 1; got 0 (command line)."),
    "cfg_ratio": ("2", "cfg_ratio must be at most 1; got 2 (command line)."),
    "seed": ("x", "seed must be a whole number; got x (command line)."),
    "alpha": ("nan", "alpha must be a finite number; got nan (command line)."),
    "pin_memory": ("maybe", "pin_memory must be yes or no; got maybe (command line)."),
    "shift": ("fast", "shift must be auto or a number; got fast (command line)."),
    "optimizer_type": (
        "adamx",
        "optimizer_type must be one of adamw, adamw8bit, adafactor, prodigy; got adamx (command line). "
        "Did you mean adamw?",
    ),
}


@pytest.mark.parametrize(("name", "value", "sentence"), [(name, *pair) for name, pair in BAD.items()], ids=list(BAD))
def test_a_bad_value_is_answered_with_what_must_hold(resolved, name, value, sentence):
    assert problems_of(resolved, **{name: value}) == (sentence,)


def test_all_problems_come_at_once(resolved):
    found = problems_of(resolved, **{name: value for name, (value, _) in BAD.items()}, lerning_rate="3")
    assert set(found) == {sentence for _, sentence in BAD.values()} | {
        "There is no setting called lerning_rate (command line). Did you mean learning_rate?"
    }


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "max_grad_norm", "dropout", "cfg_ratio", "alpha"])
def test_no_number_is_nan_or_infinite(resolved, name, value):
    assert problems_of(resolved, **{name: value})[0].startswith(f"{name} must be")


def test_missing_settings_say_what_they_are_and_how_to_give_them():
    found = problems_of(resolve, TrainSettings, [])
    assert found == (
        "model is required: which model variant to train on. Give it as --model.",
        "dataset_dir is required: folder with preprocessed `.pt` files. Give it as --dataset-dir.",
        "output_dir is required: where adapter weights and logs are saved. Give it as --output-dir.",
    )
    assert "tensor_output" in problems_of(resolve, PreprocessSettings, [])[1]


def test_refused_settings_leave_the_rest_usable_for_further_checks(resolved):
    with pytest.raises(SettingsError) as caught:
        resolved(rank="0", device="cuda:99")
    assert caught.value.usable.device == "cuda:99"
    assert caught.value.usable.rank == 64


def test_nothing_is_usable_without_the_required_settings():
    with pytest.raises(SettingsError) as caught:
        resolve(TrainSettings, [Layer("command line", {"rank": 0})])
    assert caught.value.usable is None


def test_a_setting_whose_effect_is_not_built_yet_is_refused_when_changed(resolved, monkeypatch):
    waiting = dataclasses.replace(declarations(TrainSettings)["log_every"], coming="log_every is not built yet.")
    monkeypatch.setattr("woodshed.settings.resolve.declarations", lambda _: {"log_every": waiting})
    assert resolved(log_every="10").settings.log_every == 10
    assert problems_of(resolved, log_every="5") == ("log_every is not built yet.",)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"target_modules": ""}, "target_modules must name at least one projection"),
        ({"lokr_factor": "0"}, "lokr_factor must be -1 (automatic) or at least 1; got 0."),
        ({"shift": "-2"}, "shift must be more than 0 and finite, or auto; got -2."),
        ({"shift": "nan"}, "shift must be more than 0 and finite, or auto; got nan."),
        ({"shift": "inf"}, "shift must be more than 0 and finite, or auto; got inf."),
        ({"num_inference_steps": "0"}, "num_inference_steps must be more than 0 and finite, or auto; got 0."),
    ],
)
def test_contradictions_are_refused(resolved, flags, sentence):
    assert problems_of(resolved, **flags)[0].startswith(sentence)


def test_an_empty_resume_from_means_a_new_run(resolved):
    assert resolved(resume_from="").settings.resume_from is None
