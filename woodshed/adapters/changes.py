"""What an adapter does to one weight, whichever family trained it and whichever format holds it.

Shapes: W (out, in); x (..., in). Everything is float32 until a formula is asked for another precision. The formulas
are written here, not taken from the libraries that train, so that comparing a file with the adapter in memory means
something.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Norms:
    """What a weight decomposition (DoRA) makes of the rows of a changed weight."""

    values: Tensor  # (out,)
    # Today's ComfyUI divides by the norms of the base weight instead of the changed one's; a file made for it says so.
    are_over_base: bool = False

    def apply(self, weight: Tensor, changed: Tensor) -> Tensor:
        """Return the changed weight with rows of these norms."""
        sizes = (weight if self.are_over_base else changed).norm(dim=1, keepdim=True)
        result: Tensor = changed * (self.values.to(weight)[:, None] / sizes.clamp_min(1e-12))  # zeros stay zeros
        return result


@dataclass(frozen=True)
class Change(ABC):
    """The difference that an adapter makes to one weight."""

    norms: Norms | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that this fits, without multiplying anything out."""

    @property
    def needs_weight(self) -> bool:
        """Whether the difference depends on the base weight."""
        return self.norms is not None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a weight of this shape can be changed."""
        return shape == self.shape

    @abstractmethod
    def product(self, weight: Tensor) -> Tensor:
        """Return what is added before any norms: (out, in) in the precision and on the device of the weight."""

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """Return A (r, in) and B (out, r) with B A exactly the product, where such thin factors are known."""
        return None

    def delta(self, weight: Tensor) -> Tensor:
        """Return the whole difference, (out, in), in the precision of the base weight."""
        if self.norms is None:
            return self.product(weight)
        return self.norms.apply(weight, weight + self.product(weight)) - weight

    def outputs(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return what the difference adds to the layer's output."""
        with torch.autocast(x.device.type, enabled=False):  # a bf16 product would drown beside the weight
            delta = self.delta(weight.float())
        return F.linear(x, delta.to(x.dtype))

    def to(self, device: torch.device) -> Self:
        """Return the same change with its tensors on a device."""
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        if self.norms is not None:
            moved["norms"] = replace(self.norms, values=self.norms.values.to(device))
        return replace(self, **moved)


def _count_used(is_used: Tensor) -> int:
    """Return how many ranks there are up to the last one that is not all zeros."""
    places = is_used.nonzero()
    return int(places.max()) + 1 if len(places) else 0


@dataclass(frozen=True)
class LowRank(Change):
    """LoRA: scale B A, with A (r, in) and B (out, r). With norms it is a DoRA."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """The rows of B and the columns of A."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        """The rows of A."""
        return self.a.shape[0]

    def unfilled(self) -> Self:
        """Return the same change without the zeros that fill up its rank: ranks that could never learn."""
        used = _count_used(self.a.any(dim=1) | self.b.any(dim=0))
        return replace(self, a=self.a[:used], b=self.b[:, :used])

    def product(self, weight: Tensor) -> Tensor:
        """Return scale B A."""
        return self.b.to(weight) @ self.a.to(weight) * self.scale

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return A, and B with the scale."""
        return self.a, self.b * self.scale

    def outputs(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply A and B one after the other where no norms need the whole difference."""
        if self.norms is not None:
            return super().outputs(x, weight)
        a, b = (factor.to(x.dtype) for factor in self.low_rank())
        return F.linear(F.linear(x, a), b)


@dataclass(frozen=True)
class Hadamard(Change):
    """LoHa: scale (w1_a w1_b) * (w2_a w2_b), the two products multiplied entry by entry."""

    w1_a: Tensor  # (out, r)
    w1_b: Tensor  # (r, in)
    w2_a: Tensor
    w2_b: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """The rows of the left factors and the columns of the right ones."""
        return self.w1_a.shape[0], self.w1_b.shape[1]

    @property
    def rank(self) -> int:
        """The columns of the left factors."""
        return self.w1_a.shape[1]

    def unfilled(self) -> Self:
        """Return the same change without the zeros that fill up its rank: ranks that could never learn."""
        columns, rows = (self.w1_a, self.w2_a), (self.w1_b, self.w2_b)
        is_used = torch.stack([*(part.any(dim=0) for part in columns), *(part.any(dim=1) for part in rows)]).any(dim=0)
        used = _count_used(is_used)
        w1_a, w2_a = (part[:, :used] for part in columns)
        w1_b, w2_b = (part[:used] for part in rows)
        return replace(self, w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b)

    def product(self, weight: Tensor) -> Tensor:
        """Return the entries' product, scaled."""
        w1_a, w1_b, w2_a, w2_b = (part.to(weight) for part in (self.w1_a, self.w1_b, self.w2_a, self.w2_b))
        return (w1_a @ w1_b) * (w2_a @ w2_b) * self.scale

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Pair every column with every column, and every row with every row: rank r times r."""
        b = torch.einsum("ip,iq->ipq", self.w1_a, self.w2_a).flatten(1)
        a = torch.einsum("pj,qj->pqj", self.w1_b, self.w2_b).flatten(0, 1)
        return a, b * self.scale


@dataclass(frozen=True)
class Rotation(Change):
    """OFT as PEFT has it: W R^T with R a block diagonal of rotations of the input, each from a skew-symmetric matrix.

    Source: Qiu et al. 2023, https://arxiv.org/abs/2306.07280; the series is PEFT's Cayley-Neumann approximation.
    """

    skew: Tensor  # (blocks, size (size - 1) / 2): the upper triangles
    terms: int = 5  # of the series; 0 for the exact Cayley transform

    @property
    def needs_weight(self) -> bool:
        """The weight is what is rotated."""
        return True

    @property
    def block_size(self) -> int:
        """Sides of a block: the triangle of n has n (n - 1) / 2 entries."""
        return round((1 + math.sqrt(1 + 8 * self.skew.shape[1])) / 2)

    @property
    def shape(self) -> tuple[int, int]:
        """Any number of rows, which is written as 0, and as many columns as the blocks cover."""
        return 0, self.skew.shape[0] * self.block_size

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Compare the columns."""
        return len(shape) == 2 and shape[1] == self.shape[1]

    def blocks(self, like: Tensor) -> Tensor:
        """Return the rotations, (blocks, size, size)."""
        size = self.block_size
        skew = torch.zeros(len(self.skew), size, size, dtype=like.dtype, device=like.device)
        row, column = torch.triu_indices(size, size, 1)
        skew[:, row, column] = self.skew.to(like)
        skew = skew - skew.mT
        one = torch.eye(size).to(like)
        if self.terms == 0:
            exact: Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
            return exact
        powers = [skew]
        while len(powers) < self.terms - 1:
            powers.append(powers[-1] @ skew)
        inner: Tensor = torch.stack(powers[:-1]).sum(0)
        return one + 2 * inner + powers[-1]

    def product(self, weight: Tensor) -> Tensor:
        """Return W R^T - W, block by block."""
        grid = weight.unflatten(1, (-1, self.block_size))  # (out, blocks, size)
        turned: Tensor = torch.einsum("obi,bji->obj", grid, self.blocks(weight)).flatten(1)
        return turned - weight


@dataclass(frozen=True)
class Difference(Change):
    """The difference itself, as a file for players that know no better."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """That of the values."""
        return self.values.shape[0], self.values.shape[1]

    def product(self, weight: Tensor) -> Tensor:
        """Return the values."""
        return self.values.to(weight)
