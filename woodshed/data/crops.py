"""Random windows of long songs, another one each epoch, without encoding anything again."""

import hashlib
from dataclasses import replace

from woodshed.data.dataset import Sample

FRAMES_PER_SECOND = 25  # latent frames: 48,000 samples / 1,920 per frame


def crop_frames(seconds: float) -> int:
    """Return the frames of a window of so many seconds, at least one; 0 seconds are no window."""
    return max(round(seconds * FRAMES_PER_SECOND), 1) if seconds else 0


def crop(sample: Sample, frames: int, *, seed: int, epoch: int) -> Sample:
    """Return a window of a song: the same frames of its latents and of its context. Conditions stay those of the song.

    Where it begins depends on seed, epoch and the song's name alone, so that a resumed run takes the same windows.

    Args:
        sample: a song of T frames.
        frames: of the window; a song that is not longer stays whole, as every song does for 0.
        seed: of the run.
        epoch: counts from 1.
    """
    spare = len(sample.latents) - frames
    if not frames or spare <= 0:
        return sample
    drawn = hashlib.blake2b(f"{seed}\0{epoch}\0{sample.name}\0window".encode(errors="surrogateescape"), digest_size=8)
    start = int.from_bytes(drawn.digest(), "big") % (spare + 1)
    window = slice(start, start + frames)
    return replace(sample, latents=sample.latents[window], context=sample.context[window])
