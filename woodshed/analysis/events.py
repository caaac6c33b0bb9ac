"""What an estimate tells the world: plain frozen records that views consume."""

from dataclasses import dataclass
from pathlib import Path

from woodshed.adapters.ranking import Ranking


@dataclass(frozen=True)
class Started:
    """Everything is found; the model is about to be loaded."""

    model: str
    device: str
    precision: str
    songs: int  # in the dataset
    batches: int
    modules: int


@dataclass(frozen=True)
class Notice:
    """One sentence the user should read."""

    text: str


@dataclass(frozen=True)
class BatchDone:
    """The gradients of one song at one noise level are measured."""

    number: int  # counts from 1
    batches: int
    song: str
    t: float
    loss: float


@dataclass(frozen=True)
class Finished:
    """The estimate is on the disk."""

    ranking: Ranking
    path: Path
    seconds: float
    peak_memory_bytes: int | None  # on the device; None where the device does not count


EstimateEvent = Started | Notice | BatchDone | Finished
