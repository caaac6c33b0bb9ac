"""How the decoder's blocks are run while training: compiled or as they are, kept or computed again.

What a block computes stays in memory for the backward pass, or is computed again then. Between the two ends lies a
dial: only some of the blocks are computed again. Compiled blocks leave that to the compiler, which does it at no cost
in launches; others go through `torch.utils.checkpoint`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.utils.checkpoint import checkpoint

from woodshed.models.decoder import Inputs
from woodshed.models.kernel_cache import keep_kernels
from woodshed.models.kernels import SparseMask

RECOMPUTED = {"none": 0, "quarter": 4, "half": 2, "all": 1}
"""Every how manieth block is computed again."""
BACKEND = "inductor"
MOST_VARIANTS = 64  # of a compiled block: kinds of layers x ranks x lengths that are constant or not


def recomputed_share(recompute: str) -> float:
    """Return which part of the blocks a key of `RECOMPUTED` computes again, 0 to 1."""
    every = RECOMPUTED[recompute]
    return 1 / every if every else 0.0


class BlockRunner:
    """Runs one block; takes the place of `Decoder.run_block`.

    Args:
        recompute: a key of `RECOMPUTED`.
        is_compiled: whether `torch.compile` makes kernels for the blocks, for songs of any length.
    """

    def __init__(self, recompute: str, *, is_compiled: bool) -> None:
        self._every = RECOMPUTED[recompute]
        self._is_compiled = is_compiled

    def __call__(self, index: int, layer: nn.Module, inputs: Inputs) -> Tensor:
        """Return the tokens behind a block.

        Args:
            index: of the block, from 0.
            layer: the block.
            inputs: what it is called with.
        """
        is_recomputed = self._every > 0 and index % self._every == 0
        if self._is_compiled:
            return _run_compiled(layer, inputs, is_recomputed=is_recomputed)
        tokens: Tensor
        if is_recomputed and torch.is_grad_enabled():
            tokens = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=_draws(layer))
        else:
            tokens = layer(*inputs)
        return tokens


def _draws(layer: nn.Module) -> bool:
    """Tell whether a block draws random numbers from the generator."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.modules())


def _run_compiled(layer: nn.Module, inputs: Inputs, *, is_recomputed: bool) -> Tensor:
    tokens, rotary, modulation, own, conditions, cross = inputs
    if torch.is_grad_enabled() and not tokens.requires_grad:
        tokens = tokens.detach().requires_grad_()  # the first block's too, which else is compiled for itself
    _any_length(1, tokens, conditions)
    _any_length(0, *rotary)
    for mask in (own, cross):
        if isinstance(mask, SparseMask):
            for blocks in mask[1:]:
                _any_length(2, blocks)
                if blocks.dim() == 4:
                    _any_length(3, blocks)
    with functorch.patch(activation_memory_budget=0.0 if is_recomputed else 1.0):
        run = _compiled(_again if is_recomputed else _kept)
        return run(layer, tokens, rotary, modulation, own, conditions, cross)


def _any_length(dimension: int, *tensors: Tensor) -> None:
    """Let what is compiled for these tensors serve every length of a dimension."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, dimension)


# What the compiler keeps is decided once for a function, so each way needs one of its own.
def _kept(layer: nn.Module, *inputs: Any) -> Tensor:
    tokens: Tensor = layer(*inputs)
    return tokens


def _again(layer: nn.Module, *inputs: Any) -> Tensor:
    tokens: Tensor = layer(*inputs)
    return tokens


@cache
def _compiled(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    keep_kernels()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VARIANTS)
    compiled: Callable[..., Tensor] = torch.compile(run, fullgraph=True, backend=BACKEND)
    return compiled
