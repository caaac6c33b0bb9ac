"""The distribution of t, against the original training forward and its closed form."""

import json
from statistics import NormalDist

import pytest
import torch

from woodshed.training.timesteps import TURBO_TIMESTEPS, sample_timesteps, sample_turbo_timesteps

MU, SIGMA = -0.4, 1.0
MANY = 400_000


@pytest.fixture(scope="module")
def reference(golden):
    return json.loads((golden / "timesteps.json").read_text())


@pytest.fixture(scope="module")
def drawn():
    return sample_timesteps(MANY, mu=MU, sigma=SIGMA, generator=torch.Generator().manual_seed(1))


def test_mean_spread_and_quantiles_are_those_of_the_original_forward(reference, drawn):
    wanted = reference["training_forward (use_meanflow=False, mu=-0.4, sigma=1.0)"]["t"]
    assert drawn.mean().item() == pytest.approx(wanted["mean"], abs=1e-3)
    assert drawn.std().item() == pytest.approx(wanted["std"], abs=1e-3)
    for quantile, value in wanted["quantiles"].items():
        assert drawn.quantile(float(quantile)).item() == pytest.approx(value, abs=3e-3)


def test_it_is_not_a_single_logit_normal_draw(reference, drawn):
    single = next(value for name, value in reference.items() if "SINGLE" in name)["t"]
    assert drawn.mean().item() - single["mean"] > 0.1


@pytest.mark.parametrize(("mu", "sigma"), [(-0.4, 1.0), (0.3, 0.5)])
@pytest.mark.parametrize("x", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_the_distribution_function_is_the_square_of_a_logit_normal(mu, sigma, x):
    t = sample_timesteps(MANY, mu=mu, sigma=sigma, generator=torch.Generator().manual_seed(2))
    logit = torch.logit(torch.tensor(x)).item()
    expected = NormalDist().cdf((logit - mu) / sigma) ** 2
    assert (t <= x).float().mean().item() == pytest.approx(expected, abs=3e-3)


def test_for_given_normal_draws_it_gives_the_originals_values(reference, monkeypatch):
    case = reference["deterministic_seed123_batch16"]
    draws = torch.tensor([case["normal_a"], case["normal_b"]])
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: draws)  # noqa: ARG005
    t = sample_timesteps(16, mu=MU, sigma=SIGMA, generator=torch.Generator())
    torch.testing.assert_close(t, torch.tensor(case["t_no_meanflow"]), rtol=1e-6, atol=0)


def test_timesteps_are_float32_between_zero_and_one(drawn):
    assert drawn.dtype == torch.float32
    assert drawn.min() > 0
    assert drawn.max() < 1


def test_the_same_generator_state_gives_the_same_timesteps():
    first, second = (
        sample_timesteps(5, mu=MU, sigma=SIGMA, generator=torch.Generator().manual_seed(9)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_vanilla_timesteps_are_the_originals_eight(reference):
    assert pytest.approx(reference["turbo_discrete_schedule_shift3"]) == TURBO_TIMESTEPS


def test_vanilla_draws_each_of_the_eight_evenly():
    t = sample_turbo_timesteps(80_000, generator=torch.Generator().manual_seed(3))
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == pytest.approx(sorted(TURBO_TIMESTEPS))
    assert (counts / 10_000 - 1).abs().max() < 0.05
