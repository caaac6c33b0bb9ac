"""What preprocessing has to do: which songs, under which names, and which of them are already done.

Identity is by content. A song is done when a record says that its tensors were made from the same audio, text, model
and settings; where files lie and what they are called does not matter.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from woodshed.data.conditioning import prompt_sources, song_texts
from woodshed.data.songs import PromptSource, Song, SongList
from woodshed.errors import DataError
from woodshed.models.checkpoints import Checkpoint, CheckpointRoot
from woodshed.settings.schema import PreprocessSettings

CONDITIONING = "inference"  # text and reference as the model's own inference gives them
IDENTITY = ("audio", "text", "settings", "fingerprint")


@dataclass
class Job:
    """One song on its way through the passes."""

    song: Song
    source: PromptSource
    audio_digest: str
    name: str = ""  # of its .pt file, without the ending
    seconds: float = 0.0  # of what is encoded; known once the song was decoded
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
    def custom_tag(self) -> str:
        """The trigger tag: the user's, else the dataset's."""
        return self.settings.custom_tag or self.songs.custom_tag

    @property
    def genre_ratio(self) -> int:
        """Percent of genre prompts: the user's, else the dataset's."""
        theirs = self.songs.genre_ratio if self._is_default("genre_ratio") else None
        return self.settings.genre_ratio if theirs is None else theirs

    def texts(self, job: Job) -> tuple[str, str]:
        """Return prompt and lyric text of a song whose length is known."""
        theirs = self.songs.tag_position if self._is_default("tag_position") else None
        return song_texts(
            job.song,
            job.source,
            tag=self.custom_tag,
            position=theirs or self.settings.tag_position,
            language=self.settings.language,
            seconds=job.seconds,
        )

    def record(self, job: Job) -> dict[str, Any]:
        """Return what a song's tensors are made of, and what is worth knowing about them."""
        return {
            "audio": job.audio_digest,
            "text": digest(*self.texts(job)),
            "settings": self.settings_digest,
            "fingerprint": self.fingerprint,
            "seconds": job.seconds,
            **job.facts,
        }

    @property
    def settings_digest(self) -> str:
        """A digest of the settings that change the tensors."""
        return digest(str(self.settings.max_duration), str(self.settings.seed), str(self.dtype), CONDITIONING)

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self.settings, name) == type(self.settings).model_fields[name].default)


def list_jobs(work: Work) -> tuple[list[Job], list[DataError]]:
    """Return the songs that can be read at all, each under a name of its own, and what is wrong with the others.

    Names are the file's own with a digest of the audio, so that files of one name in different folders do not collide
    and a renamed folder changes nothing.
    """
    jobs, failures = [], []
    sources = prompt_sources(work.songs.songs, work.genre_ratio, work.settings.seed)
    for song, source in zip(work.songs.songs, sources, strict=True):
        try:
            jobs.append(Job(song, source, file_digest(song.path)))
        except OSError as error:
            failures.append(DataError(f"{song.path} cannot be read: {error.strerror}."))
    taken: Counter[str] = Counter()
    for job in jobs:
        name = f"{_safe(job.song.path.stem)}-{job.audio_digest[:8]}"
        taken[name] += 1
        job.name = name if taken[name] == 1 else f"{name}-{taken[name]}"
    return jobs, failures


def is_done(work: Work, job: Job, records: Mapping[str, Any]) -> bool:
    """Tell whether a song's tensors exist and would come out the same; then its facts are taken from the record."""
    record = records.get(job.name)
    if not isinstance(record, dict) or not (work.output / f"{job.name}.pt").is_file():
        return False
    if record.get("audio") != job.audio_digest:
        return False
    job.seconds = float(record.get("seconds", 0.0))
    now = work.record(job)
    if any(record.get(key) != now[key] for key in IDENTITY):
        return False
    job.facts = {key: value for key, value in record.items() if key not in (*IDENTITY, "seconds")}
    return True


def _safe(stem: str) -> str:
    """Return a file name that every platform can write and read."""
    kept = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in stem)
    return kept.strip(" .")[:80] or "song"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*texts: str) -> str:
    """Return the SHA-256 of several texts, kept apart."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
