"""What has no effect is named with its reason; what looks wrong is pointed out."""

import pytest

from woodshed.settings import rules
from woodshed.settings.schema import TrainSettings


def test_a_lora_run_names_every_lokr_setting_inert_and_no_lora_one(resolved):
    idle = rules.inert(resolved().settings)
    assert {name for name in TrainSettings.model_fields if name.startswith("lokr_")} <= set(idle)
    assert not {"rank", "alpha", "dropout", "attention_type"} & set(idle)


def test_a_lokr_run_names_the_lora_settings_and_tucker(resolved):
    idle = rules.inert(resolved(adapter_type="lokr").settings)
    assert {"rank", "alpha", "dropout", "lokr_use_tucker"} <= set(idle)
    assert "lokr_factor" not in idle


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"mode": "vanilla"}, "cfg_ratio"),
        ({"scheduler_type": "constant"}, "warmup_steps"),
        ({"num_workers": "0"}, "prefetch_factor"),
        ({"num_workers": "0"}, "persistent_workers"),
        ({"keep_in_memory": "yes"}, "num_workers"),
        ({"keep_in_memory": "no", "epochs": "1"}, "persistent_workers"),
        ({"device": "cpu"}, "pin_memory"),
        ({"device": "mps"}, "pin_memory"),
        ({"save_every": "0", "keep_last": "3"}, "keep_last"),
        ({"target_modules": "gate_proj"}, "attention_type"),
        ({}, "offload_encoder"),
    ],
)
def test_settings_without_effect_are_named(resolved, flags, name):
    assert name in rules.inert(resolved(**flags).settings)


@pytest.mark.parametrize(
    "name",
    ["cfg_ratio", "warmup_steps", "num_workers", "prefetch_factor", "persistent_workers", "pin_memory", "keep_last"],
)
def test_settings_with_effect_are_not_named(resolved, name):
    assert name not in rules.inert(resolved(keep_in_memory="no").settings)


def test_on_windows_workers_that_were_asked_for_are_named(resolved, monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    idle = rules.inert(resolved(keep_in_memory="no", num_workers="4").settings)
    assert {"num_workers", "prefetch_factor", "persistent_workers"} <= set(idle)
    assert "Windows" in idle["num_workers"]


def test_reasons_can_follow_the_words_has_no_effect(resolved):
    for reason in rules.inert(resolved(adapter_type="lokr", mode="vanilla", num_workers="0").settings).values():
        assert reason[0].islower() or reason.startswith("Tucker")
        assert not reason.endswith(".")


def test_a_prodigy_rate_other_than_one_is_pointed_out(resolved):
    said = rules.remarks(resolved(optimizer_type="prodigy", learning_rate="1e-4").settings)
    assert any("expects learning_rate 1.0" in line for line in said)
    assert rules.remarks(resolved(optimizer_type="prodigy").settings) == []


def test_prodigy_with_restarts_is_pointed_out(resolved):
    said = rules.remarks(resolved(optimizer_type="prodigy", scheduler_type="cosine_restarts").settings)
    assert any("restarts" in line for line in said)


def test_a_rate_meant_for_prodigy_is_pointed_out_for_adamw(resolved):
    assert any("far above" in line for line in rules.remarks(resolved(learning_rate="1.0").settings))
    assert rules.remarks(resolved().settings) == []


@pytest.mark.parametrize("value", ["16", 16])
def test_followers_read_numbers_from_flags_and_files(value):
    moved = rules.followers({"rank": value}, {"rank": 64, "alpha": 128.0})
    assert [(item.name, item.value) for item in moved] == [("alpha", 32.0)]


@pytest.mark.parametrize("value", ["x", "-3", "0", None, 2.5, True, "1.5"])
def test_followers_leave_nonsense_to_the_validation(value):
    assert rules.followers({"rank": value}, {"rank": 64, "alpha": 128.0}) == []


def test_followers_concern_only_settings_the_command_has():
    assert rules.followers({"rank": 8, "optimizer_type": "prodigy"}, {"seed": 42}) == []
