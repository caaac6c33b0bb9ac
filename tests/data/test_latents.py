"""The VAE's latents are the original's, whatever the tiles and wherever the song ends."""

import math
from types import SimpleNamespace

import pytest
import torch

from woodshed.data.latents import Posterior, encode_waveform, hop_of
from woodshed.models.load import load_vae

HOP = 1920


@pytest.fixture(scope="module")
def vae(checkpoint_root):
    return load_vae(checkpoint_root / "vae", dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def long_wave():
    """The golden data's song of 312,777 samples, by the formula in vae.json."""
    t = torch.arange(312_777, dtype=torch.float32) / 48_000
    left = 0.4 * torch.sin(2 * math.pi * 220 * t) + 0.2 * torch.sin(2 * math.pi * 554.4 * t + 1)
    tones = torch.stack([left, 0.35 * torch.sin(2 * math.pi * 330 * t)])
    noise = 0.05 * torch.randn(2, len(t), generator=torch.Generator().manual_seed(9))
    return (tones + noise).half().float()


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", ["odd", "short"])
def test_mean_and_deviation_are_the_originals_also_where_a_song_ends_within_a_frame(vae, read_golden, case):
    golden = read_golden("vae")
    posterior = encode_waveform(vae, golden[f"{case}_wave"][0].float())
    assert_same(posterior.mean, golden[f"{case}_mean"][0].T)
    assert_same(posterior.std, golden[f"{case}_std"][0].T)


def test_a_sample_is_the_originals_for_the_originals_noise(vae, read_golden, monkeypatch):
    golden = read_golden("vae")
    posterior = encode_waveform(vae, golden["odd_wave"][0].float())
    monkeypatch.setattr(torch, "randn", lambda shape, generator: golden["odd_eps"][0].T)  # noqa: ARG005
    assert_same(posterior.sample(torch.Generator()), golden["odd_sample"][0].T)


def test_tiles_give_what_the_original_gives_for_the_whole_song(vae, read_golden, long_wave):
    golden = read_golden("vae")
    assert torch.equal(long_wave[:, :4800], golden["tiled_seed9_wave_first_4800"][0].float())
    posterior = encode_waveform(vae, long_wave, tile_seconds=3.5, overlap_seconds=0.5)
    assert_same(posterior.mean, golden["untiled_seed9_mean"][0].T)


@pytest.mark.parametrize("samples", [60_000, 77_760, 80_639])
def test_no_end_within_or_beside_a_tile_shifts_or_loses_a_frame(vae, long_wave, samples):
    wave = long_wave[:, :samples]
    whole = encode_waveform(vae, wave)
    tiled = encode_waveform(vae, wave, tile_seconds=1.6, overlap_seconds=0.4)
    assert len(tiled.mean) == samples // HOP
    assert_same(tiled.mean, whole.mean)
    assert_same(tiled.std, whole.std)


def test_tiles_without_overlap_would_be_heard(vae, long_wave):
    wave = long_wave[:, :48_000]
    apart = encode_waveform(vae, wave, tile_seconds=0.5, overlap_seconds=0)
    assert (apart.mean - encode_waveform(vae, wave).mean).abs().max() > 1e-2


class Spy:
    """Stands before a VAE and notes the length of every tile."""

    def __init__(self, vae):
        self.config, self.device, self.dtype = vae.config, vae.device, vae.dtype
        self.lengths = []
        self._vae = vae

    def encode(self, tile):
        self.lengths.append(tile.shape[-1])
        return self._vae.encode(tile)


def test_no_tile_is_longer_than_asked_so_that_memory_does_not_grow_with_the_song(vae, long_wave):
    spy = Spy(vae)
    encode_waveform(spy, long_wave[:, :90_000], tile_seconds=1, overlap_seconds=0.2)
    assert len(spy.lengths) > 2
    assert max(spy.lengths) == 48_000


def test_a_song_shorter_than_a_tile_is_encoded_at_once(vae, long_wave):
    spy = Spy(vae)
    encode_waveform(spy, long_wave[:, :40_000])
    assert spy.lengths == [40_000]


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (1919, 1), (1920, 1), (3839, 1), (3840, 2), (48_000, 25)])
def test_a_frame_is_made_of_every_whole_hop_and_one_at_least(vae, samples, frames):
    posterior = encode_waveform(vae, torch.full((2, samples), 0.1))
    assert posterior.mean.shape == posterior.std.shape == (frames, 16)
    assert posterior.mean.isfinite().all()


def test_the_hop_is_the_product_of_the_strides(vae):
    assert hop_of(vae) == HOP
    assert hop_of(SimpleNamespace(config=SimpleNamespace(downsampling_ratios=[2, 3, 5]))) == 30


def test_latents_are_drawn_from_the_posterior_and_not_its_mean():
    posterior = Posterior(torch.full((20_000, 1), 3.0), torch.full((20_000, 1), 0.5))
    drawn = posterior.sample(torch.Generator().manual_seed(1))
    assert drawn.mean() == pytest.approx(3.0, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, rel=0.02)


def test_the_generator_alone_decides_what_is_drawn():
    posterior = Posterior(torch.zeros(50, 4), torch.ones(50, 4))
    torch.manual_seed(0)
    first = posterior.sample(torch.Generator().manual_seed(1))
    assert torch.equal(posterior.sample(torch.Generator().manual_seed(1)), first)
    assert not torch.equal(posterior.sample(torch.Generator().manual_seed(2)), first)


def test_a_vae_in_half_precision_still_gives_full_precision_latents_on_the_cpu(checkpoint_root, long_wave):
    vae = load_vae(checkpoint_root / "vae", dtype=torch.bfloat16, device="cpu")
    posterior = encode_waveform(vae, long_wave[:, :9600])
    assert posterior.mean.dtype == posterior.std.dtype == torch.float32
    assert not posterior.mean.requires_grad
