"""Attention kernels for CUDA that take lengths instead of masks: flash attention, and kernels made by the compiler.

Letters as in `attention`. Songs that were filled up to a common length are told by their lengths, which live on the
device: one captured graph then serves every length up to the one it was captured for.

Both equal `attention.attend` to the rounding of bf16. Flash attention computes in 16 bits only; its gradients repeat
to the last bit only while deterministic algorithms are asked for, which costs half of its speed. The compiler's
(FlexAttention) always repeat.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

BLOCK = 128  # tokens; what the kernels are made for


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


class SparseMask(NamedTuple):
    """Which blocks of scores a compiled kernel computes; M blocks of queries, of which each sees up to S of keys.

    It holds tensors only and no lengths as numbers, so that what was compiled for one length serves all.
    """

    lengths: Tensor  # (B,) how many keys of each song are real; nobody sees the others
    kv_num_blocks: Tensor  # (B, 1, M)
    kv_indices: Tensor  # (B, 1, M, S)
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor  # (B, 1, S)
    q_indices: Tensor  # (B, 1, S, M)
    full_q_num_blocks: Tensor
    full_q_indices: Tensor


def sparse_mask(lengths: Tensor, queries: int, keys: int, *, window: int | None) -> SparseMask:
    """Find the blocks to be computed.

    Args:
        lengths: (B,) how many keys of each song are real.
        queries: N.
        keys: K.
        window: how far a token sees to either side; None for everything.
    """
    blocks = create_block_mask(
        _is_seen(lengths, window), len(lengths), None, queries, keys, device=lengths.device, BLOCK_SIZE=BLOCK
    )
    return SparseMask(lengths, *(getattr(blocks, name) for name in SparseMask._fields[1:]))


def _is_seen(lengths: Tensor, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def is_real(song: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return key < lengths[song]

    def is_near(song: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < lengths[song]) & ((query - key).abs() <= reach)

    reach = window or 0
    return is_real if window is None else is_near


def attend_sparsely(query: Tensor, key: Tensor, value: Tensor, mask: SparseMask, *, window: int | None) -> Tensor:
    """Attention that computes the blocks of a mask; shapes as `attend_in_spans`, window as the mask was made with.

    Only inside `torch.compile` is this a kernel; elsewhere it spells out all scores.
    """
    tensors: dict[str, Any] = dict(zip(SparseMask._fields[1:], mask[1:], strict=True))
    blocks = BlockMask(
        seq_lengths=(query.shape[1], key.shape[1]),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=_is_seen(mask.lengths, window),
        **tensors,
    )
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return flex_attention(query, key, value, block_mask=blocks, enable_gqa=True).transpose(1, 2)
