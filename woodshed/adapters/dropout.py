"""Dropout as a function of (seed, layer, position) instead of a generator's state.

A backward pass that computes a block again, a captured graph and a compiled kernel all meet the same mask, because
nothing is consumed. On a GPU it costs only where the compiler fuses it; else torch's own dropout is quicker.
"""

import math

import torch
from torch import Tensor, nn

_ODD = 0x9E3779B1 - 2**32  # 2**32 / golden ratio as a signed 32-bit number
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - 2**32
# Source of the mixing: Wellons, "Prospecting for Hash Functions", the triple 16-15-16 "lowbias32",
# https://nullprogram.com/blog/2018/07/31/


class HashedDropout(nn.Module):
    """Zeroes each number with probability `p` and scales the others by 1 / (1 - p).

    Args:
        p: in [0, 1).
        seed: () int32, shared by all layers of an adapter and changed in place between steps.
        layer: tells the layers apart.
    """

    seed: Tensor
    salt: Tensor

    def __init__(self, p: float, seed: Tensor, layer: int) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("seed", seed, persistent=False)
        salt = mix(torch.tensor(layer, dtype=torch.int32))
        self.register_buffer("salt", salt.to(seed.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drop from (..., width) numbers."""
        if not self.training or self.p == 0:
            return x
        index = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
        # The seed enters before the first mixing and once more before the second: neighbouring seeds have nothing in
        # common, and the compiler cannot fold constants past 32 bits.
        number = mix(mix(index ^ self.seed) + (self.salt ^ self.seed) * _ODD)
        is_kept = number >= math.floor(self.p * 2**32) - 2**31
        return torch.where(is_kept, x * (1 / (1 - self.p)), torch.zeros((), dtype=x.dtype, device=x.device))


def mix(number: Tensor) -> Tensor:
    """Return int32 numbers of which every bit depends on every bit of the given ones."""
    number = (number ^ ((number >> 16) & 0xFFFF)) * _FIRST
    number = (number ^ ((number >> 15) & 0x1FFFF)) * _SECOND
    return number ^ ((number >> 16) & 0xFFFF)


def hash_dropout(decoder: nn.Module, device: torch.device) -> Tensor:
    """Let every dropout of an adapter depend on one seed; return it, (): writing to it gives new masks.

    Args:
        decoder: with an adapter; changed in place.
        device: where it computes.
    """
    seed = torch.zeros((), dtype=torch.int32, device=device)
    places = [
        (parent, name, child)
        for parent in decoder.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout) and child.p > 0
    ]
    for layer, (parent, name, child) in enumerate(places):
        hashed = HashedDropout(child.p, seed, layer)
        hashed.train(child.training)
        parent.add_module(name, hashed)
    return seed
