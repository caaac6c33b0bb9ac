"""An estimate needs no more memory than training a small adapter, counted by the allocator."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from woodshed.analysis.estimate import draw_batches, prepare
from woodshed.analysis.objective import Objective
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.loop import take_step
from woodshed.training.preflight import check
from woodshed.training.run import load_run


def peak_of(work):
    """Return by how many bytes memory grew at most while some work was done."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert most > 0
    return most


def training_peak(checkpoint_root, dataset_dir, folder, **changes):
    values = {"checkpoint_dir": checkpoint_root, "model": "acestep-v15-base", "dataset_dir": dataset_dir}
    values |= {"output_dir": folder, "device": "cpu", "rank": 4, "warmup_steps": 0, "gradient_accumulation": 1}
    run = load_run(check(resolve(TrainSettings, [Layer("test", values | changes)]).settings))
    (batch,) = (batch for batch in run.loader.epoch(1) if batch.names == ("c",))
    return peak_of(lambda: take_step(run, [*run.prepare([batch])]))


def estimate_peak(settings):
    work = prepare(settings)
    choices = {"dtype": torch.float32, "device": work.device, "gradient_checkpointing": settings.gradient_checkpointing}
    (batch, draws) = next((batch, draws) for batch, draws in draw_batches(work) if batch.names == ("c",))
    with Objective(work.checkpoint, work.shapes, **choices) as objective:
        return peak_of(lambda: objective.measure(batch, draws))


@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_its_peak_is_below_that_of_a_training_step_on_the_same_song(
    settings_for, checkpoint_root, dataset_dir, tmp_path, is_checkpointed
):
    choice = {"gradient_checkpointing": is_checkpointed}
    training = training_peak(checkpoint_root, dataset_dir, tmp_path, **choice)
    assert estimate_peak(settings_for(**choice)) <= training
