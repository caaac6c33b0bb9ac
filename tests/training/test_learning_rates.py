"""The rate that the optimizer really uses in a run follows its schedule's closed form at every step."""

import math
from itertools import product

import pytest

from woodshed.training import loop
from woodshed.training.events import StepDone
from woodshed.training.preflight import check
from woodshed.training.run import load_run

PEAK = 1e-3
SCHEDULES = ("cosine", "cosine_restarts", "linear", "constant", "constant_with_warmup")


def closed_form(schedule, step, warmup, total):
    """The curves as the reference's words describe them, written apart from the code under test."""
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    share = (step - warmup) / (total - warmup)
    return {
        "constant_with_warmup": 1.0,
        "linear": 1 - share,
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "cosine_restarts": 0.5 * (1 + math.cos(math.pi * math.fmod(4 * share + 1e-12, 1))),
    }[schedule]


@pytest.fixture
def used_rates(settings_for, dataset_dir, monkeypatch):
    """Train and return the rates in the optimizer's groups at each of its steps, and those that were told."""
    for name in "de":
        (dataset_dir / f"{name}.pt").unlink()  # three songs are left: accumulated by two, an epoch ends on a lone one
    loaded = loop.load_run

    def train(output, **changes):
        used = []

        def load_run(*given):
            run = loaded(*given)
            run.optimizer.register_step_pre_hook(
                lambda optimizer, *_: used.append({group["lr"] for group in optimizer.param_groups})
            )
            return run

        monkeypatch.setattr(loop, "load_run", load_run)
        settings = settings_for(output, learning_rate=PEAK, log_heavy_every=0, target_modules="q_proj", **changes)
        told = [event.learning_rate for event in loop.train(settings) if isinstance(event, StepDone)]
        assert all(len(rates) == 1 for rates in used)
        return [rate for (rate,) in used], told

    return train


@pytest.mark.parametrize(("warmup", "accumulation"), list(product((0, 3, 50), (1, 2))))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_runs_rates_are_the_closed_form_at_every_step(used_rates, schedule, warmup, accumulation):
    epochs = 2 * accumulation
    total = epochs * math.ceil(3 / accumulation)
    used, told = used_rates(
        "out",
        scheduler_type=schedule,
        warmup_steps=warmup,
        gradient_accumulation=accumulation,
        epochs=epochs,
        gradient_checkpointing=False,
    )
    expected = [PEAK * closed_form(schedule, step, warmup, total) for step in range(total)]
    assert used == pytest.approx(expected, rel=1e-9)
    assert told == used


def test_prodigys_told_rate_is_the_estimate_that_its_step_used(settings_for):
    run = load_run(check(settings_for(optimizer_type="prodigy", scheduler_type="linear", warmup_steps=0)))
    (group,) = run.optimizer.param_groups
    assert group["d"] == 1e-6

    def grow(*_):
        group["d"] = group["d_max"] = 3 * group["d"]  # as the estimate may within a step

    run.optimizer.register_step_post_hook(grow)
    told = []
    for batch in run.loader.epoch(1):
        told.append(loop.take_step(run, [*run.prepare([batch])]).learning_rate)
        run.position.step += 1
    expected = [1e-3 * (1 - step / 6) * 1e-6 * 3**step for step in range(5)]
    assert told == pytest.approx(expected)
