"""Waveforms to latents, in tiles, so that a long song needs no more memory than a short one.

Shapes: S samples at 48 kHz, T latent frames of `hop` samples, C latent channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
from torch import Tensor

from woodshed.models.vae import FusedEncoder

OVERLAP_SECONDS = 2
"""What a tile sees beyond its own part on either side. Source: ACE-Step 1.5 preprocessing."""
TILE_SECONDS = 30
ROOM_FRAMES = 151  # of 6 seconds, and the part of a frame that may follow; tiles are multiples of 6 seconds
SHORTEST_TILE = 6  # seconds, of which the overlaps take four
MOST_TILES = 2  # at once; more were not faster, see docs/performance.md
ALIVE = 8  # tensors of the encoder's first and widest layers that are in memory at once; six were measured
SHARE = 0.8  # of the free memory; the rest is for what else lies there


@dataclass(frozen=True)
class Posterior:
    """What the VAE makes of a song: a normal distribution per frame and channel."""

    mean: Tensor  # (T, C) float32, on the CPU
    std: Tensor  # (T, C)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw latents, as the original does: mean + std x noise."""
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)


def hop_of(vae: AutoencoderOobleck) -> int:
    """Return the samples per latent frame."""
    return int(torch.tensor(vae.config.downsampling_ratios).prod())


@dataclass(frozen=True)
class Tiling:
    """How a song is cut for the VAE."""

    seconds: float = TILE_SECONDS  # of a tile, with its overlaps
    overlap: float = OVERLAP_SECONDS  # on either side, in seconds; more than the VAE's receptive field
    at_once: int = 1  # tiles of one length that go through together


def choose_tiling(vae: AutoencoderOobleck) -> Tiling:
    """Return tiles that fit into the memory that is free where a VAE lies; elsewhere than on a card the usual ones."""
    free = _free_memory(vae.device)
    if free is None:
        return Tiling()
    of_a_second = ALIVE * vae.config.sampling_rate * vae.config.encoder_hidden_size * vae.dtype.itemsize
    seconds = SHARE * free / of_a_second
    if seconds < TILE_SECONDS:
        return Tiling(seconds=max(float(int(seconds / SHORTEST_TILE) * SHORTEST_TILE), SHORTEST_TILE))
    return Tiling(at_once=min(int(seconds / TILE_SECONDS), MOST_TILES))


def _free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a card, those among them that PyTorch holds and does not use; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@torch.no_grad()
def encode_waveform(vae: AutoencoderOobleck, waveform: Tensor, tiling: Tiling | None = None) -> Posterior:
    """Encode a song; the result does not depend on the tiles, up to rounding.

    Tiles begin on frames, so that none shifts. The samples after the last whole frame have no frame of their own, but
    the last frames hear them, as in the untiled encoder.

    Args:
        vae: on any device, in any precision.
        waveform: (2, S).
        tiling: chosen by the free memory unless given.

    Returns:
        T = S // hop frames, at least one.
    """
    hop, rate = hop_of(vae), vae.config.sampling_rate
    tiling = tiling or choose_tiling(vae)
    waveform = F.pad(waveform, (0, max(hop - waveform.shape[1], 0)))
    frames = waveform.shape[1] // hop
    tiles = plan_tiles(frames, round(tiling.seconds * rate / hop), round(tiling.overlap * rate / hop))
    is_fused = isinstance(vae.encoder, FusedEncoder)
    parts = []
    for group in _groups(tiles, tiling.at_once, are_alike=is_fused or waveform.shape[1] == frames * hop):
        sounds = [waveform[:, tile.first * hop : tile.stop(hop, frames)] for tile in group]
        posterior = (_encode_in_room if is_fused else _encode)(vae, sounds, hop)
        made = torch.cat([posterior.mean, posterior.std], dim=1).float()
        parts += [made[row, :, tile.own] for row, tile in enumerate(group)]
    mean, std = torch.cat(parts, dim=1).cpu().T.chunk(2, dim=1)  # the only wait for the device
    return Posterior(mean.contiguous(), std.contiguous())


def _encode(vae: AutoencoderOobleck, sounds: list[Tensor], _hop: int) -> OobleckDiagonalGaussianDistribution:
    """Encode tiles of one length."""
    return vae.encode(_upload(torch.stack(sounds), vae)).latent_dist


def _encode_in_room(vae: AutoencoderOobleck, sounds: list[Tensor], hop: int) -> OobleckDiagonalGaussianDistribution:
    """Encode tiles in room of one of few sizes, for each of which the convolutions' kernels are chosen once."""
    lengths = [sound.shape[1] for sound in sounds]
    room = -(-max(lengths) // (ROOM_FRAMES * hop)) * ROOM_FRAMES * hop
    filled = torch.stack([F.pad(sound, (0, room - sound.shape[1])) for sound in sounds])
    return OobleckDiagonalGaussianDistribution(vae.encoder(_upload(filled, vae), lengths))


def _upload(sounds: Tensor, vae: AutoencoderOobleck) -> Tensor:
    """Copy sounds to the VAE without waiting for what it still computes."""
    if vae.device.type != "cuda":
        return sounds.to(vae.device, vae.dtype)
    return sounds.pin_memory().to(vae.device, non_blocking=True).to(vae.dtype)


@dataclass(frozen=True)
class Tile:
    """A piece of a song: what the VAE sees, and which part of it is this tile's own."""

    first: int  # frame that it sees, and the one after its last
    end: int
    own: slice  # of the frames that it sees

    def stop(self, hop: int, frames: int) -> int | None:
        """Return the sample where it ends; the last tile hears what follows the last whole frame too."""
        return self.end * hop if self.end < frames else None


def plan_tiles(frames: int, length: int, overlap: int) -> list[Tile]:
    """Return tiles of one length, in frames, whose own parts make up the song; a shorter song is a single tile."""
    assert length > 2 * overlap, "a tile is longer than its overlaps"
    if frames <= length:
        return [Tile(0, frames, slice(0, frames))]
    tiles, done = [], 0
    while done < frames:
        first = min(max(done - overlap, 0), frames - length)
        end = first + length
        own_end = frames if end == frames else end - overlap
        tiles.append(Tile(first, end, slice(done - first, own_end - first)))
        done = own_end
    return tiles


def _groups(tiles: list[Tile], at_once: int, *, are_alike: bool) -> Iterator[list[Tile]]:
    """Yield tiles of one length in groups that go through together, as even as can be.

    Unless all are alike the last tile, which is a part of a frame longer, goes alone.
    """
    alike, alone = (tiles, []) if are_alike else (tiles[:-1], tiles[-1:])
    size = -(-len(alike) // max(-(-len(alike) // at_once), 1))
    yield from (alike[start : start + size] for start in range(0, len(alike), max(size, 1)))
    if alone:
        yield alone
