"""Held-out songs say whether an adapter learned, or learned by heart."""

import math
import statistics
from contextlib import contextmanager

import pytest
import torch

from woodshed.data.dataset import SongDataset
from woodshed.errors import UserError
from woodshed.training import validation
from woodshed.training.bypass import listening
from woodshed.training.checkpoint import read_resume_point
from woodshed.training.events import EpochDone, Notice, Saved, StepDone, Validated
from woodshed.training.loop import take_step, train
from woodshed.training.preflight import check
from woodshed.training.randomness import derive_seed
from woodshed.training.run import load_run
from woodshed.training.timesteps import TURBO_TIMESTEPS, sample_timesteps
from woodshed.training.validation import Memory, Validation, mean_difference, remember

HELD = {"validation_share": 0.4, "validate_every_n_epochs": 1}


def adapter_bytes(folder):
    return (folder / "final" / "adapter_model.safetensors").read_bytes()


def trained(settings, steps=3):
    """A run after a few steps, so that its adapter does something."""
    run = load_run(check(settings))
    for batch in list(run.loader.epoch(1))[:steps]:
        take_step(run, [*run.prepare([batch])])
    run.position.epoch = 2
    run.loader.close()
    return run


def test_an_untrained_adapter_changes_nothing_to_the_last_bit(settings_for):
    run = load_run(check(settings_for(**HELD)))
    found, said = Validation(run, {}).measure(1)
    assert (found.change, found.error, found.train_change, found.gap) == (0, 0, 0, 0)
    assert found.is_best
    assert not said


@pytest.mark.parametrize("adapter", ["lora", "dora", "lokr", "loha", "oft"])
def test_the_base_model_is_the_same_before_and_after_training_whatever_the_family(settings_for, adapter):
    changes = {"adapter_type": adapter, "oft_block_size": 8, "lokr_linear_dim": 4, "lokr_factor": 2}
    changes |= {"bias": "all"} if adapter in ("lora", "dora", "lokr") else {}
    fresh, late = load_run(check(settings_for("a", **HELD, **changes))), trained(settings_for("b", **HELD, **changes))
    first, later = Validation(fresh, {}), Validation(late, {})
    values = {name: value.clone() for name, value in late.adapter.trainable_parameters().items()}
    found, _ = later.measure(1)
    first.measure(1)
    assert later._base == first._base
    assert found.change != 0
    again, _ = later.measure(1)
    assert again.loss == found.loss  # the adapter is back
    assert all(torch.equal(values[name], value) for name, value in late.adapter.trainable_parameters().items())
    assert late.decoder.training


def test_numbers_do_not_depend_on_the_batch_size_nor_on_chance(settings_for):
    numbers = []
    for name, size in (("a", 1), ("b", 3)):
        run = load_run(check(settings_for(name, batch_size=size, **HELD)))
        with torch.no_grad():
            for index, parameter in enumerate(run.parameters):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        torch.manual_seed(size)
        found, _ = Validation(run, {}).measure(1)
        numbers.append((found.loss, found.change, found.error, found.train_loss))
    assert numbers[0] == numbers[1]
    assert all(map(math.isfinite, numbers[0]))


