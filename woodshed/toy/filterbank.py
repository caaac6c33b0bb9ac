"""A VAE that nobody has to train: a bank of filters, computed, in the layers of `AutoencoderOobleck`.

A latent frame says how strong each of the generator's 32 frequencies is, standardised. The encoder's strided
convolutions mix a song down with sines of these frequencies, the decoder's transposed ones mix it up again. Residual
units add nothing and activations change nothing (their frequency is almost zero), so that both are linear.

Letters: K frequencies, s stride of a block, r its slower rate. A complex signal takes two channels: its real part
before its imaginary part.
"""

import math
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from numpy.typing import NDArray
from torch import Tensor

from woodshed.toy.composer import FADE_SECONDS, LOUDNESS, SECONDS, Piece, sides, strengths
from woodshed.toy.instruments import FRAME_RATE, FREQUENCIES

STRIDES = (8, 6, 4, 10)  # together the real hop of 1920
CHANNELS = len(FREQUENCIES)
CONFIG = {
    "audio_channels": 2,
    "channel_multiples": [1, 1, 1, 1],
    "decoder_channels": 2 * CHANNELS,
    "decoder_input_channels": CHANNELS,
    "downsampling_ratios": list(STRIDES),
    "encoder_hidden_size": 2 * CHANNELS,
    "sampling_rate": 48_000,
}
IDENTITY = -20.0
"""The logarithm of a Snake's frequency at which it changes nothing."""
SHARPENING = 0.28
"""What the encoder takes from either neighbour of a frame, since its windows and the decoder's blur what they see."""
POSTERIOR_STD = 0.05


def build_filterbank(means: Tensor | None = None, stds: Tensor | None = None) -> AutoencoderOobleck:
    """Return the VAE.

    Args:
        means, stds: (K,) of the strengths in songs, so that latents have mean 0 and deviation 1; 0 and 1 without.
    """
    means = torch.zeros(CHANNELS) if means is None else means
    stds = torch.ones(CHANNELS) if stds is None else stds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses the older form of weight norm
        vae = AutoencoderOobleck(**CONFIG)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            # A weight is its size times its direction, and zero has no direction.
            parameter.fill_(IDENTITY if name.endswith("alpha") else float(name.endswith("weight_v")))
        _fill_encoder(vae.encoder, means, stds)
        _fill_decoder(vae.decoder, means, stds)
    return vae.eval()


def _fill_encoder(encoder: Any, means: Tensor, stds: Tensor) -> None:
    _set_weight(encoder.conv1, _at_centre(torch.eye(2 * CHANNELS, 2), 7))
    rate = 48_000.0
    for block, stride in zip(encoder.block, STRIDES, strict=True):
        real, imaginary = _windowed_sines(stride, rate)
        turning = _complex(real / stride, -imaginary / stride)  # back to where the slower sample stands
        if rate == 48_000:  # real sound comes in on two sides
            heard = torch.einsum("osj,si->oij", turning[:, :CHANNELS], _both_sides())
            turning = F.pad(heard, (0, 0, 0, 2 * CHANNELS - 2))
        rate /= stride
        if rate == FRAME_RATE:  # a sine is half a turning one less the other half; its strength is what is wanted
            turning = torch.cat([-2 * _signs()[:, None, None] * turning[CHANNELS:], 0 * turning[CHANNELS:]])
        _set_weight(block.conv1, turning)
    sharp = torch.tensor([-SHARPENING, 1 + 2 * SHARPENING, -SHARPENING])
    sharpened = torch.diag(1 / stds)[..., None] * sharp
    _set_weight(encoder.conv2, F.pad(sharpened, (0, 0, 0, CHANNELS, 0, CHANNELS)))
    encoder.conv2.bias.copy_(torch.cat([-means / stds, torch.full_like(means, math.log(math.expm1(POSTERIOR_STD)))]))


