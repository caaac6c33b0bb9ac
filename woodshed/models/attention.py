"""Attention for the decoder: full, cross, and within a window, with or without padding, and never an N x N mask.

Letters: B songs, N tokens of the song, K tokens that are looked at, H query heads, G key-value heads (each serves H / G
query heads), D head width, w window, c = 2 w tokens in a block, M blocks.

The window is computed block by block: the c queries of a block can see its own tokens and w on either side, 2 c keys in
all, which are two neighbouring blocks of the sequence shifted by w. That costs 2 c N instead of N x N scores.

Query heads that share a key-value head become further rows of one attention: the sums are the same, no key is copied,
and no kernel is ruled out (on CUDA only flash and the slow reference kernel know about shared heads, and flash takes no
mask).

These are the kernels that compute on every device; `kernels` has the faster ones, `sights` says which is used.
"""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.ace_step_transformer import AceStepAttention
from torch import Tensor

from woodshed.models.kernels import Spans, SparseMask, attend_in_spans, attend_sparsely

Mask = Tensor | Spans | SparseMask | None
"""Who sees whom in a kind of layer; None: everybody sees everybody."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention with shared key-value heads.

    Args:
        query: (B, N, H, D).
        key: (B, K, G, D), like value; G divides H.
        bias: added to the scores, (B, 1, 1 or rows, K) where rows = (H / G) N, those of one query head together; every
            row must see at least one key.
        dropout: probability in [0, 1) of dropping an attention weight.

    Returns:
        (B, N, H, D).
    """
    groups = key.shape[2]
    rows = query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, G, (H / G) N, D)
    mixed = F.scaled_dot_product_attention(rows, key.transpose(1, 2), value.transpose(1, 2), bias, dropout_p=dropout)
    heads: Tensor = mixed.unflatten(2, (-1, query.shape[1]))  # (B, G, H / G, N, D)
    return heads.permute(0, 3, 1, 2, 4).flatten(2, 3)


def attend_within_window(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, window: int, dropout: float = 0.0
) -> Tensor:
    """Attention in which token i sees token j if |i - j| <= window.

    Args:
        query: (B, N, H, D).
        key: (B, N, G, D), like value.
        bias: what `window_bias` made for this B, N, window and H / G.

    Returns:
        (B, N, H, D).
    """
    batch, length = query.shape[:2]
    blocks = _num_blocks(length, window)
    queries = _pad_tokens(query, 0, blocks * 2 * window).unflatten(1, (blocks, -1)).flatten(0, 1)
    keys, values = (_neighbourhoods(tensor, blocks, window).flatten(0, 1) for tensor in (key, value))
    mixed = attend(queries, keys, values, bias, dropout=dropout)
    tokens: Tensor = mixed.unflatten(0, (batch, blocks))
    return tokens.flatten(1, 2)[:, :length]


def window_bias(is_real: Tensor, *, window: int, shared_by: int, dtype: torch.dtype) -> Tensor:
    """Make the bias of `attend_within_window`: 0 where a query sees a key, -inf elsewhere.

    Args:
        is_real: (B, N) false for padding, which nobody sees (but itself, so that no row is empty).
        window: w > 0.
        shared_by: H / G, how many query heads share a key-value head.

    Returns:
        (B M, 1, H / G c, 2 c), blocks of one song together.
    """
    blocks = _num_blocks(is_real.shape[1], window)
    # Key s of a block stands at block start + s - w, query r at block start + r.
    distance = (
        torch.arange(4 * window, device=is_real.device) - torch.arange(2 * window, device=is_real.device)[:, None]
    )
    is_near = (distance >= 0) & (distance <= 2 * window)
    is_self = distance == window
    is_real_key = _neighbourhoods(is_real, blocks, window)[:, :, None, :]  # (B, M, 1, 2 c)
    is_seen = (is_near & is_real_key) | is_self  # (B, M, c, 2 c)
    rows = is_seen.flatten(0, 1).repeat(1, shared_by, 1)
    return _as_bias(rows[:, None], dtype)


def padding_bias(is_real: Tensor, dtype: torch.dtype) -> Tensor:
    """Make the bias that hides padded keys from everybody.

    Args:
        is_real: (B, K), at least one true in each row.

    Returns:
        (B, 1, 1, K).
    """
    return _as_bias(is_real[:, None, None, :], dtype)


def _as_bias(is_seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill_(~is_seen, -torch.inf)


def _num_blocks(length: int, window: int) -> int:
    return -(-length // (2 * window))


def _pad_tokens(tokens: Tensor, before: int, total: int) -> Tensor:
    """Pad (B, N, ...) with zeros to (B, total, ...)."""
    after = total - before - tokens.shape[1]
    return F.pad(tokens, (0, 0) * (tokens.dim() - 2) + (before, after))


def _neighbourhoods(tokens: Tensor, blocks: int, window: int) -> Tensor:
    """Cut (B, N, ...) into what each block of queries can see: (B, M, 2 c, ...)."""
    halves = _pad_tokens(tokens, window, (blocks + 1) * 2 * window).unflatten(1, (blocks + 1, -1))
    return torch.cat([halves[:, :-1], halves[:, 1:]], dim=2)


class WindowedAttnProcessor:
    """Does a decoder layer's attention; `AceStepAttention` holds the weights and calls it.

    Who sees whom is said by what a member of `sights` made for the kind of layer, and that decides the kernel too.
    """

    def __call__(
        self,
        attn: AceStepAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Mask = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend and project; argument names are the library's.

        Args:
            hidden_states: (B, N, width).
            encoder_hidden_states: (B, L, width) in cross attention.
            attention_mask: who sees whom, see above.
            image_rotary_emb: cosines and sines, (N, D) each, for self attention.

        Returns:
            (B, N, width).
        """
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        value = attn.to_v(source).unflatten(-1, (attn.kv_heads, attn.head_dim))
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, attn.head_dim)))
        key = attn.norm_k(attn.to_k(source).unflatten(-1, (attn.kv_heads, attn.head_dim)))
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, use_real_unbind_dim=-2, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, use_real_unbind_dim=-2, sequence_dim=1)
        query, key = query.to(value.dtype), key.to(value.dtype)  # float32 norm weights would lift them
        output = _attend_as(attention_mask, attn, query, key, value).flatten(2)
        for layer in attn.to_out:
            output = layer(output)
        return output


def _attend_as(mask: Mask, attn: AceStepAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with the kernel that a mask is for."""
    if isinstance(mask, SparseMask):
        return attend_sparsely(query, key, value, mask, window=attn.sliding_window)
    if isinstance(mask, Spans):
        return attend_in_spans(query, key, value, mask, window=attn.sliding_window)
    dropout = attn.dropout if attn.training else 0.0
    if attn.sliding_window is not None and mask is not None:
        return attend_within_window(query, key, value, mask, window=attn.sliding_window, dropout=dropout)
    return attend(query, key, value, mask, dropout=dropout)
