"""The VAE: trained to give back what it hears, judged by spectra at several resolutions.

Shapes: B excerpts, S samples, C latent channels, F frames of a spectrum, K frequencies.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from numpy.typing import NDArray
from torch import Tensor

from miniature.sizes import SEED, VAE, Budget
from miniature.stage import Log, Trainer, steps_in_time

WINDOWS = (4096, 2048, 1024, 512, 256, 128)
EXCERPT = 48_000  # samples: 25 latent frames
QUIET = 1e-3  # magnitudes below it (60 dB below the loudest sine) count as equal
KL_WEIGHT = 1e-3
WAVE_WEIGHT = 0.5


def build_vae() -> AutoencoderOobleck:
    """Return a VAE with the library's own initial weights."""
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses the older form of weight norm
        return AutoencoderOobleck(**VAE)


def spectral_distance(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Compare (B, 2, S) sounds by their spectra; return mean differences of log magnitudes and of magnitudes."""
    logs, lines = [], []
    sides = torch.stack([torch.cat([x, x.mean(1, keepdim=True), x[:, :1] - x[:, 1:]], 1) for x in (one, other)])
    flat = sides.flatten(0, 2)
    for window in WINDOWS:
        shape = torch.hann_window(window, device=flat.device)
        spectra = torch.stft(flat, window, window // 4, window=shape, return_complex=True)
        sizes = (spectra.real.square() + spectra.imag.square() + 1e-12).sqrt() * (2 / shape.sum())
        mine, theirs = sizes.unflatten(0, (2, -1))
        logs.append((torch.log(mine + QUIET) - torch.log(theirs + QUIET)).abs().mean())
        lines.append((mine - theirs).abs().mean() / theirs.mean().clamp(min=1e-4))
    return torch.stack(logs).mean(), torch.stack(lines).mean()


def train_vae(songs: Callable[[int], NDArray[np.int16]], budget: Budget, device: torch.device, log: Log):
    """Train a VAE on excerpts of songs at random places and loudnesses; return it with its averaged weights."""
    vae = build_vae().to(device)
    sounds = torch.from_numpy(np.ascontiguousarray(songs(budget.vae_songs))).to(device)
    random = torch.Generator().manual_seed(SEED)
    generator = torch.Generator(device).manual_seed(SEED)
    batch = torch.zeros(budget.vae_batch, 2, EXCERPT, device=device)
    scatter = torch.zeros(budget.vae_batch, VAE["decoder_input_channels"], EXCERPT // 1920, device=device)

    def compute_loss() -> tuple[Tensor, Tensor]:
        posterior = vae.encode(batch).latent_dist
        made = vae.decode(posterior.mean + posterior.std * scatter).sample
        heard, meant = made[..., :EXCERPT], batch
        logs, lines = spectral_distance(heard, meant)
        wave = (heard - meant).abs().mean() / 0.1
        kl = posterior.kl()
        total = logs + lines + WAVE_WEIGHT * wave + KL_WEIGHT * kl
        return total, torch.stack([total, logs, lines, wave, kl, posterior.mean.std(), posterior.std.mean()])

    trainer = Trainer(
        compute_loss, list(vae.parameters()), [vae], peak=1.5e-3, betas=(0.8, 0.99), weight_decay=1e-4, decay=0.995
    )
    offsets = torch.arange(EXCERPT, device=device)
    for step, progress in steps_in_time(budget.vae_steps, budget.vae_seconds):
        which = torch.randint(len(sounds), (len(batch),), generator=random).to(device)
        start = torch.randint(sounds.shape[2] - EXCERPT + 1, (len(batch), 1), generator=random).to(device)
        loudness = torch.empty(len(batch), 1, 1).uniform_(0.4, 1.1, generator=random).to(device)
        excerpt = sounds[which].gather(2, (start + offsets)[:, None].expand(-1, 2, -1))
        batch.copy_(excerpt * (loudness / 32_767))
        scatter.normal_(generator=generator)
        facts = trainer.step(step, progress)
        if step % 100 == 0 or step == budget.vae_steps - 1:
            names = ("loss", "log_spectrum", "spectrum", "wave", "kl", "mean_std", "posterior_std")
            log("vae", step=step, **dict(zip(names, facts.tolist(), strict=True)))
    trainer.use_average()
    return vae.eval()


@torch.no_grad()
def encode_songs(
    vae: AutoencoderOobleck, sounds: NDArray[np.int16], numbers: list[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return means and deviations of some songs' latents, (songs, T, C) float32 each, on the device."""
    means, stds = [], []
    for start in range(0, len(numbers), 64):
        part = torch.from_numpy(sounds[numbers[start : start + 64]]).to(device).float() / 32_767
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
