import importlib.util
import io
import math
from typing import get_args

import pytest
import torch
from torch.nn import Parameter

from woodshed.errors import UserError
from woodshed.settings.schema import OptimizerType
from woodshed.training.optimizers import (
    build_optimizer,
    effective_learning_rate,
    require_optimizer,
    set_learning_rate,
)

OPTIMIZERS = get_args(OptimizerType)
RATE = {"adamw": 1e-2, "adamw8bit": 1e-2, "adafactor": 1e-2, "prodigy": 1.0}
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def make_parameters(seed=0):
    """Shapes an adapter has: factors (one large enough for 8-bit moments), a bias, a scalar."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(8, 96), (96, 64), (64, 3), (16,), ()]
    parameters = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    parameters[2].data.zero_()  # as a LoRA's B starts
    return parameters


def build(name, parameters, *, weight_decay=0.1, warmup_steps=0, undecayed=()):
    return build_optimizer(
        name,
        parameters,
        learning_rate=RATE[name],
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        undecayed=undecayed,
    )


def train(optimizer, parameters, steps):
    """Pull every parameter towards a fixed goal; gradients are a function of the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = parameter.detach() - 1 + torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()


def adamw_reference(weight, gradients, rate, decay):
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, grad in enumerate(gradients, start=1):
        m = BETA1 * m + (1 - BETA1) * grad
        v = BETA2 * v + (1 - BETA2) * grad**2
        m_hat, v_hat = m / (1 - BETA1**step), v / (1 - BETA2**step)
        weight = weight - rate * decay * weight - rate * m_hat / (v_hat.sqrt() + EPS)
    return weight


def adafactor_reference(weight, gradients, rate, decay):
    row = col = full = 0.0
    for step, grad in enumerate(gradients, start=1):
        beta = 1 - step**-0.8
        square = grad**2 + 1e-30
        if grad.dim() == 2:
            row = beta * row + (1 - beta) * square.mean(1)
            col = beta * col + (1 - beta) * square.mean(0)
            estimate = torch.outer(row, col) / row.mean()
        else:
            full = estimate = beta * full + (1 - beta) * square
        update = grad / estimate.sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        weight = weight - rate * decay * weight - rate * update
    return weight


def prodigy_reference(weights, gradients, decay, *, is_warming_up, d0=1e-6, beta2=0.99):
    """Mishchenko and Defazio 2024, algorithm 4, with bias correction; all tensors share d."""
    starts = [weight.clone() for weight in weights]
    m, v, s = ([torch.zeros_like(weight) for weight in weights] for _ in range(3))
    d, d_max, numerator, beta3 = d0, d0, 0.0, math.sqrt(beta2)
    for step, grads in enumerate(gradients, start=1):
        rate = d * math.sqrt(1 - beta2**step) / (1 - BETA1**step)
        numerator *= beta3
        for i, grad in enumerate(grads):
            numerator += d / d0 * rate * torch.sum(grad * (starts[i] - weights[i])).item()
            m[i] = BETA1 * m[i] + d * (1 - BETA1) * grad
            v[i] = beta2 * v[i] + d * d * (1 - beta2) * grad**2
            s[i] = beta3 * s[i] + d / d0 * (d if is_warming_up else rate) * grad
        d_hat = numerator / sum(total.abs().sum().item() for total in s)
        d = max(d, d_hat) if d == d0 else d
        d_max = max(d_max, d_hat)
        d = d_max
        for i, weight in enumerate(weights):
            weights[i] = weight - rate * decay * weight - rate * m[i] / (v[i].sqrt() + d * EPS)
    return weights, d


def gradients_for(parameters, steps):
    return [[torch.randn_like(p, generator=None) for p in parameters] for _ in range(steps)]


def run_with(optimizer, parameters, gradients):
    for grads in gradients:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()


