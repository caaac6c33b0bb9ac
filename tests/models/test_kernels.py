"""Attention by lengths against attention by biases; the compiler's kernel spells its scores out on a CPU."""

import warnings

import pytest
import torch
from torch import Tensor

from woodshed.models import blocks
from woodshed.models.attention import WindowedAttnProcessor
from woodshed.models.decoder import build_decoder
from woodshed.models.kernels import Spans, attend_in_spans, attend_sparsely, spans_of, sparse_mask
from woodshed.models.sights import Layout, Lengths, by_blocks, by_compiler, by_spans

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention needs CUDA")


def tokens(batch: int, length: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return query with four heads, key and value with two."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, 4, 16), (batch, keys, 2, 16), (batch, keys, 2, 16)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def reference(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Attend with all scores of one song spelled out."""
    key, value = (tensor.repeat_interleave(2, dim=2) for tensor in (key, value))
    scores = torch.einsum("bnhd,bkhd->bhnk", query, key) / query.shape[-1] ** 0.5
    if window is not None:
        places = torch.arange(query.shape[1])
        scores = scores.masked_fill((places[:, None] - places).abs() > window, -torch.inf)
    return torch.einsum("bhnk,bkhd->bnhd", scores.softmax(-1), value)


def test_a_songs_padding_is_a_sequence_of_its_own():
    assert spans_of(torch.tensor([3, 5, 4]), 5).tolist() == [0, 3, 5, 10, 10, 14, 15]
    assert spans_of(torch.tensor([4]), 4).dtype == torch.int32


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", [[20, 20], [20, 7], [1, 13]])
def test_a_sparse_mask_shows_each_song_alone(window, lengths):
    query, key, value = tokens(2, 20, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that this spells out the scores, as it is meant to here
        mask = sparse_mask(torch.tensor(lengths), 20, 20, window=window)
        mixed = attend_sparsely(query, key, value, mask, window=window)
    for song, length in enumerate(lengths):
        alone = [tensor[song : song + 1, :length] for tensor in (query, key, value)]
        torch.testing.assert_close(mixed[song : song + 1, :length], reference(*alone, window), rtol=1e-9, atol=1e-9)


def test_a_sparse_mask_skips_the_blocks_beyond_the_window():
    mask = sparse_mask(torch.tensor([2048]), 2048, 2048, window=128)
    assert mask.kv_num_blocks.max() + mask.full_kv_num_blocks.max() <= 4  # of 16: the own one and its neighbours
    whole = sparse_mask(torch.tensor([2048]), 2048, 2048, window=None)
    assert whole.full_kv_num_blocks.tolist() == [[[16] * 16]]


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_shows_each_song_alone(window):
    query, key, value = (tensor.cuda() for tensor in tokens(2, 20, 20, torch.bfloat16))
    spans = spans_of(torch.tensor([20, 7]).cuda(), 20)
    mixed = attend_in_spans(query, key, value, Spans(spans, spans), window=window)
    for song, length in enumerate([20, 7]):
        alone = [tensor[song : song + 1, :length].cpu().float() for tensor in (query, key, value)]
        expected = reference(*alone, window)
        torch.testing.assert_close(mixed[song : song + 1, :length].cpu().float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("lengths", [None, [11, 6]])
def test_the_decoder_computes_the_same_by_blocks_and_by_the_compiler(base, lengths):
    decoder = build_decoder(base.config).eval()
    generator = torch.Generator().manual_seed(1)
    config = decoder.config
    width, channels = config.encoder_hidden_size, config.audio_acoustic_hidden_dim
    inputs = {
        "hidden_states": torch.randn(2, 11, channels, generator=generator),
        "timestep": torch.tensor([0.3, 0.8]),
        "timestep_r": torch.tensor([0.3, 0.8]),
        "encoder_hidden_states": torch.randn(2, 9, width, generator=generator),
        "context_latents": torch.randn(2, 11, 2 * channels, generator=generator),
        "frame_lengths": None if lengths is None else torch.tensor(lengths),
        "condition_lengths": None if lengths is None else torch.tensor([4, 9]),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = decoder(**inputs).sample
        decoder.sight_of = by_compiler
        torch.testing.assert_close(decoder(**inputs).sample, expected, rtol=1e-5, atol=1e-5)


def test_a_sight_needs_no_bias_where_nothing_is_hidden():
    short, conditions = torch.zeros(1, 4, 8), torch.zeros(1, 3, 8)
    layout, all_real = Layout(window=16, shared_by=2), Lengths(None, None)
    assert by_blocks(short, conditions, all_real, layout) == (None, None, None)
    sliding, full, cross = by_blocks(torch.zeros(1, 40, 8), conditions, all_real, layout)
    assert (full, cross) == (None, None)
    assert sliding is not None
    spans = by_spans(short, conditions, Lengths(torch.tensor([2]), None), layout)
    assert spans.cross.queries.tolist() == [0, 2, 4]
    assert spans.cross.keys.tolist() == [0, 3, 3]


def test_every_block_attends_by_what_it_is_given(base):
    decoder = build_decoder(base.config)
    kinds = {type(layer.self_attn.processor) for layer in decoder.layers}
    assert kinds == {WindowedAttnProcessor}


def test_what_was_compiled_for_one_length_serves_all(base, monkeypatch):
    monkeypatch.setattr(blocks, "BACKEND", "eager")
    decoder = build_decoder(base.config).eval()
    decoder.run_block, decoder.sight_of = blocks.BlockRunner("none", is_compiled=True), by_compiler
    channels, width = decoder.config.audio_acoustic_hidden_dim, decoder.config.encoder_hidden_size
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for frames, conditions in ((300, 200), (700, 150), (900, 300)):
            decoder(
                torch.zeros(1, frames, channels),
                timestep=torch.ones(1),
                timestep_r=torch.ones(1),
                encoder_hidden_states=torch.zeros(1, conditions, width),
                context_latents=torch.zeros(1, frames, 2 * channels),
                frame_lengths=torch.tensor([frames - 1]),
                condition_lengths=torch.tensor([conditions - 1]),
            )
    found = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    blocks._compiled.cache_clear()
    torch._dynamo.reset()
    assert found == 2  # layers with a window and layers without
