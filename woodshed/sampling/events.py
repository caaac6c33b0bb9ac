"""What making music tells the world: plain frozen records that views consume."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """Everything is found; the model is about to be loaded."""

    model: str
    device: str
    precision: str
    versions: int  # of the song, a file each
    audio_seconds: float  # of each


@dataclass(frozen=True)
class Notice:
    """One sentence the user should read."""

    text: str


@dataclass(frozen=True)
class Sampled:
    """One sampling step of one version is done."""

    version: str  # its name: the adapter's, or "base"
    number: int  # of the version, counting from 1
    step: int  # counts from 1
    steps: int


@dataclass(frozen=True)
class Written:
    """A file is on the disk, whole."""

    version: str
    path: Path


@dataclass(frozen=True)
class Finished:
    """Every version is written."""

    files: tuple[Path, ...]
    seconds: float
    peak_memory_bytes: int | None  # on the device; None where the device does not count


GenerateEvent = Started | Notice | Sampled | Written | Finished