def test_dropout_is_off_while_listening_and_back_on_afterwards(settings_for):
    run = load_run(check(settings_for(dropout=0.5)))
    kinds = [module for module in run.decoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert kinds
    with listening(run.decoder):
        assert not any(module.training for module in kinds)
        assert not torch.is_grad_enabled()
    assert all(module.training for module in kinds)
    assert torch.is_grad_enabled()


def test_a_run_with_songs_held_out_is_the_run_on_the_others_to_the_last_byte(settings_for, dataset_dir, tmp_path):
    settings = settings_for("with", **HELD)
    held_out = check(settings).held_out.names
    assert len(held_out) == 2
    list(train(settings))
    for name in held_out:
        (dataset_dir / f"{name}.pt").unlink()
    list(train(settings_for("without")))
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")


def test_of_few_short_songs_nothing_is_held_out_and_the_run_says_so(settings_for, dataset_dir, tmp_path):
    for name in "ab":
        (dataset_dir / f"{name}.pt").unlink()
    events = list(train(settings_for("with", **HELD)))
    list(train(settings_for("without")))
    assert not [event for event in events if isinstance(event, Validated)]
    assert any("fewer than 4 songs are too few" in event.text for event in events if isinstance(event, Notice))
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")


SAMPLED = {"sample_every_n_epochs": 2, "sample_count": 1, "sample_seconds": 0.2, "num_inference_steps": 1}


def told(events):
    """What a resume must repeat: everything measured, without how long it took."""
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    return losses, [(event.epoch, event.loss, event.is_best) for event in events if isinstance(event, Validated)]


@pytest.mark.parametrize("step", [4, pytest.param(5, marks=pytest.mark.slow)], ids=["between epochs", "in mid-epoch"])
def test_stopping_and_resuming_with_validation_and_samples_changes_nothing(settings_for, tmp_path, train_until, step):
    common = HELD | SAMPLED | {"epochs": 4, "keep_best": True}
    whole = told(list(train(settings_for("whole", **common))))
    first = train_until(
        settings_for("parts", **common), lambda event: isinstance(event, StepDone) and event.step == step
    )
    rest = list(train(settings_for("parts", resume_from="latest", **common)))
    parts = [one + other for one, other in zip(told(first), told(rest), strict=True)]
    assert tuple(parts) == whole
    assert adapter_bytes(tmp_path / "whole") == adapter_bytes(tmp_path / "parts")
    sounds = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.wav"))
        for name in ("whole", "parts")
    ]
    assert sounds[0] == sounds[1]
    assert len(sounds[0]) == 3
    points = [read_resume_point(tmp_path / name / "best") for name in ("whole", "parts")]
    assert points[0].position == points[1].position


@pytest.mark.slow
def test_overfitting_is_named_and_the_best_checkpoint_is_the_one_before_it(settings_for, tmp_path, dataset_dir):
    """The held-out songs are the opposite of those that train: what these teach by heart is wrong for those."""
    common = {"dropout": 0, "cfg_ratio": 0, "learning_rate": 3e-2, "scheduler_type": "constant", "rank": 8}
    common |= {"gradient_checkpointing": False, "gradient_accumulation": 2, "warmup_steps": 0, "keep_best": True}
    settings = settings_for(epochs=40, validation_share=0.5, validate_every_n_epochs=4, **common)
    (dataset_dir / "e.pt").unlink()
    split = check(settings)
    assert (len(split.dataset), len(split.held_out)) == (2, 2)
    pattern = 2 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    for path in dataset_dir.glob("*.pt"):
        sample = torch.load(path, weights_only=True)
        sign = -1 if path.stem in split.held_out.names else 1
        sample["target_latents"] = sign * pattern.expand_as(sample["target_latents"]).clone()
        torch.save(sample, path)
    events = list(train(settings))
    found = [event for event in events if isinstance(event, Validated)]
    lowest = min(found, key=lambda event: event.loss)
    assert found[-1].train_loss < lowest.train_loss
    assert found[-1].loss > lowest.loss
    assert found[-1].gap > lowest.gap
    (said,) = [event.text for event in events if isinstance(event, Notice) and "by heart" in event.text]
    assert f"since epoch {lowest.epoch} " in said
    assert read_resume_point(tmp_path / "out" / "best").position.epoch == lowest.epoch + 1
    assert [event for event in events if isinstance(event, Saved) and event.kind == "best"][-1].epoch == lowest.epoch
    epochs = [event.loss for event in events if isinstance(event, EpochDone)]
    assert sum(epochs[-5:]) < sum(epochs[:5])


def test_the_standard_error_is_that_of_the_differences_draw_by_draw():
    mean, error = mean_difference([1.0, 2.0, 4.0], [0.0, 1.0, 2.0])
    assert mean == pytest.approx(4 / 3)
    assert error == pytest.approx(statistics.stdev([1, 1, 2]) / math.sqrt(3))


def test_the_alarm_needs_two_clear_rises_in_a_row_while_training_falls_and_comes_once():
    memory = Memory()
    steps = [([1.0, 1.1], 1.0), ([1.2, 1.31], 0.9), ([0.9, 1.0], 0.85), ([1.1, 1.21], 0.8), ([1.2, 1.31], 0.9)]
    steps += [([1.2, 1.31], 0.7), ([1.3, 1.41], 0.6), ([1.4, 1.51], 0.5)]
    said = [remember(memory, epoch, held, loss) for epoch, (held, loss) in enumerate(steps, 1)]
    assert [is_best for is_best, _ in said] == [True, False, True, *[False] * 5]
    assert [bool(texts) for _, texts in said] == [False] * 6 + [True, False]
    assert (memory.best_epoch, memory.since_best) == (3, 5)
    assert "since epoch 3 the loss of held-out songs rose by 0.4" in said[6][1][0]


