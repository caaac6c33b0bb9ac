"""The VAE: trained to give back what it hears, judged by spectra at several resolutions.

Shapes: B excerpts, S samples, C latent channels, F frames of a spectrum, K frequencies.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from numpy.typing import NDArray
from torch import Tensor, nn

from miniature.sizes import SEED, VAE, Budget
from miniature.stage import Log, Trainer, steps_in_time

WINDOWS = (2048, 1024, 512, 256, 128)
EXCERPT = 46_080  # samples: 24 latent frames
QUIET = 1e-3  # magnitudes below it (60 dB below the loudest sine) count as equal
KL_WEIGHT = 2e-4  # in the end; rising from nothing, else the latents are never used
WAVE_WEIGHT = 0.2
LOG_EVERY = 500


def build_vae() -> AutoencoderOobleck:
    """Return a VAE with the library's own initial weights, but for latents that stand out from their deviation."""
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses the older form of weight norm
        vae = AutoencoderOobleck(**VAE)
    last = vae.encoder.conv2
    half = VAE["decoder_input_channels"]
    with torch.no_grad():
        last.weight_g[:half] *= 10
        last.weight_g[half:] *= 0.1
        last.bias[half:] = -2.5  # a deviation of 0.08
    make_linear_at_full_rate(vae)
    return vae


Place = tuple[nn.Module, str]

IDENTITY = -20.0
"""The logarithm of a Snake's frequency at which it changes nothing."""


def _units_at_full_rate(vae: AutoencoderOobleck) -> tuple[list[Place], list[Place]]:
    """Return where the residual units and activations at 48 kHz sit: (holder, name) each."""
    first, last = vae.encoder.block[0], vae.decoder.block[-1]
    units = [(block, f"res_unit{number}") for block in (first, last) for number in (1, 2, 3)]
    return units, [(first, "snake1"), (vae.decoder, "snake1")]


def make_linear_at_full_rate(vae: AutoencoderOobleck) -> None:
    """Let the layers at 48 kHz be filter banks and no more, as in vocoders that end in an inverse Fourier transform.

    Units that add nothing and activations that change nothing stay in the checkpoint. What is learned then costs a
    tenth of the time, since nearly all of it is spent at the highest rate.
    """
    units, activations = _units_at_full_rate(vae)
    with torch.no_grad():
        for holder, name in units:
            getattr(holder, name).conv2.weight_g.zero_()
            getattr(holder, name).conv2.bias.zero_()
        for holder, name in activations:
            getattr(holder, name).alpha.fill_(IDENTITY)


@contextmanager
def without_what_does_nothing(vae: AutoencoderOobleck) -> Iterator[None]:
    """Take those units and activations out for a while."""
    units, activations = _units_at_full_rate(vae)
    taken = [(holder, name, getattr(holder, name)) for holder, name in (*units, *activations)]
    for holder, name, _ in taken:
        setattr(holder, name, nn.Identity())
    try:
        yield
    finally:
        for holder, name, module in taken:
            setattr(holder, name, module)


