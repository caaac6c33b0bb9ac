"""What preprocessing tells the world: plain frozen records, as training has its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Looked:
    """One more song was read to know it by its content."""

    done: int
    total: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True)
class Found:
    """The songs are known; work begins."""

    songs: int
    unchanged: int  # already encoded, left as they are
    device: str
    precision: str
    shard: str = ""  # "2/4" where only a part of the songs is encoded here


@dataclass(frozen=True)
class Notice:
    """One sentence the user should read."""

    text: str


@dataclass(frozen=True)
class SongDone:
    """One song went through one step of the work."""

    step: str  # "audio", "text" or "conditions"
    name: str
    done: int
    total: int
    audio_seconds: float


@dataclass(frozen=True)
class SongFailed:
    """A song that cannot be used; the others go on."""

    problem: str


@dataclass(frozen=True)
class Finished:
    """The dataset is complete."""

    folder: Path
    encoded: int
    unchanged: int
    failed: int
    audio_seconds: float  # of music encoded now
    seconds: float  # it took
    waited: float | None = None  # share of the encoding in which the device had nothing to do
    peaks: Mapping[str, int] = field(default_factory=dict)  # bytes on the device by step, where that is known
    shard: str = ""


EncodeEvent = Looked | Found | Notice | SongDone | SongFailed | Finished
