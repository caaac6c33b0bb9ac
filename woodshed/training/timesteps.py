"""Which noise levels a training run visits: the two distributions of t, where t = 1 is pure noise."""

import torch
from torch import Tensor

TURBO_TIMESTEPS = tuple(3 * u / (1 + 2 * u) for u in (1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8))
"""The noise levels at which the turbo model samples: eighths, shifted by 3. Source: ACE-Step 1.5 turbo inference."""


def sample_timesteps(count: int, *, mu: float, sigma: float, generator: torch.Generator) -> Tensor:
    """Draw timesteps as the model's own training does: the larger of two logit-normal draws.

    Its distribution function is Phi((logit(t) - mu) / sigma) ** 2.

    Args:
        count: how many.
        mu, sigma: of the normal behind the logistic, from the checkpoint's config.json.
        generator: a CPU generator; takes `2 * count` normal numbers from it.

    Returns:
        (count,) float32 in (0, 1).

    Source: training forward of ACE-Step 1.5, which draws t and r, keeps t >= r, and then sets r = t.
    """
    normal = torch.randn(2, count, generator=generator)
    return torch.sigmoid(mu + sigma * normal).amax(dim=0)


def sample_turbo_timesteps(count: int, *, generator: torch.Generator) -> Tensor:
    """Draw timesteps evenly from the eight of the turbo model ("vanilla" mode).

    Returns:
        (count,) float32.
    """
    index = torch.randint(len(TURBO_TIMESTEPS), (count,), generator=generator)
    return torch.tensor(TURBO_TIMESTEPS)[index]


def timestep_quantiles(count: int, *, mu: float, sigma: float) -> Tensor:
    """Return the middles of `count` equally likely parts of what `sample_timesteps` draws from.

    Returns:
        (count,) float32, rising.
    """
    share = (torch.arange(count).double() + 0.5) / count
    return torch.sigmoid(mu + sigma * torch.special.ndtri(share.sqrt())).float()
