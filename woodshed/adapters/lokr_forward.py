"""The forward pass of a LoKr: two small matrix products in turn, never their Kronecker product.

Only weight decomposition builds the dense difference, because its norms need it. The compute follows autocast.
"""

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn


def _factors(layer: LokrModule) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return w1 with the scale and the scalar multiplied in, and w2 as the matrices to apply one after the other."""
    w1 = layer.lokr_w1 if layer.use_w1 else layer.lokr_w1_a @ layer.lokr_w1_b
    return w1 * (layer.scalar * layer.scale), (layer.lokr_w2,) if layer.use_w2 else (layer.lokr_w2_b, layer.lokr_w2_a)


def _apply_factors(layer: LokrModule, x: Tensor) -> Tensor:
    """Return scale kron(w1, w2) x for x (..., in), as two small matrix products."""
    w1, w2 = _factors(layer)
    grid = x.unflatten(-1, (w1.shape[1], -1))  # (..., m, n)
    for matrix in w2:
        grid = F.linear(grid, matrix.to(x.dtype))  # (..., m, k)
    grid = F.linear(grid.transpose(-1, -2), w1.to(x.dtype))  # (..., k, l)
    return grid.transpose(-1, -2).flatten(-2)


def dense_delta(layer: LokrModule, cast: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what the layer adds to its weight, (out, in), computed on tensors as `cast` makes them."""
    w1, w2 = _factors(layer)
    delta = torch.kron(cast(w1), reduce(torch.matmul, map(cast, reversed(w2))))
    if layer.wd:
        weight = cast(layer.org_module[0].weight)
        changed = weight + delta
        delta = changed * (cast(layer.dora_scale) / changed.norm(dim=1, keepdim=True)) - weight
    return delta


def add_output(layer: LokrModule, _linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Add the layer's part to the output of its linear layer; a forward hook."""
    (x,) = inputs
    if not layer.wd:
        return output + _apply_factors(layer, x)
    delta = dense_delta(layer, Tensor.float)  # a bf16 weight would swallow a small change
    return output + F.linear(x, delta.to(x.dtype))