def test_another_share_on_resume_is_refused_because_songs_would_change_sides(settings_for):
    list(train(settings_for(save_every=1, **HELD)))
    with pytest.raises(UserError, match=r"validation_share 0\.4; this run asks for 0.2"):
        check(settings_for(epochs=4, resume_from="latest", validation_share=0.2))


def test_a_resume_holds_out_the_same_songs_though_seed_and_dataset_changed(settings_for, dataset_dir):
    settings = settings_for(save_every=1, **HELD)
    names = check(settings).held_out.names
    list(train(settings))
    for number in range(8):
        (dataset_dir / f"new{number}.pt").write_bytes((dataset_dir / "a.pt").read_bytes())
    again = check(settings_for(epochs=4, resume_from="latest", seed=5, **HELD))
    assert again.held_out.names == names
    assert len(again.dataset) == 11


def test_the_levels_are_the_middles_of_eight_equal_parts_of_what_training_draws(settings_for):
    run = load_run(check(settings_for(**HELD)))
    levels = Validation(run, {})._levels()
    drawn = sample_timesteps(
        100_000,
        mu=run.draw_rules.timestep_mu,
        sigma=run.draw_rules.timestep_sigma,
        generator=torch.Generator().manual_seed(1),
    )
    shares = [(drawn < level).float().mean().item() for level in levels]
    assert shares == pytest.approx([(2 * part + 1) / 16 for part in range(8)], abs=0.01)
    vanilla = load_run(check(settings_for("vanilla", mode="vanilla", **HELD)))
    assert Validation(vanilla, {})._levels().tolist() == pytest.approx(TURBO_TIMESTEPS)


def test_songs_meet_different_noise_and_so_do_levels_but_always_the_same(settings_for, monkeypatch):
    seeds = []
    monkeypatch.setattr(validation, "derive_seed", lambda *parts: seeds.append(parts) or derive_seed(*parts))
    run = load_run(check(settings_for(**HELD)))
    Validation(run, {}).measure(1)
    first = list(seeds)
    assert len(set(first)) == 4 * 8  # two songs held out and two that train
    assert len(first) == 2 * len(set(first))  # the base model and the adapter
    Validation(run, {}).measure(1)
    assert seeds[len(first) :] == first


def test_the_base_model_is_measured_once_a_run(settings_for):
    run = load_run(check(settings_for(**HELD)))
    measuring, counted = Validation(run, {}), []
    losses = measuring._losses
    measuring._losses = lambda songs: counted.append(len(songs)) or losses(songs)
    measuring.measure(1)
    measuring.measure(2)
    assert counted == [2] * 6


def test_a_song_is_read_once_for_all_its_levels(settings_for, monkeypatch):
    measuring, read = Validation(load_run(check(settings_for(**HELD))), {}), []
    once = SongDataset.__getitem__
    monkeypatch.setattr(SongDataset, "__getitem__", lambda songs, index: (read.append(index), once(songs, index))[1])
    assert len(measuring.held_out_losses()) == 8 * len(read)


def test_repeatable_kernels_are_asked_for_while_it_measures(settings_for, monkeypatch):
    run, inside = load_run(check(settings_for(**HELD))), []
    monkeypatch.setattr(validation, "repeatable", lambda: noting(inside))
    Validation(run, {}).measure(1)
    assert inside == ["begin", "end"]


@contextmanager
def noting(inside):
    inside.append("begin")
    yield
    inside.append("end")


def test_a_rise_within_the_scatter_raises_no_alarm():
    memory = Memory()
    held = [1.0, 1.5, 0.7, 1.2]
    remember(memory, 1, held, 1.0)
    for epoch in range(2, 6):
        noisy = [value + step for value, step in zip(held, (0.4, -0.3, 0.2, -0.2), strict=True)]
        assert remember(memory, epoch, noisy, 1.0 / epoch) == (False, [])
    assert memory.since_best == 4


def test_the_last_epoch_ends_a_run_without_calling_it_an_early_stop(settings_for):
    events = list(train(settings_for(epochs=2, early_stop=1, learning_rate=1e-30, **HELD)))
    assert not [event for event in events if isinstance(event, Notice) and "The run ends after" in event.text]
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == [1, 2]
