import math
import warnings
from itertools import combinations, pairwise
from typing import get_args

import pytest
import torch
from torch.optim import lr_scheduler

from woodshed.settings.schema import SchedulerType
from woodshed.training.schedules import RESTART_CYCLES, WARMUP_START, learning_rate_factor

SCHEDULES = get_args(SchedulerType)
TOTAL = 100
WARMUPS = [0, 10, 150]


def curve(scheduler_type, warmup_steps, total_steps=TOTAL):
    return [
        learning_rate_factor(step, scheduler_type=scheduler_type, warmup_steps=warmup_steps, total_steps=total_steps)
        for step in range(total_steps)
    ]


def torch_curve(scheduler_type, warmup_steps, total_steps=TOTAL):
    """The same curve from torch's own schedulers, which count steps recursively."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    length = total_steps - warmup_steps
    after = {
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0),
        "constant_with_warmup": lambda: lr_scheduler.ConstantLR(optimizer, 1.0),
        "linear": lambda: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=length),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=length),
        "cosine_restarts": lambda: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=length // RESTART_CYCLES),
    }[scheduler_type]()
    scheduler = after
    if warmup_steps and scheduler_type != "constant":
        ramp = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=warmup_steps)
        scheduler = lr_scheduler.SequentialLR(optimizer, [ramp, after], milestones=[warmup_steps])
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(total_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 20])
@pytest.mark.parametrize("scheduler_type", SCHEDULES)
def test_every_curve_is_that_of_torchs_schedulers(scheduler_type, warmup_steps):
    assert curve(scheduler_type, warmup_steps) == pytest.approx(torch_curve(scheduler_type, warmup_steps), abs=1e-9)


@pytest.mark.parametrize("warmup_steps", WARMUPS)
@pytest.mark.parametrize("total_steps", [1, 7, 100, 101])
def test_every_curve_equals_its_formula_at_every_step(warmup_steps, total_steps):
    for step in range(total_steps):
        ramp = 0.1 + 0.9 * step / warmup_steps if step < warmup_steps else None
        x = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        expected = {
            "constant": 1.0,
            "constant_with_warmup": 1.0 if ramp is None else ramp,
            "linear": 1 - x if ramp is None else ramp,
            "cosine": math.cos(math.pi * x / 2) ** 2 if ramp is None else ramp,
            "cosine_restarts": math.cos(math.pi * math.modf(4 * x + 1e-9)[0] / 2) ** 2 if ramp is None else ramp,
        }
        for scheduler_type in SCHEDULES:
            factor = learning_rate_factor(
                step, scheduler_type=scheduler_type, warmup_steps=warmup_steps, total_steps=total_steps
            )
            assert factor == pytest.approx(expected[scheduler_type], abs=1e-6), (scheduler_type, step)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_no_two_schedules_are_the_same(warmup_steps):
    same = [pair for pair in combinations(SCHEDULES, 2) if curve(pair[0], warmup_steps) == curve(pair[1], warmup_steps)]
    assert same == ([("constant", "constant_with_warmup")] if warmup_steps == 0 else [])


@pytest.mark.parametrize("scheduler_type", [name for name in SCHEDULES if name != "constant"])
def test_the_ramp_starts_at_a_tenth_and_arrives_exactly_after_the_warmup(scheduler_type):
    factors = curve(scheduler_type, 10)
    assert factors[0] == WARMUP_START == 0.1
    assert factors[10] == 1.0
    assert max(factors[:10]) < 1
    differences = [after - before for before, after in pairwise(factors[:11])]
    assert differences == pytest.approx([0.09] * 10)


def test_constant_is_constant_even_with_a_warmup():
    assert curve("constant", 10) == [1.0] * TOTAL


def test_a_warmup_longer_than_the_run_is_not_shortened():
    for scheduler_type in SCHEDULES:
        if scheduler_type != "constant":
            assert curve(scheduler_type, 150)[-1] == pytest.approx(0.1 + 0.9 * 99 / 150)


def test_restarts_return_to_the_peak_and_fall_again():
    factors = curve("cosine_restarts", 20)
    assert [step for step in range(21, TOTAL) if factors[step] > factors[step - 1]] == [40, 60, 80]
    assert [factors[step] for step in (20, 40, 60, 80)] == [1.0] * RESTART_CYCLES
    assert max(factors[39], factors[59], factors[79], factors[99]) < 0.01


@pytest.mark.parametrize("total_steps", range(2 * RESTART_CYCLES, 200))
def test_there_are_three_restarts_in_a_run_of_any_length(total_steps):
    factors = curve("cosine_restarts", 0, total_steps)
    rises = sum(after >= before for before, after in pairwise(factors))
    assert rises == RESTART_CYCLES - 1
    assert min(factors) > 0


def test_falling_schedules_never_waste_a_step_at_rate_zero():
    for scheduler_type in ("linear", "cosine", "cosine_restarts"):
        assert 0 < min(curve(scheduler_type, 0)) < 0.02


def test_a_step_outside_the_run_is_a_mistake_of_the_caller():
    for step in (-1, TOTAL):
        with pytest.raises(AssertionError, match="is not in a run of 100 steps"):
            learning_rate_factor(step, scheduler_type="cosine", warmup_steps=0, total_steps=TOTAL)
