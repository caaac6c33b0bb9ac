"""What the review promises is what the run does."""

import pytest

from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings, TrainSettings
from woodshed.toy.songs import write_audio
from woodshed.training import memory_plan
from woodshed.training.memory_plan import trained_by
from woodshed.training.preflight import check
from woodshed.training.run import load_run
from woodshed.wizard import consequences
from woodshed.wizard.consequences import follow


@pytest.fixture
def chosen():
    """Settings of a training on the toy model."""

    def build(**changes):
        usual = {"checkpoint_dir": "checkpoints", "model": "acestep-v15-base", "dataset_dir": "songs"}
        values = usual | {"output_dir": "out", "device": "cpu", "rank": 4, "warmup_steps": 0, "epochs": 3} | changes
        return resolve(TrainSettings, [Layer("test", values)]).settings

    return build


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": "gate_proj q_proj", "attention_type": "self", "rank": 3},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"adapter_type": "lokr"},
        {"adapter_type": "lokr", "lokr_factor": 4, "lokr_linear_dim": 2, "lokr_decompose_both": True},
        {"adapter_type": "lokr", "lokr_weight_decompose": True, "lokr_use_scalar": True, "bias": "all"},
    ],
)
def test_trained_tensors_are_those_of_the_real_adapter(chosen, changes):
    preflight = check(chosen(**changes))
    real = [parameter.numel() for parameter in load_run(preflight).parameters]
    given = preflight.settings, preflight.checkpoint.config, preflight.targets, preflight.adapter_parameters
    assert trained_by(*given).count == sum(real)


def rows_of(settings):
    found = follow(settings)
    assert found.problems == ()
    return {name: (value, remark) for name, value, remark in found.rows}, found


def test_steps_and_warm_up_are_those_of_the_plan(chosen):
    rows, _ = rows_of(chosen(epochs=8, warmup_steps=2))
    assert rows["Optimizer steps"] == ("8", "8 x 1 an epoch; 1 song, 4 a step")
    assert rows["Effective warm-up"] == ("2 steps", "25% of the run, then cosine")
    assert rows_of(chosen(scheduler_type="constant", warmup_steps=2))[0]["Effective warm-up"][0] == "none"
    assert rows_of(chosen(warmup_steps=9))[0]["Effective warm-up"][0] == "3 steps"


def test_memory_grows_with_what_takes_it(chosen, monkeypatch):
    sizes = []
    real = memory_plan.estimate_memory
    monkeypatch.setattr(memory_plan, "estimate_memory", lambda *a, **k: sizes.append(real(*a, **k)) or sizes[-1])
    for changes in ({}, {"rank": 64}, {"optimizer_type": "prodigy"}, {"gradient_checkpointing": False}):
        follow(chosen(**changes))
    usual = sizes[0].total
    assert all(size.total > usual for size in sizes[1:])


def test_a_run_that_may_not_fit_says_what_helps(chosen, monkeypatch):
    monkeypatch.setattr(consequences, "device_memory", lambda _: 2**20 // 4)
    _, found = rows_of(chosen(batch_size=2, gradient_checkpointing=False))
    assert found.notes[0].endswith("What helps: gradient checkpointing, batch size 1, a smaller rank, shorter songs.")


def test_memory_of_an_unknown_machine_is_called_unknown(chosen, monkeypatch):
    monkeypatch.setattr(consequences, "device_memory", lambda _: None)
    assert "whose memory is unknown" in rows_of(chosen())[0]["Memory"][1]


def test_problems_come_instead_of_consequences(chosen):
    found = follow(chosen(dataset_dir="nowhere", target_modules="nothing"))
    assert len(found.problems) >= 2
    assert found.rows == ()


def test_preprocessing_says_how_many_songs_it_found(home):
    import numpy as np

    (home / "music").mkdir()
    write_audio(home / "music" / "a.wav", np.zeros((2, 4800), dtype=np.float32))
    values = {"checkpoint_dir": "checkpoints", "model": "base", "audio_dir": "music", "tensor_output": "out"}
    rows, _ = rows_of(resolve(PreprocessSettings, [Layer("test", values)]).settings)
    assert rows["Songs"][0] == "1"
    empty = resolve(PreprocessSettings, [Layer("test", values | {"audio_dir": "songs"})]).settings
    assert follow(empty).problems


def test_windows_of_songs_take_less_memory_and_time(chosen, monkeypatch):
    asked = []
    real = memory_plan.estimate_memory
    monkeypatch.setattr(
        memory_plan, "estimate_memory", lambda *given, **more: asked.append(more["frames"]) or real(*given, **more)
    )
    for seconds in (0, 0.08, 600):
        follow(chosen(crop_seconds=seconds))
    assert asked[1] == 2 < asked[0] == asked[2]