def spectral_distance(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Compare (B, 2, S) sounds by their spectra; return mean differences of log magnitudes and of magnitudes."""
    logs, lines = [], []
    flat = torch.stack([one, other]).flatten(0, 2)
    for window in WINDOWS:
        shape = torch.hann_window(window, device=flat.device)
        spectra = torch.stft(flat, window, window // 4, window=shape, return_complex=True)
        sizes = (spectra.real.square() + spectra.imag.square() + 1e-12).sqrt() * (2 / shape.sum())
        mine, theirs = sizes.unflatten(0, (2, -1))
        logs.append((torch.log(mine + QUIET) - torch.log(theirs + QUIET)).abs().mean())
        lines.append((mine - theirs).abs().mean() / theirs.mean().clamp(min=1e-4))
    return torch.stack(logs).mean(), torch.stack(lines).mean()


def train_vae(
    songs: Callable[[int], NDArray[np.int16]], budget: Budget, device: torch.device, log: Log
) -> AutoencoderOobleck:
    """Train a VAE on excerpts of songs at random places and loudnesses; return it with its averaged weights."""
    vae = build_vae().to(device)
    sounds = torch.from_numpy(np.ascontiguousarray(songs(budget.vae_songs))).to(device)
    with without_what_does_nothing(vae):
        _train(vae, sounds, budget, log)
    return vae.eval()


def _train(vae: AutoencoderOobleck, sounds: Tensor, budget: Budget, log: Log) -> None:
    device = sounds.device
    random = torch.Generator().manual_seed(SEED)
    generator = torch.Generator(device).manual_seed(SEED)
    batch = torch.zeros(budget.vae_batch, 2, EXCERPT, device=device)
    kl_weight = torch.zeros((), device=device)
    scatter = torch.zeros(budget.vae_batch, VAE["decoder_input_channels"], EXCERPT // 1920, device=device)

    def compute_loss() -> tuple[Tensor, Tensor]:
        posterior = vae.encode(batch).latent_dist
        made = vae.decode(posterior.mean + posterior.std * scatter).sample
        logs, lines = spectral_distance(made, batch)
        wave = (made - batch).abs().mean() / 0.1
        kl = posterior.kl()
        total = 3 * logs + lines + WAVE_WEIGHT * wave + kl_weight * kl
        return total, torch.stack([total, logs, lines, wave, kl, posterior.mean.std(), posterior.std.mean()])

    parameters = list(vae.parameters())
    trainer = Trainer(compute_loss, parameters, [vae], peak=1e-3, betas=(0.8, 0.99), weight_decay=1e-4, decay=0.995)
    offsets = torch.arange(EXCERPT, device=device)
    for step, progress in steps_in_time(budget.vae_steps, budget.vae_seconds):
        which = torch.randint(len(sounds), (len(batch),), generator=random).to(device)
        start = torch.randint(sounds.shape[2] - EXCERPT + 1, (len(batch), 1), generator=random).to(device)
        loudness = torch.empty(len(batch), 1, 1).uniform_(0.4, 1.1, generator=random).to(device)
        excerpt = sounds[which].gather(2, (start + offsets)[:, None].expand(-1, 2, -1))
        batch.copy_(excerpt * (loudness / 32_767))
        scatter.normal_(generator=generator)
        kl_weight.fill_(KL_WEIGHT * min(1.0, 2 * progress))
        facts = trainer.step(step, progress)
        if step % LOG_EVERY == 0 or step == budget.vae_steps - 1:
            names = ("loss", "log_spectrum", "spectrum", "wave", "kl", "mean_std", "posterior_std")
            log("vae", step=step, **dict(zip(names, facts.tolist(), strict=True)))
    trainer.use_average()


@torch.no_grad()
def encode_songs(
    vae: AutoencoderOobleck, songs: Callable[[int], NDArray[np.int16]], numbers: list[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return means and deviations of some songs' latents, (songs, T, C) float32 each, on the device."""
    means, stds = [], []
    for start in range(0, len(numbers), 64):
        some = numbers[start : start + 64]
        part = torch.from_numpy(songs(some[-1] + 1)[some]).to(device).float() / 32_767
        posterior = vae.encode(part).latent_dist
        means.append(posterior.mean.transpose(1, 2).contiguous())
        stds.append(posterior.std.transpose(1, 2).contiguous())
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def encode_silence(vae: AutoencoderOobleck, frames: int, device: torch.device) -> Tensor:
    """Return (1, C, frames) latents of silence, as silence_latent.pt holds them."""
    silence = torch.zeros(1, 2, frames * 1920, device=device)
    mean: Tensor = vae.encode(silence).latent_dist.mean
    return mean[..., :frames].float().cpu().contiguous()


def unit_scale(vae: AutoencoderOobleck, means: Tensor) -> float:
    """Scale what the encoder makes and the decoder takes so that latents have a deviation of one; return the factor."""
    factor = 1 / float(means.std())
    with torch.no_grad():
        last, first = vae.encoder.conv2, vae.decoder.conv1
        half = last.weight_g.shape[0] // 2
        last.bias[half:] += math.log(factor)  # of the deviation, which is small: its softplus is nearly exp
        last.weight_g[:half] *= factor
        last.bias[:half] *= factor
        first.weight_g /= factor
    return factor


def measure(vae: AutoencoderOobleck, sounds: Tensor) -> dict[str, float]:
    """Compare (songs, 2, S) sounds with what the VAE makes of them: signal to noise, log spectral distance, in dB."""
    with torch.no_grad():
        made = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in sounds.split(16)])
    made = made[..., : sounds.shape[2]]
    noise = (made - sounds).square().mean((1, 2))
    ratios = 10 * torch.log10(sounds.square().mean((1, 2)) / noise)
    window = torch.hann_window(2048, device=sounds.device)
    levels = []
    for x in (sounds, made):
        size = torch.stft(x.flatten(0, 1), 2048, 512, window=window, return_complex=True).abs()
        size = size / size.amax((1, 2), keepdim=True)
        levels.append(20 * torch.log10(size.clamp(min=1e-3)))
    distance = (levels[0] - levels[1]).square().mean(1).sqrt().mean()
    within = F.l1_loss(levels[0], levels[1])
    return {
        "snr_db": float(ratios.mean()),
        "snr_db_worst": float(ratios.min()),
        "log_spectral_distance_db": float(distance),
        "mean_level_error_db": float(within),
    }
