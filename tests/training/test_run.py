"""What a run says before it starts: what auto became, what moved with what, and which choices do nothing."""

import pytest

from woodshed.settings.files import preset_layer
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.choices import choices_made
from woodshed.training.preflight import check
from woodshed.training.run import load_run


@pytest.fixture
def said(settings_for):
    """Resolve flags, over a preset if one is named, and return every line that the run would open with."""
    required = {"checkpoint_dir", "model", "dataset_dir", "output_dir"}

    def lines(*, preset=None, **flags):
        values = settings_for().model_dump(include=required)
        layers = [Layer("where", values), *([preset_layer(preset)] if preset else []), Layer("command line", flags)]
        resolved = resolve(TrainSettings, layers)
        found = check(resolved.settings)
        return [*choices_made(found, resolved.origins), *found.notices]

    return lines


def test_what_auto_became_is_said(said):
    assert said(device="auto")[:3] == [
        "device: auto -> cpu",
        "precision: auto -> fp32 (cpu)",
        "keep_in_memory: auto -> yes; 4 workers stay idle",
    ]
    assert "keep_in_memory: auto -> yes" in said(num_workers=0)
    assert "keep_in_memory: card -> yes" in said(num_workers=0, keep_in_memory="card", device="cpu")


def test_what_songs_take_of_a_card_is_said(said, monkeypatch):
    monkeypatch.setattr("woodshed.training.preflight.place_songs", lambda *_: ("card", 3 * 2**29))
    assert "keep_in_memory: auto -> card (1.50 GiB); 4 workers stay idle" in said(device="cpu")
    assert not [line for line in said(device="cpu", keep_in_memory="card") if line.startswith("keep_in_memory")]


def test_what_moves_with_another_choice_is_said(said):
    lines = said(rank=8, optimizer_type="prodigy")
    assert {"alpha: 16.0 (2 x rank)", "learning_rate: 1.0 (prodigy)", "scheduler_type: constant (prodigy)"} <= set(
        lines
    )
    assert not any(line.startswith("alpha") for line in said(rank=8, alpha=3))


def effectless(lines):
    return {line.split()[0] for line in lines if "has no effect" in line}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({}, set()),
        ({"num_workers": 8, "prefetch_factor": 4}, {"num_workers", "prefetch_factor"}),
        ({"pin_memory": False, "device": "cpu"}, {"pin_memory"}),
        ({"pin_memory": False}, {"pin_memory"}),  # auto comes to the CPU here
        ({"lokr_factor": 8}, {"lokr_factor"}),
        ({"mode": "vanilla", "cfg_ratio": 0.3}, {"cfg_ratio"}),
        ({"adapter_type": "lokr", "rank": 8}, {"rank", "lokr_use_tucker", "lokr_linear_dim", "lokr_linear_alpha"}),
    ],
)
def test_a_choice_of_the_users_that_does_nothing_is_named(said, monkeypatch, flags, named):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert effectless(said(**flags)) >= named
    assert effectless(said(**flags)) - named <= {"lokr_decompose_both"}


def test_a_presets_choice_that_does_nothing_is_named_too(said):
    assert "offload_encoder" in effectless(said(preset="vram_16gb"))
    assert "lokr_factor" in effectless(said(preset="lokr_strong", adapter_type="lora"))


def test_nothing_is_said_twice(said):
    lines = said(adapter_type="lokr", lokr_use_tucker=True, lokr_decompose_both=True, rank=8, num_workers=0)
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank": 3, "target_modules": "q_proj down_proj"},
        {"adapter_type": "lokr"},
        {"adapter_type": "lokr", "lokr_factor": 2, "lokr_linear_dim": 2, "lokr_use_scalar": True},
    ],
)
def test_the_size_of_the_adapter_is_known_before_the_model_is_loaded(settings_for, changes):
    found = check(settings_for(**changes))
    assert found.adapter_parameters == load_run(found).adapter.num_parameters
