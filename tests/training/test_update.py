"""Gradients become parameters: clipped, applied, cleared; a state moves between captured steps and plain ones."""

import copy

import pytest
import torch
from torch.nn import Parameter

from woodshed.training.optimizers import build_optimizer, can_be_captured, restore_state, set_learning_rate
from woodshed.training.update import Update

RATE = {"learning_rate": 0.1, "weight_decay": 0.0, "warmup_steps": 0}


def made(*, captured=False, kept=True, max_norm=1.0):
    parameter = Parameter(torch.ones(4))
    optimizer = build_optimizer("adamw", [parameter], **RATE, captured_on=torch.device("cpu") if captured else None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update = Update(optimizer, scaler, [parameter], max_norm=max_norm, keeps_gradients=kept, is_captured=False)
    return parameter, optimizer, update


@pytest.mark.parametrize(("max_norm", "left"), [(1.0, 1.0), (0.0, 6.0)])
def test_gradients_are_clipped_and_their_norm_is_that_of_before(max_norm, left):
    parameter, _, update = made(max_norm=max_norm)
    parameter.grad = torch.full((4,), 3.0)
    assert update.clip().item() == pytest.approx(6)
    assert parameter.grad.norm().item() == pytest.approx(left, rel=1e-5)


def test_an_update_that_cannot_be_captured_goes_on_without_and_says_so_once():
    parameter, optimizer, _ = made()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update = Update(optimizer, scaler, [parameter], max_norm=1.0, keeps_gradients=True, is_captured=True)
    for _ in range(3):  # there is no CUDA graph on a processor
        parameter.grad = torch.ones(4)
        assert update.clip().item() == pytest.approx(2)
        update.apply()
    (line,) = update.notices()
    assert line.startswith("The optimizer's step does not work in a CUDA graph here")
    assert update.notices() == []
    assert torch.allclose(parameter.detach(), torch.full((4,), 0.7), rtol=1e-3)


@pytest.mark.parametrize("kept", [True, False])
def test_an_update_moves_and_clears(kept):
    parameter, _, update = made(kept=kept)
    parameter.grad = torch.ones(4)
    update.clip()
    assert update.apply() is False
    assert torch.allclose(parameter.detach(), torch.full((4,), 0.9))
    assert parameter.grad is None if not kept else not parameter.grad.any()


def test_an_overflow_in_float16_changes_nothing_and_is_told():
    parameter, optimizer, _ = made()
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    update = Update(optimizer, scaler, [parameter], max_norm=1.0, keeps_gradients=False, is_captured=False)
    scaler.scale(parameter.sum()).backward()
    parameter.grad.fill_(torch.inf)
    scaler.unscale_(optimizer)
    update.clip()
    assert update.apply() is True
    assert torch.equal(parameter.detach(), torch.ones(4))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("now", [True, False])
def test_a_state_continues_whether_steps_are_captured_or_not(before, now):
    def steps(parameter, optimizer, count):
        for _ in range(count):
            parameter.grad = parameter.detach() ** 2
            set_learning_rate(optimizer, 0.05)
            optimizer.step()

    whole, optimizer, _ = made(captured=before)
    steps(whole, optimizer, 2)
    half, other, _ = made(captured=now)
    half.data.copy_(whole.data)
    restore_state(other, copy.deepcopy(optimizer.state_dict()))
    assert isinstance(other.param_groups[0]["lr"], torch.Tensor) == now
    assert other.param_groups[0]["capturable"] == now
    steps(whole, optimizer, 2)
    steps(half, other, 2)
    assert torch.allclose(whole, half, rtol=1e-6)


def test_only_an_optimizer_that_decides_nothing_on_the_way_is_captured():
    assert [kind for kind in ("adamw", "adamw8bit", "adafactor", "prodigy") if can_be_captured(kind)] == ["adamw"]
