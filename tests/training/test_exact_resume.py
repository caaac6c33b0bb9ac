"""A run that is stopped in mid-epoch and resumed ends with the bytes of one that never stopped, whatever else is on."""

import pytest

from woodshed.training.events import StepDone
from woodshed.training.loop import train

FAMILIES = {
    "lora": {"bias": "all"},
    "dora": {"adapter_type": "dora"},
    "loha": {"adapter_type": "loha"},
    "oft": {"adapter_type": "oft", "oft_block_size": 4},
    "lokr": {"adapter_type": "lokr", "lokr_linear_dim": 2, "lokr_factor": 2},
    "lokr, decomposed": {"adapter_type": "lokr", "lokr_weight_decompose": True, "lokr_use_scalar": True},
}
READING = {
    "workers": {"num_workers": 2, "keep_in_memory": "no", "persistent_workers": True},
    "resident": {"keep_in_memory": "yes"},
}
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy")
BESIDE = {
    "validation_share": 0.4,
    "validate_every_n_epochs": 1,
    "keep_best": True,
    "average_best": 2,
    "sample_every_n_epochs": 1,
    "sample_count": 1,
    "sample_seconds": 0.5,
    "num_inference_steps": 2,
}
CASES = (
    [pytest.param(changes, id=name) for name, changes in FAMILIES.items()]
    + [pytest.param({"optimizer_type": name}, id=name) for name in OPTIMIZERS[1:]]
    + [pytest.param(changes, id=name) for name, changes in READING.items()]
    + [pytest.param(BESIDE, id="validation and samples")]
    + [
        pytest.param({**changes, "optimizer_type": optimizer}, id=f"{name}, {optimizer}", marks=pytest.mark.slow)
        for name, changes in FAMILIES.items()
        for optimizer in OPTIMIZERS[1:]
    ]
)


def losses(events):
    return [event.loss for event in events if isinstance(event, StepDone)]


def content_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "final").iterdir()}


@pytest.mark.parametrize("changes", CASES)
def test_stopped_in_mid_epoch_a_run_ends_as_if_it_had_not(settings_for, train_until, tmp_path, changes):
    common = {"epochs": 2, "gradient_accumulation": 1, "target_modules": "q_proj", "attention_type": "self", **changes}
    whole = losses(train(settings_for("whole", **common)))
    middle = len(whole) // 2 + 1
    first = train_until(
        settings_for("parts", **common), lambda event: isinstance(event, StepDone) and event.step == middle
    )
    assert first[-1].adapter.name == f"checkpoint-epoch-2-step-{middle}"
    rest = train(settings_for("parts", resume_from="latest", **common))
    assert losses(first) + losses(rest) == whole
    assert content_of(tmp_path / "parts") == content_of(tmp_path / "whole")
