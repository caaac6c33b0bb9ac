"""The mean of the best epochs: the mean to the last bit, measured, and kept only where it is better."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from woodshed.adapters.saved import read_adapter
from woodshed.errors import UserError
from woodshed.training import averaging
from woodshed.training.averaging import AVERAGE, PARTS, Averaging, mean_of
from woodshed.training.events import Notice, Saved, StepDone, Validated
from woodshed.training.loop import take_step, train
from woodshed.training.preflight import check
from woodshed.training.run import load_run
from woodshed.training.validation import Validation

HELD = {"validation_share": 0.4, "validate_every_n_epochs": 1, "average_best": 2}


def kept(folder):
    return sorted(path.stem for path in (folder / PARTS).glob("*.safetensors"))


def notices(events):
    said = [event.text for event in events if isinstance(event, Notice)]
    return [text for text in said if text.startswith(("The average", "No average")) or " in the average: " in text]


@pytest.fixture
def run_and_measure(settings_for):
    """A run that learned a little, and what measures and averages it."""

    def build(**changes):
        run = load_run(check(settings_for(**HELD | {"learning_rate": 0.02, "warmup_steps": 0, "dropout": 0} | changes)))
        for batch in list(run.loader.epoch(1)):
            take_step(run, [*run.prepare([batch])])
        run.loader.close()
        validation = Validation(run, {})
        return run, validation, Averaging(run, validation)

    return build


def values_of(run):
    return {name: value.detach().clone() for name, value in run.adapter.trainable_parameters().items()}


def step_aside(run, start, sign, size):
    """Move every trained tensor by a random step, the same one for every sign."""
    generator = torch.Generator().manual_seed(5)
    moved = {name: value + sign * size * torch.randn(value.shape, generator=generator) for name, value in start.items()}
    run.adapter.load_parameters(moved)


def measure_on_either_side(run, validation, averaging, size):
    """Measure two epochs that lie on either side of where the run stands; return where that is, and the losses."""
    middle, losses = values_of(run), []
    for epoch, sign in ((1, 1), (2, -1)):
        step_aside(run, middle, sign, size)
        found, _ = validation.measure(epoch)
        assert not list(averaging.take(epoch, found.loss))
        losses.append(found.loss)
        run.position.step += 1
    run.position.epoch = 3
    return middle, losses


def test_an_average_that_is_better_than_every_epoch_is_kept_and_said_to_be(run_and_measure, tmp_path):
    run, validation, averaging = run_and_measure()
    middle, losses = measure_on_either_side(run, validation, averaging, size=0.4)
    saved, said = averaging.finish()
    assert saved == Saved(tmp_path / "out" / AVERAGE, "average", 2, run.position.step)
    run.adapter.load_parameters(middle)
    loss = sum(validation.held_out_losses()) / len(validation.held_out_losses())
    assert loss < min(losses)
    assert said.text.startswith(f"The average of epochs 1, 2 has a held-out loss of {loss:.4f}, ")
    assert f"{min(losses) - loss:.4f} (+- " in said.text


@pytest.mark.parametrize("adapter", ["lora", "dora", "lokr", "loha", "oft"])
def test_the_averages_file_is_the_mean_whatever_the_family_and_the_run_goes_on_as_it_was(
    run_and_measure, tmp_path, adapter
):
    changes = {"adapter_type": adapter, "oft_block_size": 8, "lokr_linear_dim": 4, "lokr_factor": 2}
    run, validation, averaging = run_and_measure(**changes)
    middle, _ = measure_on_either_side(run, validation, averaging, size=0.1)
    validation.memory.best_losses = [loss + 1 for loss in validation.memory.best_losses]  # whatever comes is better
    last = values_of(run)
    list(averaging.finish())
    assert all(torch.equal(value, last[name]) for name, value in values_of(run).items())
    run.adapter.load_parameters(middle)
    file = read_adapter(tmp_path / "out" / AVERAGE)
    assert file.recipe["averaged_epochs"] == [1, 2]
    for module in run.adapter.modules:
        delta = file.delta(module, run.adapter.base_weight(module))
        torch.testing.assert_close(delta, run.adapter.effective_delta(module), rtol=1e-4, atol=1e-5)


def test_what_is_not_better_is_measured_said_and_not_kept(settings_for, tmp_path):
    events = list(train(settings_for(epochs=3, **HELD)))
    found = [event for event in events if isinstance(event, Validated)]
    assert found[-1].is_best  # it falls all the way, so that a mean lags behind
    (said,) = notices(events)
    assert said.startswith("The average of epochs 2, 3 has a held-out loss of ")
    assert said.endswith(f"not lower than that of epoch 3 ({found[-1].loss:.4f}), so it is not kept.")
    assert not (tmp_path / "out" / AVERAGE).exists()


def test_the_mean_is_that_of_the_files_in_float64(tmp_path, run_and_measure):
    run, validation, averaging = run_and_measure()
    measure_on_either_side(run, validation, averaging, size=1e-3)
    paths = [tmp_path / "out" / PARTS / f"epoch-{epoch}.safetensors" for epoch in (1, 2)]
    one, two = map(load_file, paths)
    for name, value in mean_of(paths).items():
        assert torch.equal(value, ((one[name].double() + two[name].double()) / 2).float())
        assert value.dtype == torch.float32


def test_for_a_lora_the_tensors_mean_is_nearer_to_the_weights_mean_than_any_epoch_is(run_and_measure):
    run, validation, averaging = run_and_measure()
    middle, _ = measure_on_either_side(run, validation, averaging, size=0.02)
    deltas = []
    for sign in (1, -1, 0):
        step_aside(run, middle, sign, 0.02)
        deltas.append(torch.cat([run.adapter.effective_delta(module).flatten() for module in run.adapter.modules]))
    exact = (deltas[0] + deltas[1]) / 2
    apart = [(delta - exact).norm().item() for delta in deltas]
    assert apart[2] < 0.5 * min(apart[:2])


def test_only_the_best_epochs_stay_on_the_disk_and_none_that_a_resume_needs_is_deleted(settings_for, tmp_path):
    for event in train(settings_for("two", epochs=5, save_every=2, gradient_accumulation=3, **HELD)):
        if isinstance(event, Validated) and event.epoch == 4:
            # the newest checkpoint is that of epoch 2, which would average epochs 1 and 2
            assert {"epoch-1", "epoch-2", "epoch-3", "epoch-4"} <= set(kept(tmp_path / "two"))
        if isinstance(event, Validated) and event.epoch == 5:
            assert kept(tmp_path / "two") == ["epoch-3", "epoch-4", "epoch-5"]
    assert kept(tmp_path / "two") == ["epoch-4", "epoch-5"]


def told(events):
    return [(e.step, e.loss) for e in events if isinstance(e, (StepDone, Validated))], notices(events)


def test_stopping_and_resuming_averages_the_same(settings_for, train_until):
    whole = told(list(train(settings_for("whole", epochs=3, **HELD))))
    first = train_until(settings_for("parts", epochs=3, **HELD), lambda e: isinstance(e, StepDone) and e.step == 4)
    rest = list(train(settings_for("parts", epochs=3, resume_from="latest", **HELD)))
    assert tuple(one + other for one, other in zip(told(first), told(rest), strict=True)) == whole
    assert len(whole[1]) == 1


def test_an_epoch_whose_file_is_gone_is_named_and_left_out(settings_for, tmp_path):
    list(train(settings_for(epochs=2, save_every=1, **HELD)))
    shutil.rmtree(tmp_path / "out" / PARTS)
    said = notices(train(settings_for(epochs=3, resume_from="latest", **HELD)))
    assert [line.split(":")[0] for line in said[:2]] == [f"Epoch {n} takes no part in the average" for n in (2, 1)]
    assert said[2].startswith("No average is made: fewer than two epochs were measured")


def test_one_epoch_is_no_average_and_without_validation_the_setting_does_nothing(settings_for):
    with pytest.raises(UserError, match=r"average_best must be 0 \(off\) or at least 2; got 1"):
        settings_for(average_best=1)
    assert check(settings_for(average_best=2)).inert["average_best"].endswith("so no song is held out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), torch.OutOfMemoryError("CUDA\nis full")])
def test_an_average_that_cannot_be_made_costs_neither_the_final_adapter_nor_the_run(
    settings_for, tmp_path, monkeypatch, error
):
    def fail(*_):
        raise error

    list(train(settings_for("without", epochs=2, **HELD | {"average_best": 0})))
    monkeypatch.setattr(averaging, "mean_of", fail)
    said = notices(train(settings_for("with", epochs=2, **HELD)))
    assert [line.split(": ")[0] for line in said] == ["No average is kept, and the run ends as without it"]
    for path in (tmp_path / "with" / "final").iterdir():
        assert path.read_bytes() == (tmp_path / "without" / "final" / path.name).read_bytes()


def test_an_epoch_that_the_disk_has_no_room_for_is_named_and_left_out(settings_for, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(averaging, "save_tensors", full)
    said = notices(train(settings_for(epochs=2, **HELD)))
    assert [line.split(":")[0] for line in said[:2]] == [f"Epoch {n} takes no part in the average" for n in (1, 2)]
    assert kept(tmp_path / "out") == []
