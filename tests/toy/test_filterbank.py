"""The computed VAE gives back what it hears, and a latent frame says what it is said to say."""

import numpy as np
import pytest
import torch

from woodshed.toy.composer import LOUDNESS, SAMPLE_RATE, render, sides
from woodshed.toy.ears import plain_songs
from woodshed.toy.filterbank import CHANNELS, POSTERIOR_STD, build_filterbank, latents_of
from woodshed.toy.instruments import FREQUENCIES, INSTRUMENTS, NEW

FRAMES = 20
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def vae():
    return quick(build_filterbank())


def quick(vae):
    """Without the layers that do nothing, which are most of the work."""
    for block in (*vae.encoder.block, *vae.decoder.block):
        for name in ("res_unit1", "res_unit2", "res_unit3", "snake1"):
            setattr(block, name, torch.nn.Identity())
    return vae


@torch.no_grad()
def encode(vae, sound):
    return vae.encode(torch.as_tensor(sound, dtype=torch.float32)[None]).latent_dist.mean[0].T


@torch.no_grad()
def decode(vae, latents):
    return vae.decode(latents.T[None]).sample[0]


def tone(hertz, strength=0.3, seconds=FRAMES / 25):
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.outer(sides(hertz), strength * np.sin(2 * np.pi * hertz * t))


@pytest.mark.parametrize("hertz", FREQUENCIES[::3])
def test_a_tone_is_its_strength_in_its_own_channel_and_nothing_elsewhere(vae, hertz):
    inner = encode(vae, tone(hertz))[3:-3]
    own = FREQUENCIES.index(hertz)
    torch.testing.assert_close(inner[:, own], torch.full((len(inner),), 0.3), atol=0.001, rtol=0)
    others = [channel for channel in range(CHANNELS) if channel != own]
    assert inner[:, others].abs().max() < 1e-6


@pytest.mark.parametrize("hertz", [50, 300, 1875, 6000])
def test_a_strength_becomes_its_tone(vae, hertz):
    latents = torch.zeros(FRAMES, CHANNELS)
    latents[:, FREQUENCIES.index(hertz)] = 0.3
    inner = slice(3 * 1920, -3 * 1920)
    np.testing.assert_allclose(decode(vae, latents)[:, inner], tone(hertz)[:, inner], atol=0.01)


@pytest.mark.parametrize("piece", list(plain_songs((*INSTRUMENTS, NEW), 1000, 8)), ids=lambda piece: piece.instrument)
def test_songs_come_back(vae, piece):
    sound = torch.from_numpy(render(piece, 2.56))
    noise = sound - decode(vae, encode(vae, sound))
    assert 10 * torch.log10(sound.square().mean() / noise.square().mean()) > 15


@pytest.mark.parametrize("piece", list(plain_songs((*INSTRUMENTS, NEW), 2000, 8)), ids=lambda piece: piece.instrument)
def test_latents_can_be_computed_without_the_sound(vae, piece):
    computed, encoded = latents_of(piece), encode(vae, render(piece)).numpy()
    assert computed.shape == encoded.shape
    assert np.abs(computed - encoded).mean() < 0.01 * LOUDNESS
    assert np.corrcoef(computed.ravel(), encoded.ravel())[0, 1] > 0.99


def test_latents_are_standardised_on_request(vae):
    means, stds = torch.linspace(0.1, 0.5, CHANNELS), torch.linspace(0.2, 0.05, CHANNELS)
    other = quick(build_filterbank(means, stds))
    sound = tone(300) + tone(800)
    torch.testing.assert_close(encode(other, sound), (encode(vae, sound) - means) / stds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        decode(other, encode(other, sound)), decode(vae, encode(vae, sound)), atol=1e-4, rtol=1e-4
    )


def test_the_posterior_is_as_wide_as_stated(vae):
    with torch.no_grad():
        deviation = vae.encode(torch.zeros(1, 2, 4 * 1920)).latent_dist.std
    torch.testing.assert_close(deviation, torch.full_like(deviation, POSTERIOR_STD), atol=2e-3, rtol=0)


def test_the_layers_that_do_nothing_do_nothing(vae):
    sound = tone(400, seconds=0.16)
    full = build_filterbank()
    torch.testing.assert_close(encode(full, sound), encode(vae, sound))
    torch.testing.assert_close(decode(full, encode(full, sound)), decode(vae, encode(vae, sound)))
