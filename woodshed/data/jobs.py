"""What preprocessing has to do: which songs, under which names, and which of them are already done.

Identity is by content. A song is done when its file records that its tensors were made from the same audio, text, model
and settings; where files lie does not matter. The record lies in the file itself, so that the two can never disagree.
"""

from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from woodshed.data.ahead import ShouldStop, ahead
from woodshed.data.audio import SAMPLE_RATE
from woodshed.data.clock import Clock
from woodshed.data.conditioning import Wording
from woodshed.data.dataset import record_of
from woodshed.data.digests import digest, file_digest
from woodshed.data.events import Looked
from woodshed.data.manifest import UNFINISHED
from woodshed.data.shards import Shard, deal
from woodshed.data.songs import PromptSource, Song, SongList, safe_stem
from woodshed.data.tensor_files import read_tensors
from woodshed.errors import DataError
from woodshed.models.checkpoints import Checkpoint, CheckpointRoot
from woodshed.settings.schema import PreprocessSettings

IDENTITY = ("audio", "text", "settings", "fingerprint")


@dataclass
class Job:
    """One song on its way through the passes."""

    song: Song
    source: PromptSource
    audio_digest: str
    name: str = ""  # of its .pt file, without the ending
    place: int = 0  # in the list of all songs
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
    parts: str  # a digest of the VAE and the text encoder
    songs: SongList
    shard: Shard
    device: torch.device
    dtype: torch.dtype
    clock: Clock = field(default_factory=Clock, compare=False)

    @property
    def output(self) -> Path:
        """Where the dataset is written."""
        return self.settings.tensor_output

    @property
    def unfinished(self) -> Path:
        """Where the intermediate results lie; each shard has its own folder."""
        return self.output / f"{UNFINISHED}{self.shard.suffix}"

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
            "sound": self.sound_digest,
            "seconds": job.seconds,
            "is_cut": job.is_cut,
            **job.facts,
        }

    @property
    def shared_settings_digest(self) -> str:
        """A digest of everything that all parts of one dataset must have in common."""
        words = self.wording
        said = (words.custom_tag, words.tag_position, str(words.genre_ratio), self.settings.language)
        return digest(self.settings_digest, str(self.longest), self.fingerprint, *said)

    @property
    def settings_digest(self) -> str:
        """A digest of the settings that change any song's tensors; the longest duration only changes longer songs."""
        return digest(self.sound_digest, self.settings.conditioning)

    @property
    def sound_digest(self) -> str:
        """A digest of what changes any song's latents."""
        chosen = self.settings
        return digest(str(chosen.seed), str(self.dtype), self.parts, chosen.normalize, chosen.latents)


def list_jobs(work: Work) -> Generator[Looked, None, tuple[list[Job], list[DataError]]]:
    """Read the songs of the shard; return those that can be read at all, and what is wrong with the others.

    Names are the file's own with a digest of the audio, so that files of one name in different folders do not collide
    and a renamed folder changes nothing.

    Yields:
        Looked, after each song.
    """
    sources = work.wording.sources()
    mine = [(place, work.songs.songs[place], sources[place]) for place in deal(work.songs.songs, work.shard)]
    sizes = [_size(song.path) for _, song, _ in mine]
    jobs, failures = [], []
    read, everything = 0, sum(sizes)

    def hear(item: tuple[int, Song, PromptSource], should_stop: ShouldStop) -> str:
        return file_digest(item[1].path, should_stop)

    digests = ahead(hear, mine, room=64, weigh=lambda _: 1)
    for number, ((place, song, source), sound) in enumerate(digests):
        try:
            jobs.append(Job(song, source, sound.result(), place=place))
        except OSError as error:
            failures.append(DataError(f"{song.path} cannot be read: {error.strerror}."))
        read += sizes[number]
        yield Looked(number + 1, len(mine), read, everything)
    taken: Counter[str] = Counter()
    for job in jobs:
        name = f"{safe_stem(job.song.path.stem)}-{job.audio_digest[:8]}"
        taken[name.casefold()] += 1  # some file systems do not tell small from capital letters
        count = taken[name.casefold()]
        job.name = name if count == 1 else f"{name}-{count}"
    return jobs, failures


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def is_done(work: Work, job: Job) -> bool:
    """Tell whether a song's tensors exist and would come out the same; then its facts are taken from their record."""
    path = work.output / f"{job.name}.pt"
    record: Mapping[str, Any] = {}
    if path.is_file():
        try:
            record = record_of(read_tensors(path, mapped=True))
        except DataError:  # damaged: made again
            return False
    if record.get("audio") != job.audio_digest or not is_as_long(work, record):
        return False
    job.seconds, job.is_cut = record["seconds"], record["is_cut"]
    now = work.record(job)
    if any(record.get(key) != now[key] for key in IDENTITY):
        return False
    job.facts = {key: value for key, value in record.items() if key not in now}
    return True


def is_as_long(work: Work, record: Mapping[str, Any]) -> bool:
    """Tell whether as much of a song would be encoded as the last time."""
    samples: int = round(record["seconds"] * SAMPLE_RATE)
    is_cut: bool = record["is_cut"]
    if work.longest is None:
        return not is_cut
    return samples == work.longest if is_cut else samples <= work.longest
