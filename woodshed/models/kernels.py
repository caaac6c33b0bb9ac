"""Attention kernels for CUDA that take lengths instead of masks: flash attention, and kernels made by the compiler.

Letters as in `attention`. Songs that were filled up to a common length are told by their lengths, which live on the
device: one captured graph then serves every length up to the one it was captured for.

Both equal `attention.attend` to the rounding of bf16. Flash attention computes in 16 bits only; its gradients repeat
to the last bit only while deterministic algorithms are asked for, which costs half of its speed. The compiler's
(FlexAttention) always repeat.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


class Spans(NamedTuple):
    """Where each song's tokens and its padding begin and end, as flash attention counts them.

    The padding of a song is a sequence of its own, so that nothing real sees it and no output is left unwritten.
    """

    queries: Tensor  # (2 B + 1,) int32, rising from 0 to B N
    keys: Tensor  # (2 B + 1,) int32, rising from 0 to B K


def spans_of(lengths: Tensor, longest: int) -> Tensor:
    """Return the (2 B + 1,) boundaries of songs and their padding, one after the other.

    Args:
        lengths: (B,) real tokens of each song.
        longest: N, to which each is filled up.
    """
    ends = torch.arange(1, len(lengths) + 1, device=lengths.device) * longest
    starts = ends - longest
    inner = torch.stack([starts + lengths, ends], dim=1).flatten()
    return torch.cat([inner.new_zeros(1), inner]).int()


def attend_in_spans(query: Tensor, key: Tensor, value: Tensor, spans: Spans, *, window: int | None) -> Tensor:
    """Flash attention within each song.

    Args:
        query: (B, N, H, D) in bf16 or float16.
        key: (B, K, G, D), like value.
        spans: which tokens are real.
        window: how far a token sees to either side; None for everything.

    Returns:
        (B, N, H, D).
    """
    mixed: Tensor = torch.ops.aten._flash_attention_forward(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        spans.queries,
        spans.keys,
        query.shape[1],
        key.shape[1],
        0.0,  # dropout
        False,  # causal
        False,  # return the dropout mask
        window_size_left=window,
        window_size_right=window,
    )[0]
    songs: Tensor = mixed.unflatten(0, query.shape[:2])
    return songs


def sparse_mask(lengths: Tensor, queries: int, keys: int, *, window: int | None) -> BlockMask:
    """Return which blocks of scores a compiled kernel computes.

    Args:
        lengths: (B,) how many keys of each song are real; nobody sees the others.
        queries: N.
        keys: K.
        window: how far a token sees to either side; None for everything.
    """

    def is_seen(song: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return key < lengths[song]

    def is_near(song: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < lengths[song]) & ((query - key).abs() <= reach)

    reach = window or 0
    wanted = is_seen if window is None else is_near
    return create_block_mask(wanted, len(lengths), None, queries, keys, device=lengths.device)


def attend_sparsely(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """Attention that computes the blocks of a mask; shapes as `attend_in_spans`.

    Only inside `torch.compile` is this a kernel; elsewhere it spells out all scores.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return flex_attention(query, key, value, block_mask=mask, enable_gqa=True).transpose(1, 2)
