"""What preprocessing has to do: which songs, under which names, and which of them are already done.

Identity is by content. A song is done when its file records that its tensors were made from the same audio, text, model
and settings; where files lie does not matter. The record lies in the file itself, so that the two can never disagree.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from woodshed.data.audio import SAMPLE_RATE
from woodshed.data.conditioning import Wording
from woodshed.data.dataset import record_of
from woodshed.data.songs import PromptSource, Song, SongList
from woodshed.data.tensor_files import read_tensors
from woodshed.errors import DataError
from woodshed.models.checkpoints import Checkpoint, CheckpointRoot
from woodshed.settings.schema import PreprocessSettings

CONDITIONING = "inference"  # text and reference as the model's own inference gives them
IDENTITY = ("audio", "text", "settings", "fingerprint")
LONGEST_NAME = 80  # characters of a file's own name that its tensors keep
LONGEST_NAME_BYTES = 160  # most file systems allow 255, of which digest and endings take their part


@dataclass
class Job:
    """One song on its way through the passes."""

    song: Song
    source: PromptSource
    audio_digest: str
    name: str = ""  # of its .pt file, without the ending
    seconds: float = 0.0  # of what is encoded; known once the song was decoded
    is_cut: bool = False  # whether the song goes on after that
    facts: dict[str, Any] = field(default_factory=dict)  # frames and token counts


@dataclass(frozen=True)
class Work:
    """What all songs of a preprocessing run share."""

    settings: PreprocessSettings
    found: CheckpointRoot
    checkpoint: Checkpoint
    fingerprint: str
    songs: SongList
    device: torch.device
    dtype: torch.dtype

    @property
    def output(self) -> Path:
        """Where the dataset is written."""
        return self.settings.tensor_output

    @property
    def wording(self) -> Wording:
        """How the songs are put into words."""
        return Wording(self.settings, self.songs)

    @property
    def longest(self) -> int | None:
        """Samples at which a song is cut, None for never."""
        return round(self.settings.max_duration * SAMPLE_RATE) if self.settings.max_duration else None

    def texts(self, job: Job) -> tuple[str, str]:
        """Return prompt and lyric text of a song whose length is known."""
        return self.wording.texts(job.song, job.source, job.seconds)

    def record(self, job: Job) -> dict[str, Any]:
        """Return what a song's tensors are made of, and what is worth knowing about them."""
        return {
            "model": self.checkpoint.name,
            "fingerprint": self.fingerprint,
            "audio": job.audio_digest,
            "text": digest(*self.texts(job)),
            "settings": self.settings_digest,
            "seconds": job.seconds,
            "is_cut": job.is_cut,
            **job.facts,
        }

    @property
    def settings_digest(self) -> str:
        """A digest of the settings that change any song's tensors; the longest duration only changes longer songs."""
        chosen = self.settings
        return digest(str(chosen.seed), str(self.dtype), CONDITIONING, chosen.normalize, chosen.latents)


def list_jobs(work: Work) -> tuple[list[Job], list[DataError]]:
    """Return the songs that can be read at all, each under a name of its own, and what is wrong with the others.

    Names are the file's own with a digest of the audio, so that files of one name in different folders do not collide
    and a renamed folder changes nothing.
    """
    jobs, failures = [], []
    sources = work.wording.sources()
    for song, source in zip(work.songs.songs, sources, strict=True):
        try:
            jobs.append(Job(song, source, file_digest(song.path)))
        except OSError as error:
            failures.append(DataError(f"{song.path} cannot be read: {error.strerror}."))
    taken: Counter[str] = Counter()
    for job in jobs:
        name = f"{_safe(job.song.path.stem)}-{job.audio_digest[:8]}"
        taken[name.casefold()] += 1  # some file systems do not tell small from capital letters
        count = taken[name.casefold()]
        job.name = name if count == 1 else f"{name}-{count}"
    return jobs, failures


def is_done(work: Work, job: Job) -> bool:
    """Tell whether a song's tensors exist and would come out the same; then its facts are taken from their record."""
    path = work.output / f"{job.name}.pt"
    record: Mapping[str, Any] = {}
    if path.is_file():
        try:
            record = record_of(read_tensors(path, mapped=True))
        except DataError:  # damaged: made again
            return False
    if record.get("audio") != job.audio_digest or not _is_as_long(work, record):
        return False
    job.seconds, job.is_cut = record["seconds"], record["is_cut"]
    now = work.record(job)
    if any(record.get(key) != now[key] for key in IDENTITY):
        return False
    job.facts = {key: value for key, value in record.items() if key not in now}
    return True


def _is_as_long(work: Work, record: Mapping[str, Any]) -> bool:
    """Tell whether as much of a song would be encoded as the last time."""
    samples: int = round(record["seconds"] * SAMPLE_RATE)
    is_cut: bool = record["is_cut"]
    if work.longest is None:
        return not is_cut
    return samples == work.longest if is_cut else samples <= work.longest


def _safe(stem: str) -> str:
    """Return a file name that every platform can write and read."""
    stem = unicodedata.normalize("NFC", stem)
    kept = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in stem)
    short = kept[:LONGEST_NAME].encode()[:LONGEST_NAME_BYTES].decode(errors="ignore")
    return short.strip(" .") or "song"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*texts: str) -> str:
    """Return the SHA-256 of several texts, kept apart."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
