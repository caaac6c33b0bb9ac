"""Who sees whom in the decoder's attention, said in the way that a kernel understands.

Letters: B songs, N tokens of the song, L condition tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from woodshed.models.attention import Mask, padding_bias, window_bias
from woodshed.models.kernels import Spans, spans_of, sparse_mask


class Lengths(NamedTuple):
    """How many tokens of each song are real; None where all are."""

    tokens: Tensor | None  # (B,)
    conditions: Tensor | None  # (B,)


class Sight(NamedTuple):
    """What the attention of each kind of layer is given; see `attention.Mask`."""

    sliding: Mask
    full: Mask
    cross: Mask


class Layout(NamedTuple):
    """The sizes that a sight depends on."""

    window: int
    shared_by: int  # query heads per key-value head


SightMaker = Callable[[Tensor, Tensor, Lengths, Layout], Sight]
"""From (B, N, width) tokens, (B, L, width) conditions and how many of them are real."""


def by_blocks(tokens: Tensor, conditions: Tensor, lengths: Lengths, layout: Layout) -> Sight:
    """For kernels that every device has: biases, and none where nothing is hidden."""
    batch, count = tokens.shape[:2]
    is_token, is_condition = _is_real(lengths.tokens, count), _is_real(lengths.conditions, conditions.shape[1])
    cross = None if is_condition is None else padding_bias(is_condition, tokens.dtype)
    if is_token is None and count <= layout.window + 1:
        return Sight(None, None, cross)
    everything = torch.ones(batch, count, dtype=torch.bool, device=tokens.device)
    sliding = window_bias(
        everything if is_token is None else is_token,
        window=layout.window,
        shared_by=layout.shared_by,
        dtype=tokens.dtype,
    )
    return Sight(sliding, None if is_token is None else padding_bias(is_token, tokens.dtype), cross)


def by_spans(tokens: Tensor, conditions: Tensor, lengths: Lengths, _layout: Layout) -> Sight:
    """For flash attention."""
    inner, outer = _spans(lengths.tokens, tokens), _spans(lengths.conditions, conditions)
    own = Spans(inner, inner)
    return Sight(own, own, Spans(inner, outer))


def by_compiler(tokens: Tensor, conditions: Tensor, lengths: Lengths, layout: Layout) -> Sight:
    """For the kernels that the compiler makes."""
    count, others = tokens.shape[1], conditions.shape[1]
    inner, outer = _lengths(lengths.tokens, tokens), _lengths(lengths.conditions, conditions)
    return Sight(
        sparse_mask(inner, count, count, window=layout.window),
        sparse_mask(inner, count, count, window=None),
        sparse_mask(outer, count, others, window=None),
    )


def _spans(lengths: Tensor | None, tokens: Tensor) -> Tensor:
    return spans_of(_lengths(lengths, tokens), tokens.shape[1])


def _lengths(lengths: Tensor | None, tokens: Tensor) -> Tensor:
    """Return (B,) lengths, those of the whole tensor where none are given."""
    return torch.full(tokens.shape[:1], tokens.shape[1], device=tokens.device) if lengths is None else lengths


def _is_real(lengths: Tensor | None, longest: int) -> Tensor | None:
    """Return (B, longest): true before each song's length."""
    return None if lengths is None else torch.arange(longest, device=lengths.device) < lengths[:, None]