def _fill_decoder(decoder: Any, means: Tensor, stds: Tensor) -> None:
    _set_weight(decoder.conv1, _at_centre(F.pad(torch.diag(_signs() * stds), (0, 0, 0, CHANNELS)), 7))
    decoder.conv1.bias[:CHANNELS] = _signs() * means
    rate = float(FRAME_RATE)
    for block, stride in zip(decoder.block, reversed(STRIDES), strict=True):
        rate *= stride
        real, imaginary = _windowed_sines(stride, rate)
        turning = _complex(real, imaginary)
        if rate == 48_000:  # the imaginary part is the sine
            sound = torch.einsum("osj,oi->isj", turning[CHANNELS:], _both_sides())
            turning = F.pad(sound, (0, 0, 0, 0, 0, 2 * CHANNELS - 2))
        _set_weight(block.conv_t1, turning.transpose(0, 1))
    _set_weight(decoder.conv2, _at_centre(torch.eye(2, 2 * CHANNELS), 7))


def _windowed_sines(stride: int, rate: float) -> tuple[Tensor, Tensor]:
    """Return each frequency's cosine and sine about the middle of a window, (K, 2 s), at the faster rate.

    Windows are triangles that overlap by half and sum to one. Together with the slower ones they have a zero at every
    multiple of the frame rate, so that frequencies do not disturb each other.
    """
    place = torch.arange(2 * stride, dtype=torch.float64) - (stride - 0.5)
    window = 1 - place.abs() / stride
    late = 0.5 if rate == 48_000 else 0.0  # the first sample of a song stands at 0, in the middle of its own time
    phase = 2 * math.pi * torch.tensor(FREQUENCIES, dtype=torch.float64)[:, None] * (place - late) / rate
    return (window * phase.cos()).float(), (window * phase.sin()).float()


def _complex(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return the (2 K, 2 K, 2 s) matrix that multiplies by (K, 2 s) complex numbers, each frequency by its own."""
    same, across = torch.diag_embed(real.T).permute(1, 2, 0), torch.diag_embed(imaginary.T).permute(1, 2, 0)
    return torch.cat([torch.cat([same, -across], dim=1), torch.cat([across, same], dim=1)])


def _both_sides() -> Tensor:
    """Return (K, 2): how much of each frequency is heard on either side."""
    return torch.tensor([sides(hertz) for hertz in FREQUENCIES])


def _signs() -> Tensor:
    """Return (K,): what a sine's phase in the middle of a frame, a multiple of a half turn, makes of its sign."""
    return torch.tensor([(-1.0) ** (hertz // FRAME_RATE) for hertz in FREQUENCIES])


def _at_centre(matrix: Tensor, taps: int) -> Tensor:
    return F.pad(matrix[..., None], (taps // 2, taps // 2))


def _set_weight(layer: Any, weight: Tensor) -> None:
    """Give a weight-normed layer its weight, whose rows may be zero."""
    size = weight.flatten(1).norm(dim=1)[:, None, None]
    layer.weight_v.copy_(torch.where(size > 0, weight, torch.ones_like(weight)))
    layer.weight_g.copy_(size)


def latents_of(piece: Piece, seconds: float = SECONDS) -> NDArray[np.float64]:
    """Return what the encoder makes of a piece before it standardises, (T, K), without rendering it.

    It is linear, so that strengths can take the place of sound.
    """
    rate = 10 * FRAME_RATE
    frames = round(seconds * FRAME_RATE)
    found = np.zeros((frames, CHANNELS))
    window = np.array([1 - abs(place - 9.5) / 10 for place in range(20)]) / 10
    t = (np.arange(10 * frames) + 0.5) / rate
    ending = LOUDNESS * np.minimum((seconds - t) / FADE_SECONDS, 1)
    for hertz, strength in strengths(piece, seconds, rate).items():
        padded = np.pad(strength * ending, 5)
        blurred = np.lib.stride_tricks.sliding_window_view(padded, 20)[::10] @ window
        around = np.pad(blurred, 1)
        sharp = (1 + 2 * SHARPENING) * blurred - SHARPENING * (around[:-2] + around[2:])
        found[:, FREQUENCIES.index(hertz)] = sharp
    return found
