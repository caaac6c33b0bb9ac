"""Proof that a file holds what it should: effective weights compared, one module at a time."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from woodshed.adapters.adapter import quote_some
from woodshed.adapters.saved import SavedAdapter
from woodshed.errors import AdapterError

TOLERANCE = 1e-5  # of a weight difference, relative to its largest entry
ROUNDING = 2**-22  # of a weight: what float32 cannot tell apart, twice over
NOTHING = 1e-6  # of a weight; an untrained weight decomposition differs by its rounding
HALF_TOLERANCE = 0.02  # of factors that are stored in half precision


@dataclass(frozen=True)
class Verification:
    """What reading an adapter back has shown."""

    modules: int
    tensors: int  # of the file, every one of which was matched
    max_relative_error: float  # over all weight differences, each relative to its largest entry
    residual: float  # size of what is wrong relative to the size of all differences
    strength: float  # projection of the difference in the file on the true one, the one furthest from 1
    is_live: bool  # whether the adapter changes anything
    is_approximate: bool = False  # written as an approximation, so that the error was allowed to be any

    def __str__(self) -> str:
        """Return one sentence for people."""
        live = "the adapter is live" if self.is_live else "the adapter changes NOTHING"
        proof = "Read back" if self.is_approximate else "Verified"
        return (
            f"{proof}: {self.tensors} tensors written and matched over {self.modules} modules, relative error "
            f"{self.max_relative_error:.1e}, strength {self.strength:.6f} of the trained one; {live}."
        )


@dataclass(frozen=True)
class Expected:
    """What one module or bias should come to, and what the file makes of it."""

    name: str
    weight: Tensor  # base weight or bias, float64
    difference: Tensor  # as it should be, float64
    found: Tensor | None  # as the file has it; None where the shapes do not fit
    has_rounding: bool  # whether the file stores values as large as the weight, so that small differences are rounded

    @property
    def rounding(self) -> float:
        """How far an entry may be off because float32 ends there."""
        return ROUNDING * self.weight.abs().max().item() if self.has_rounding else 0.0

    @property
    def is_live(self) -> bool:
        """Whether anything is changed, beyond the rounding of an untrained weight decomposition."""
        return bool(self.difference.abs().max() > NOTHING * self.weight.abs().max())


def compare(saved: SavedAdapter, expected: Iterable[Expected], *, tolerance: float = TOLERANCE) -> Verification:
    """Compare all differences of a file with what they should be.

    Args:
        saved: read back.
        expected: every module and bias.
        tolerance: of the error; infinite for a file that is an approximation and says so.

    Raises:
        AdapterError: naming the modules in which the error is larger or the strength is another.
    """
    errors: dict[str, float] = {}
    strengths: dict[str, float] = {}
    wrong = size = 0.0
    for item in expected:
        gap = torch.full((1,), math.inf) if item.found is None else item.found - item.difference
        errors[item.name] = _relative(gap, item)
        wrong, size = wrong + gap.square().sum().item(), size + item.difference.square().sum().item()
        if item.is_live and item.found is not None:
            product = (item.found * item.difference).sum() / item.difference.square().sum()
            strengths[item.name] = product.item()
    bad = [f"{name} ({error:.1e})" for name, error in errors.items() if not error < tolerance]
    if bad:
        raise AdapterError(f"{saved.path} does not hold what was trained; the relative error is in {quote_some(bad)}.")
    return Verification(
        modules=len(saved.modules),
        tensors=saved.tensors,
        max_relative_error=max(errors.values()),
        residual=math.sqrt(wrong / size) if size else 0.0,
        strength=max(strengths.values(), key=lambda value: abs(value - 1), default=1.0),
        is_live=bool(strengths),
        is_approximate=math.isinf(tolerance),
    )


def _relative(gap: Tensor, item: Expected) -> float:
    """Return the largest gap relative to the largest entry; infinite for something in place of zero."""
    largest = max(gap.abs().max().item() - item.rounding, 0.0)
    size = item.difference.abs().max().item()
    if largest == 0:
        return 0.0
    return largest / size if size else math.inf


def refuse_other_names(saved: SavedAdapter, modules: Iterable[str], biases: Iterable[str]) -> None:
    """Stop unless a file holds exactly these modules and biases.

    Raises:
        AdapterError: naming those that are missing or surplus.
    """
    odd = set(modules) ^ set(saved.modules) | set(biases) ^ set(saved.bias_names)
    if odd:
        raise AdapterError(f"{saved.path} does not hold the layers that were trained: {quote_some(sorted(odd))}.")
