"""What is kept from training: chosen by seed and name alone, so that a resume and another machine agree."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from woodshed.data.crops import FRAMES_PER_SECOND
from woodshed.data.dataset import SongDataset
from woodshed.training.passages import LEAST, choose_passages, cut, recall_passages

FEWEST_SONGS = 4  # of a smaller dataset every song is worth more in training; passages are held out instead
MOST_HELD_OUT = 32  # more measure hardly better and cost as much again


@dataclass(frozen=True)
class Split:
    """A dataset in two."""

    training: SongDataset
    held_out: SongDataset | None  # None where nothing is
    notices: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every song's file, once."""
        held_out = () if self.held_out is None else self.held_out.files
        return tuple(dict.fromkeys((*self.training.files, *held_out)))

    @property
    def held_out_names(self) -> tuple[str, ...]:
        """Names of the songs that do not train."""
        return () if self.held_out is None else self.held_out.names


def split_songs(dataset: SongDataset, share: float, seed: int, before: Collection[str] | None = None) -> Split:
    """Hold songs out of training, or passages where there are few songs.

    Args:
        dataset: all songs.
        share: how many of them, rounded to whole songs, at least one.
        seed: decides which.
        before: names that the run to be continued held out; the same ones are again, and no others. None for a new
            run.

    Raises:
        DataError: when passages are needed, and a song cannot be read.
    """
    if share == 0:
        return Split(dataset, None)
    if before is None and len(dataset) < FEWEST_SONGS:
        return _split_passages(dataset, choose_passages(dataset, share, seed))
    if before and (passages := recall_passages(dataset, before)):
        return _split_passages(dataset, passages)
    if before is not None and not before:
        return Split(dataset, None, ("No song is held out, as the run that is continued trained on all of them.",))
    chosen = set(_choose(dataset.names, share, seed) if before is None else before) & set(dataset.names)
    if not chosen or len(chosen) == len(dataset):
        return Split(dataset, None, ("No song is held out: those that the run held out before are gone.",))
    rest = [index for index, name in enumerate(dataset.names) if name not in chosen]
    held = [index for index, name in enumerate(dataset.names) if name in chosen]
    names = ", ".join(dataset.names[index] for index in held[:5]) + (", ..." if len(held) > 5 else "")
    said = f"Held out of training to measure what carries over: {len(held)} of {len(dataset)} songs ({names})."
    return Split(_part(dataset, rest), _part(dataset, held), (said,))


def _split_passages(dataset: SongDataset, passages: Mapping[int, tuple[int, int]]) -> Split:
    """Hold a passage of each song out of training."""
    if not passages:
        return Split(
            dataset,
            None,
            (
                f"Nothing is held out: fewer than {FEWEST_SONGS} songs are too few to keep whole ones apart, and none "
                f"of them has the {3 * LEAST / FRAMES_PER_SECOND:.0f} seconds that it takes to keep a passage apart.",
            ),
        )
    training, held_out = cut(dataset, passages)
    places = [
        f"{start / FRAMES_PER_SECOND:.0f} to {stop / FRAMES_PER_SECOND:.0f} s of {dataset.names[index]}"
        for index, (start, stop) in passages.items()
    ]
    said = (
        f"Held out of training to measure what carries over: {', '.join(places)}. Fewer than {FEWEST_SONGS} songs are "
        "too few to keep whole ones apart; what comes before and after a passage trains as two pieces. A passage "
        "resembles the rest of its song, so expect a smaller gap than between songs."
    )
    return Split(training, held_out, (said,))


def _choose(names: Sequence[str], share: float, seed: int) -> list[str]:
    count = min(max(round(share * len(names)), 1), MOST_HELD_OUT)
    return by_lot(names, seed)[:count]


def by_lot(names: Sequence[str], seed: int) -> list[str]:
    """Return names in an order that depends on the seed and on each name, so that one more song moves no other."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest())


def _part(dataset: SongDataset, indices: Sequence[int]) -> SongDataset:
    files = [dataset.files[index] for index in indices]
    return SongDataset(
        files,
        dataset.demands,
        custom_tag=dataset.custom_tag,
        tag_position=dataset.tag_position,
        notices=dataset.notices,
    )
