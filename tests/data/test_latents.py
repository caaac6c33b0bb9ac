"""The VAE's latents are the original's, whatever the tiles and wherever the song ends."""

import math
from types import SimpleNamespace

import pytest
import torch

from woodshed.data import latents
from woodshed.data.latents import Posterior, Tiling, choose_tiling, encode_waveform, hop_of, plan_tiles
from woodshed.models import vae as vae_module
from woodshed.models.load import load_vae
from woodshed.models.vae import fuse_encoder

HOP = 1920


@pytest.fixture(scope="module")
def vae(checkpoint_root):
    loaded = load_vae(checkpoint_root / "vae", dtype=torch.float32, device="cpu")
    loaded.folder = checkpoint_root / "vae"
    return loaded


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


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_tiles_give_what_the_original_gives_for_the_whole_song(at_once, vae, read_golden, long_wave):
    golden = read_golden("vae")
    assert torch.equal(long_wave[:, :4800], golden["tiled_seed9_wave_first_4800"][0].float())
    posterior = encode_waveform(vae, long_wave, Tiling(3.5, 0.5, at_once))
    assert_same(posterior.mean, golden["untiled_seed9_mean"][0].T)


@pytest.mark.parametrize("samples", [60_000, 76_800, 77_760, 80_639, 172_800])
@pytest.mark.parametrize("at_once", [1, 3])
def test_no_end_within_or_beside_a_tile_shifts_or_loses_a_frame(vae, long_wave, samples, at_once):
    wave = long_wave[:, :samples]
    whole = encode_waveform(vae, wave)
    tiled = encode_waveform(vae, wave, Tiling(1.6, 0.4, at_once))
    assert len(tiled.mean) == samples // HOP
    assert_same(tiled.mean, whole.mean)
    assert_same(tiled.std, whole.std)


def test_tiles_without_overlap_would_be_heard(vae, long_wave):
    wave = long_wave[:, :48_000]
    apart = encode_waveform(vae, wave, Tiling(0.5, 0))
    assert (apart.mean - encode_waveform(vae, wave).mean).abs().max() > 1e-2


class Spy:
    """Stands before a VAE and notes the length of every tile."""

    def __init__(self, vae):
        self.config, self.device, self.dtype, self.encoder = vae.config, vae.device, vae.dtype, vae.encoder
        self.lengths, self.counts = [], []
        self._vae = vae

    def encode(self, tile):
        self.lengths.append(tile.shape[-1])
        self.counts.append(len(tile))
        return self._vae.encode(tile)


def test_no_tile_is_longer_than_asked_so_that_memory_does_not_grow_with_the_song(vae, long_wave):
    spy = Spy(vae)
    encode_waveform(spy, long_wave[:, :90_000], Tiling(1, 0.2))
    assert len(spy.lengths) > 2
    assert max(spy.lengths) < 48_000 + HOP


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


@pytest.mark.parametrize("frames", [1, 749, 750, 751, 850, 1399, 1400, 1401, 6000, 6001, 90_000])
def test_tiles_are_of_one_length_see_enough_on_either_side_and_make_up_the_song(frames):
    tiles = plan_tiles(frames, 750, 50)
    own = [range(tile.first + tile.own.start, tile.first + tile.own.stop) for tile in tiles]
    assert [frame for part in own for frame in part] == list(range(frames))
    assert {tile.end - tile.first for tile in tiles} == {min(frames, 750)}
    for tile, part in zip(tiles, own, strict=True):
        assert tile.first == 0 or part.start - tile.first >= 50
        assert tile.end == frames or tile.end - part.stop >= 50


@pytest.mark.parametrize(
    ("samples", "at_once", "counts"),
    [
        (480_000, 8, [6, 6]),
        pytest.param(480_000, 100, [12], marks=pytest.mark.slow),
        (480_001, 8, [6, 5, 1]),
        pytest.param(480_000, 1, [1] * 12, marks=pytest.mark.slow),
        (40_000, 8, [1]),
    ],
)
def test_tiles_go_through_together_as_evenly_as_they_can(vae, samples, at_once, counts):
    spy = Spy(vae)
    encode_waveform(spy, torch.zeros(2, samples), Tiling(1.2, 0.2, at_once))
    assert spy.counts == counts


def card(free, reserved=0, allocated=0, *, monkeypatch, width=128):
    """A VAE of real width in bf16 on a card with so much memory left."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: allocated)
    config = SimpleNamespace(sampling_rate=48_000, encoder_hidden_size=width)
    return SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.bfloat16, config=config)


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [
        (70, Tiling(30, 2, 2)),
        (8, Tiling(30, 2, 2)),
        (4, Tiling(30, 2, 1)),
        (2, Tiling(12, 2, 1)),
        (0.5, Tiling(6, 2, 1)),
    ],
)
def test_tiles_fit_into_the_memory_that_is_free(gigabytes, expected, monkeypatch):
    assert choose_tiling(card(int(gigabytes * 2**30), monkeypatch=monkeypatch)) == expected


def test_memory_that_pytorch_holds_and_does_not_use_is_free(monkeypatch):
    held = card(2**30, reserved=12 * 2**30, allocated=2**30, monkeypatch=monkeypatch)
    assert choose_tiling(held) == choose_tiling(card(12 * 2**30, monkeypatch=monkeypatch))


def test_elsewhere_than_on_a_card_tiles_are_the_usual_ones_so_that_results_repeat(vae):
    assert choose_tiling(vae) == Tiling(30, 2, 1)


def test_what_is_chosen_is_used(vae, long_wave, monkeypatch):
    monkeypatch.setattr(latents, "choose_tiling", lambda _vae: Tiling(1, 0.2, 2))
    spy = Spy(vae)
    encode_waveform(spy, long_wave[:, :96_000])
    assert max(spy.counts) == 2


@pytest.mark.parametrize(("samples", "at_once"), [(40_000, 1), (80_639, 3)])
def test_the_fused_encoder_gives_the_same_in_rooms_of_few_sizes(vae, long_wave, samples, at_once, monkeypatch):
    monkeypatch.setattr(vae_module, "_compiled", lambda function: function)
    wave = long_wave[:, :samples]
    whole = encode_waveform(vae, wave)
    fused = load_vae(vae.folder, dtype=torch.float32, device="cpu")
    assert fuse_encoder(fused) is None
    rooms = []
    fused.encoder.register_forward_pre_hook(lambda _module, given: rooms.append(given[0].shape[-1]))
    monkeypatch.setattr(latents, "ROOM_FRAMES", 41)
    found = encode_waveform(fused, wave, Tiling(1.6, 0.4, at_once))
    assert_same(found.mean, whole.mean)
    assert_same(found.std, whole.std)
    assert set(rooms) == {41 * HOP}
