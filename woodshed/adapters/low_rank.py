"""Any adapter as a plain LoRA, for players that know nothing else: exact where thin factors exist, else cut by SVD."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from woodshed.adapters.changes import Change, LowRank
from woodshed.adapters.content import Content

USUAL_RANK = 128
"""Of what can only be approximated, unless the user says otherwise."""


def as_lora(content: Content, *, limit: int | None, weight_of: Callable[[str], Tensor]) -> tuple[Content, list[str]]:
    """Return the content as LoRA, and the modules in which that is an approximation.

    Args:
        content: any.
        limit: largest rank; None for as much as exactness needs, and 128 where there is none.
        weight_of: returns the base weight of a module; called only where the change depends on it.
    """
    changes: dict[str, Change] = {}
    cut: list[str] = []
    for module, change in content.changes.items():
        thin = _exact(change, limit)
        if thin is None:
            cut.append(module)
            weight = weight_of(module) if change.needs_weight else torch.zeros(change.shape)
            thin = _cut(change.delta(weight.double()), limit or USUAL_RANK)
        changes[module] = thin
    return replace(content, changes=changes), cut


def _exact(change: Change, limit: int | None) -> LowRank | None:
    """Return factors without loss, if there are some within the limit that are thinner than the matrix itself."""
    if isinstance(change, LowRank) and change.norms is None and (limit is None or change.rank <= limit):
        return change
    factors = None if change.norms is not None else change.low_rank()
    if factors is None:
        return None
    a, b = factors
    return LowRank(a, b) if len(a) < min(change.shape) and (limit is None or len(a) <= limit) else None


def _cut(delta: Tensor, rank: int) -> LowRank:
    """Return the nearest LoRA of a rank: the largest singular values, shared between both factors."""
    u, sizes, v = torch.linalg.svd(delta, full_matrices=False)
    rank = min(rank, len(sizes))
    root = sizes[:rank].sqrt()
    return LowRank((root[:, None] * v[:rank]).float().contiguous(), (u[:, :rank] * root).float().contiguous())