@pytest.mark.parametrize(("name", "reference"), [("adamw", adamw_reference), ("adafactor", adafactor_reference)])
def test_updates_follow_the_published_formula(name, reference):
    torch.manual_seed(1)
    parameters = make_parameters()
    starts, gradients = [p.detach().clone() for p in parameters], gradients_for(parameters, 5)
    run_with(build(name, parameters), parameters, gradients)
    for i, start in enumerate(starts):
        expected = reference(start, [grads[i] for grads in gradients], RATE[name], 0.1)
        torch.testing.assert_close(parameters[i].detach(), expected, rtol=1e-5, atol=1e-6)


def test_8bit_adamw_is_adamw_with_rounded_moments():
    torch.manual_seed(1)
    parameters = make_parameters()
    starts, gradients = [p.detach().clone() for p in parameters], gradients_for(parameters, 5)
    optimizer = build("adamw8bit", parameters)
    run_with(optimizer, parameters, gradients)
    for i, start in enumerate(starts):
        expected = adamw_reference(start, [grads[i] for grads in gradients], RATE["adamw8bit"], 0.1)
        is_large = start.numel() >= 4096
        assert (optimizer.state[parameters[i]]["state1"].dtype == torch.uint8) == is_large
        error = (parameters[i].detach() - expected).norm() / (expected - start).norm()
        assert error < (0.05 if is_large else 1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_prodigy_follows_its_paper_and_guards_its_estimate_only_when_warming_up(warmup_steps):
    torch.manual_seed(1)
    parameters = [Parameter(p.detach().double()) for p in make_parameters()]  # d is read from differences of 1e-6
    starts = [p.detach().clone() for p in parameters]
    gradients = [[1.0 + 0.1 * torch.randn_like(p) for p in parameters] for _ in range(12)]
    optimizer = build("prodigy", parameters, warmup_steps=warmup_steps)
    run_with(optimizer, parameters, gradients)
    expected, d = prodigy_reference(starts, gradients, 0.1, is_warming_up=warmup_steps > 0)
    assert d > 2e-6
    assert optimizer.param_groups[0]["d"] == pytest.approx(d)
    for parameter, value, start in zip(parameters, expected, starts, strict=True):
        torch.testing.assert_close(parameter - start, value - start, rtol=1e-6, atol=1e-12)


def test_prodigys_guard_changes_the_estimate():
    estimates = []
    for warmup_steps in (0, 10):
        parameters = make_parameters()
        optimizer = build("prodigy", parameters, warmup_steps=warmup_steps)
        for step in range(10):
            set_learning_rate(optimizer, (step + 1) / 10)
            train(optimizer, parameters, [step])
        estimates.append(optimizer.param_groups[0]["d"])
    assert estimates[0] != estimates[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_continues_to_the_last_bit(name):
    straight = make_parameters()
    train(build(name, straight, undecayed=straight[3:4]), straight, range(20))

    before = make_parameters()
    optimizer = build(name, before, undecayed=before[3:4])
    train(optimizer, before, range(9))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    after = [Parameter(p.detach().clone()) for p in before]
    resumed = build(name, after, undecayed=after[3:4])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, after, range(9, 20))

    for one, other in zip(straight, after, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fresh_optimizer_in_place_of_the_saved_one_is_noticed(name):
    """The test above can fail: without the state the runs part."""
    straight, after = make_parameters(), make_parameters()
    train(build(name, straight), straight, range(20))
    train(build(name, after), after, range(9))
    train(build(name, after), after, range(9, 20))
    assert not torch.equal(straight[1], after[1])


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor"])
def test_weight_decay_is_decoupled_and_spares_what_must_not_shrink(name):
    """What decay changes is rate x decay x weight whatever the size of the gradient; inside the moments it is not."""
    for size in (1.0, 100.0):
        results = []
        for decay in (0.0, 0.5):
            parameters = make_parameters()
            optimizer = build(name, parameters, weight_decay=decay, undecayed=[parameters[3]])
            run_with(optimizer, parameters, [[torch.full_like(p, size) for p in parameters]])
            results.append([p.detach() for p in parameters])
        for i, weight in enumerate(make_parameters()):
            expected = torch.zeros(16) if i == 3 else 0.5 * RATE[name] * weight.detach()
            torch.testing.assert_close(results[0][i] - results[1][i], expected, rtol=1e-3, atol=1e-6)


def test_prodigys_decay_shrinks_by_its_effective_rate():
    weights = []
    for decay in (0.0, 0.5):
        parameter = Parameter(torch.ones(4))
        optimizer = build("prodigy", [parameter], weight_decay=decay)
        optimizer.param_groups[0].update(d=0.1, d_max=0.1, d0=0.1)
        run_with(optimizer, [parameter], [[torch.ones(4)]])
        weights.append(parameter.detach())
    correction = math.sqrt(1 - 0.99) / (1 - 0.9)
    torch.testing.assert_close(weights[0] - weights[1], torch.full((4,), 0.5 * 0.1 * correction))


def test_adafactor_moves_a_zero_matrix_at_the_full_rate():
    parameter = Parameter(torch.zeros(8, 4))
    run_with(build("adafactor", [parameter]), [parameter], [[torch.ones(8, 4)]])
    torch.testing.assert_close(parameter.detach(), torch.full((8, 4), -RATE["adafactor"]))


def test_state_sizes_are_what_each_optimizer_is_chosen_for():
    sizes = {}
    for name in OPTIMIZERS:
        parameters = [Parameter(torch.randn(256, 256))]
        optimizer = build(name, parameters)
        train(optimizer, parameters, range(1))
        tensors = [value for value in optimizer.state[parameters[0]].values() if isinstance(value, torch.Tensor)]
        sizes[name] = sum(tensor.nbytes for tensor in tensors) / parameters[0].numel()
    assert sizes["adamw"] == pytest.approx(8, abs=0.01)
    assert sizes["adamw8bit"] < 2.1
    assert sizes["adafactor"] < 0.1
    assert sizes["prodigy"] == pytest.approx(16, abs=0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_that_is_set_is_the_rate_that_is_used(name):
    parameters = make_parameters()
    optimizer = build(name, parameters, undecayed=parameters[3:4])
    assert len(optimizer.param_groups) == 2
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    expected = 0.25e-6 if name == "prodigy" else 0.25
    assert effective_learning_rate(optimizer) == pytest.approx(expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_of_zero_changes_nothing(name):
    parameters = make_parameters()
    optimizer = build(name, parameters)
    set_learning_rate(optimizer, 0.0)
    train(optimizer, parameters, range(2))
    for parameter, start in zip(parameters, make_parameters(), strict=True):
        assert torch.equal(parameter, start)


def test_prodigys_effective_rate_grows_with_its_estimate():
    parameters = make_parameters()
    optimizer = build("prodigy", parameters)
    train(optimizer, parameters, range(30))
    assert effective_learning_rate(optimizer) == optimizer.param_groups[0]["d"] > 1e-5


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("adamw8bit", "bitsandbytes", "8bit"), ("prodigy", "prodigyopt", "prodigy")]
)
def test_a_missing_package_is_an_error_with_its_install_line_and_no_fallback(monkeypatch, name, package, extra):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted, *rest: None if wanted == package else find_spec(wanted, *rest)
    )
    for attempt in (lambda: require_optimizer(name), lambda: build(name, make_parameters())):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(caught.value) == (
            f"The optimizer {name} needs the package {package}, which is not installed. "
            f'Install it with: pip install "woodshed[{extra}]", or choose --optimizer-type adamw.'
        )


def test_installed_packages_pass():
    for name in OPTIMIZERS:
        require_optimizer(name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_reaches_the_terminal(name, capfd):
    parameters = make_parameters()
    train(build(name, parameters, weight_decay=0.5), parameters, range(2))
    assert capfd.readouterr() == ("", "")
