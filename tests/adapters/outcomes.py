"""How near a player comes to what was trained, and how the table says so."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.adapters.oracles import Played


@dataclass(frozen=True)
class Outcome:
    """How near a player comes to what was trained."""

    error: float  # of the whole change, relative to its size
    worst: float  # of the layer that is furthest off: the largest gap, relative to the largest entry
    ratio: float  # of the strength
    skipped: int  # tensors or modules left aside, or changed though they should not be
    refusal: str

    def __str__(self) -> str:
        if self.refusal:
            return "no"
        if self.worst < 1e-5 and abs(self.ratio - 1) < 1e-4 and not self.skipped:
            return "exact"
        if self.error > 0.99 and abs(self.ratio) < 0.01:
            return "**nothing**"
        is_projection = abs(self.ratio - (1 - self.error**2)) < 1e-3  # what cutting small singular values leaves
        if is_projection and not self.skipped:
            return f"approximate ({100 * self.error:.0f} % off)"
        return f"**wrong** ({self.ratio:.2f} of the strength, {100 * self.error:.0f} % off)"


def judge(played: Played, before: dict[str, Tensor], trained: dict[str, Tensor]) -> Outcome:
    """Compare with the differences that were trained, over all layers of the model."""
    if played.refusal:
        return Outcome(math.inf, math.inf, 0.0, 0, played.refusal)
    found, wanted, skipped = [], [], len(played.skipped)
    for name, weight in before.items():
        change = (played.weights[name] - weight).double()
        if name in trained:
            found.append(change.flatten())
            wanted.append(trained[name].double().flatten())
        else:
            skipped += bool(change.abs().max() > 1e-5 * weight.abs().max())
    one, other = torch.cat(found), torch.cat(wanted)
    ratio = (one @ other / (other @ other)).item()
    gaps = (
        ((mine - theirs).abs().max() / theirs.abs().max()).item() for mine, theirs in zip(found, wanted, strict=True)
    )
    return Outcome(((one - other).norm() / other.norm()).item(), max(gaps), ratio, skipped, "")
