"""What happens between epochs changes nothing in the training, whatever the family of the adapter."""

import pytest

from woodshed.training.events import SampleMade, Validated
from woodshed.training.loop import train
from woodshed.training.preflight import check

LISTENED = {
    "validation_share": 0.4,
    "validate_every_n_epochs": 1,
    "keep_best": True,
    "average_best": 2,
    "sample_every_n_epochs": 1,
    "sample_count": 1,
    "sample_seconds": 0.2,
    "num_inference_steps": 1,
}
SMALL = {"oft_block_size": 8, "lokr_linear_dim": 4, "lokr_factor": 2, "target_modules": "q_proj v_proj"}


@pytest.mark.parametrize("adapter", ["lora", "dora", "lokr", "loha", "oft"])
def test_runs_with_and_without_samples_and_validation_give_the_same_adapter_to_the_last_byte(
    settings_for, dataset_dir, tmp_path, adapter
):
    changes = SMALL | {"adapter_type": adapter, "learning_rate": 0.02}
    changes |= {"bias": "all"} if adapter in ("lora", "dora", "lokr") else {}
    settings = settings_for("with", **changes, **LISTENED)
    held_out = check(settings).held_out.names
    events = list(train(settings))
    assert len([event for event in events if isinstance(event, Validated)]) == 2
    assert [event.epoch for event in events if isinstance(event, SampleMade)] == [0, 1, 2]
    for name in held_out:
        (dataset_dir / f"{name}.pt").unlink()
    list(train(settings_for("without", **changes, num_inference_steps=1)))
    files = sorted(path.name for path in (tmp_path / "with" / "final").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "without" / "final").iterdir())
    for name in files:
        one, other = ((tmp_path / run / "final" / name).read_bytes() for run in ("with", "without"))
        assert one == other
