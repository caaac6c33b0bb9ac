"""The LoKr change: scale kron(w1, w2), either factor whole or a product of two low-rank ones.

Shapes: W (out, in) = (l k, m n), w1 (l, m) = w1_a (l, r) @ w1_b (r, m), w2 (k, n) = w2_a (k, dim) @ w2_b (dim, n).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from woodshed.adapters.changes import Change

Factor = tuple[Tensor, ...]
"""A whole matrix, or two whose product it is."""


@dataclass(frozen=True)
class Kronecker(Change):
    """A LoKr on one weight."""

    w1: Factor
    w2: Factor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """The products of the factors' sides."""
        return self.w1[0].shape[0] * self.w2[0].shape[0], self.w1[-1].shape[1] * self.w2[-1].shape[1]

    @property
    def dim(self) -> int | None:
        """The rank of the second factor; None when it is whole."""
        return self.w2[1].shape[0] if len(self.w2) == 2 else None

    @property
    def splits(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(l, k) of the rows and (m, n) of the columns."""
        return (self.w1[0].shape[0], self.w2[0].shape[0]), (self.w1[-1].shape[1], self.w2[-1].shape[1])

    def with_whole_first(self, *, holds_scale: bool = False) -> "Kronecker":
        """Return the same change with the first factor as one matrix, which every player can read.

        Args:
            holds_scale: multiply the scale into it. Where the second factor is whole too that is always done, because
                players take the scale as 1 then.
        """
        w1 = _multiply(self.w1)
        if holds_scale or len(self.w2) == 1:
            return Kronecker((w1 * self.scale,), self.w2, 1.0, norms=self.norms)
        return Kronecker((w1,), self.w2, self.scale, norms=self.norms)

    def parts(self) -> dict[str, Tensor]:
        """Return the factors by the names that files and libraries have for them."""
        found: dict[str, Tensor] = {}
        for name, factor in (("lokr_w1", self.w1), ("lokr_w2", self.w2)):
            ends = ("",) if len(factor) == 1 else ("_a", "_b")
            found |= {name + end: part for end, part in zip(ends, factor, strict=True)}
        return found

    def product(self, weight: Tensor) -> Tensor:
        """Return the scaled Kronecker product."""
        w1, w2 = (_multiply(tuple(part.to(weight) for part in factor)) for factor in (self.w1, self.w2))
        return torch.kron(w1 * self.scale, w2.contiguous())

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return thin factors without loss: kron(p1 q1, p2 q2) = kron(p1, p2) @ kron(q1, q2)."""
        (p1, q1), (p2, q2) = (_split(factor) for factor in (self.w1, self.w2))
        return torch.kron(q1, q2.contiguous()), torch.kron(p1 * self.scale, p2.contiguous())

    def outputs(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply by the two factors in turn where no norms need the whole difference."""
        if self.norms is not None:
            return super().outputs(x, weight)
        grid = x.unflatten(-1, (self.splits[1][0], -1))  # (..., m, n)
        for matrix in reversed(self.w2):
            grid = F.linear(grid, matrix.to(x.dtype))  # (..., m, k)
        grid = grid.transpose(-1, -2)  # (..., k, m)
        for matrix in reversed(self.w1):
            grid = F.linear(grid, matrix.to(x.dtype))  # (..., k, l)
        product: Tensor = grid.transpose(-1, -2).flatten(-2)
        return product * self.scale

    def to(self, device: torch.device) -> "Kronecker":
        """Return the same change with its tensors on a device."""
        moved = super().to(device)
        w1, w2 = (tuple(part.to(device) for part in factor) for factor in (self.w1, self.w2))
        return Kronecker(w1, w2, self.scale, norms=moved.norms)


def _multiply(factor: Factor) -> Tensor:
    """Return a factor as one matrix; the product of two is taken in double precision."""
    if len(factor) == 1:
        return factor[0]
    return (factor[0].double() @ factor[1].double()).to(factor[0].dtype)


def _split(factor: Factor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product a factor is, the identity on its shorter side for a whole one."""
    if len(factor) == 2:
        return factor[0], factor[1]
    whole = factor[0]
    if whole.shape[0] < whole.shape[1]:
        return torch.eye(whole.shape[0], dtype=whole.dtype), whole
    return whole, torch.eye(whole.shape[1], dtype=whole.dtype)
