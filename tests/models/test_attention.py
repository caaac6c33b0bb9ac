"""Attention against the textbook: scores of all pairs, a dense mask, a softmax, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from woodshed.models.attention import attend, attend_within_window, padding_bias, window_bias

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def textbook_attention(query: Tensor, key: Tensor, value: Tensor, is_seen: Tensor) -> Tensor:
    """Attend with every pair of tokens spelled out; is_seen: (B, N, K)."""
    sharing = query.shape[2] // key.shape[2]
    key, value = (tensor.repeat_interleave(sharing, dim=2) for tensor in (key, value))
    scores = torch.einsum("bnhd,bkhd->bhnk", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~is_seen[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhnk,bkhd->bnhd", weights, value)


def random_tokens(batch: int, length: int, heads: int, seed: int, *, keys: int | None = None) -> list[Tensor]:
    """Return query with all heads, key and value with half of them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, heads, 4), *[(batch, keys or length, heads // 2, 4)] * 2]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def is_within(length: int, window: int) -> Tensor:
    places = torch.arange(length)
    return (places - places[:, None]).abs() <= window


def gradients(output: Tensor, inputs: list[Tensor], seed: int = 9) -> list[Tensor]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=output.dtype)
    return list(torch.autograd.grad((output * weight).sum(), inputs))


def within_window(tokens: list[Tensor], window: int, is_real: Tensor) -> Tensor:
    bias = window_bias(is_real, window=window, shared_by=2, dtype=torch.float64)
    return attend_within_window(*tokens, bias, window=window)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 70), window=st.integers(1, 20), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_window_in_blocks_equals_a_dense_mask(length, window, batch, seed):
    tokens = random_tokens(batch, length, 4, seed)
    ours = within_window(tokens, window, torch.ones(batch, length, dtype=torch.bool))
    dense = textbook_attention(*tokens, is_within(length, window).expand(batch, -1, -1))
    torch.testing.assert_close(ours, dense, **EXACT)
    for our_gradient, gradient in zip(gradients(ours, tokens), gradients(dense, tokens), strict=True):
        torch.testing.assert_close(our_gradient, gradient, **EXACT)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), window=st.integers(1, 12), seed=st.integers(0, 99))
def test_padding_in_the_window_changes_no_real_token(lengths, window, seed):
    longest = max(lengths)
    tokens = random_tokens(len(lengths), longest, 4, seed)
    is_real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ours = within_window(tokens, window, is_real)
    assert torch.isfinite(ours).all()
    for song, length in enumerate(lengths):
        alone = [tensor[song : song + 1, :length] for tensor in tokens]
        dense = textbook_attention(*alone, is_within(length, window)[None])
        torch.testing.assert_close(ours[song : song + 1, :length], dense, **EXACT)


def test_no_row_is_empty_because_some_kernels_answer_that_with_nan():
    bias = window_bias(torch.arange(50) < torch.tensor([[50], [3]]), window=4, shared_by=2, dtype=torch.float32)
    assert (bias == 0).any(-1).all()


def test_padding_in_the_window_gets_no_gradient_from_real_tokens():
    tokens = random_tokens(2, 30, 4, seed=1)
    is_real = torch.arange(30) < torch.tensor([[30], [11]])
    ours = within_window(tokens, 3, is_real)
    for gradient in torch.autograd.grad(ours[1, :11].sum(), tokens):
        assert gradient[1, :11].abs().sum() > 0
        assert gradient[1, 11:].abs().sum() == 0
        assert gradient[0].abs().sum() == 0


@pytest.mark.parametrize("distance", [0, 4, 5, 6])
def test_the_window_includes_its_edge_on_both_sides_and_nothing_beyond(distance):
    query, key, value = random_tokens(1, 41, 4, seed=2)
    output = within_window([query, key, value], 5, torch.ones(1, 41, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(output[0, 20].sum(), value)
    for token in (20 - distance, 20 + distance):
        assert bool(gradient[0, token].abs().sum() > 0) == (distance <= 5)


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 20), keys=st.integers(1, 20), seed=st.integers(0, 99))
def test_attention_with_shared_heads_equals_the_textbook(length, keys, seed):
    tokens = random_tokens(2, length, 6, seed, keys=keys)
    ours, dense = attend(*tokens), textbook_attention(*tokens, torch.ones(2, length, keys, dtype=torch.bool))
    torch.testing.assert_close(ours, dense, **EXACT)
    for our_gradient, gradient in zip(gradients(ours, tokens), gradients(dense, tokens), strict=True):
        torch.testing.assert_close(our_gradient, gradient, **EXACT)


def test_padded_keys_are_seen_by_nobody():
    tokens = random_tokens(2, 9, 4, seed=3, keys=13)
    is_real = torch.arange(13) < torch.tensor([[13], [6]])
    ours = attend(*tokens, padding_bias(is_real, torch.float64))
    torch.testing.assert_close(ours, textbook_attention(*tokens, is_real[:, None].expand(-1, 9, -1)), **EXACT)


def test_dropout_drops_weights_in_both_forms():
    torch.manual_seed(0)
    tokens = random_tokens(1, 40, 4, seed=4)
    is_real = torch.ones(1, 40, dtype=torch.bool)
    bias = window_bias(is_real, window=4, shared_by=2, dtype=torch.float64)
    assert not torch.allclose(attend(*tokens, dropout=0.5), attend(*tokens))
    kept = attend_within_window(*tokens, bias, window=4)
    assert not torch.allclose(attend_within_window(*tokens, bias, window=4, dropout=0.5), kept)


def test_memory_grows_with_the_length_and_not_with_its_square():
    """The largest tensor of a ten-minute song at the real sizes stays far below one float32 score for every pair."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    length, window = 7500, 128
    tokens = [torch.empty(1, length, heads, 8, device="meta") for heads in (2, 1, 1)]
    with Watch():
        bias = window_bias(
            torch.ones(1, length, dtype=torch.bool, device="meta"), window=window, shared_by=2, dtype=torch.float32
        )
        attend_within_window(*tokens, bias, window=window)
    assert 0 < largest < 2 * (length + 2 * window) * 4 * window
