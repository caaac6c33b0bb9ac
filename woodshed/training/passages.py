"""A passage from the middle of every song, for datasets that are too small to keep whole songs from training.

The song is cut in three: what comes before and after the passage trains as two pieces, the passage never does. It is
taken from the middle, so that training meets how songs begin and how they end. All three have the words of the song.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from woodshed.data.dataset import Sample, SongDataset, read_sample
from woodshed.sampling.plan import SMALLEST_FRAMES

LEAST = SMALLEST_FRAMES
"""Frames of the shortest passage and of the shortest piece beside it: the shortest song that the model makes."""
_NAME = re.compile(r"(.*) \[(\d+):(\d+)\]", re.DOTALL)


@dataclass(frozen=True)
class Passage:
    """A part of a song."""

    song: int  # in the dataset
    start: int  # frame
    stop: int | None  # None for the end of the song
    name: str


class PassageDataset(SongDataset):
    """Parts of songs as if they were songs."""

    def __init__(self, songs: SongDataset, passages: Collection[Passage]) -> None:
        files = [songs.files[passage.song] for passage in passages]
        super().__init__(files, songs.demands, custom_tag=songs.custom_tag, notices=songs.notices)
        self.names = tuple(passage.name for passage in passages)
        self._bounds = tuple((passage.start, passage.stop) for passage in passages)

    def __getitem__(self, index: int) -> Sample:
        """Read one part.

        Raises:
            DataError: when the file cannot be used, saying why.
        """
        song, (start, stop) = read_sample(self.files[index], self.demands), self._bounds[index]
        latents, context = (tensor[start:stop].clone() for tensor in (song.latents, song.context))
        return replace(song, name=self.names[index], latents=latents, context=context)


def choose_passages(songs: SongDataset, share: float, seed: int) -> dict[int, tuple[int, int]]:
    """Return the first and last frame of a passage for every song that is long enough, by the song's number.

    Raises:
        DataError: when a song cannot be read.
    """
    found = {}
    for index, name in enumerate(songs.names):
        bounds = passage_bounds(name, len(read_sample(songs.files[index], songs.demands).latents), share, seed)
        if bounds is not None:
            found[index] = bounds
    return found


def passage_bounds(name: str, frames: int, share: float, seed: int) -> tuple[int, int] | None:
    """Return where a song's passage begins and ends, by lot; None where the song is too short for three parts.

    Both are even, because the model reads frames in pairs.
    """
    length = min(max(_even(share * frames), LEAST), _even(frames - 2 * LEAST))
    if length < LEAST:
        return None
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
    lot = int.from_bytes(digest[:4], "big") / 2**32
    start = LEAST + _even(lot * (frames - length - 2 * LEAST))
    return start, start + length


def _even(number: float) -> int:
    return int(number) // 2 * 2


def recall_passages(songs: SongDataset, held_out: Collection[str]) -> dict[int, tuple[int, int]]:
    """Return the passages that a run held out, read from their names; those that their song no longer has are missing.

    Raises:
        DataError: when a song cannot be read.
    """
    found = {}
    numbers = {name: index for index, name in enumerate(songs.names)}
    for name in held_out:
        match = _NAME.fullmatch(name)
        if match is None or name in numbers or match[1] not in numbers:
            continue
        index, start, stop = numbers[match[1]], int(match[2]), int(match[3])
        if stop <= len(read_sample(songs.files[index], songs.demands).latents):
            found[index] = (start, stop)
    return found


def cut(songs: SongDataset, passages: Mapping[int, tuple[int, int]]) -> tuple[PassageDataset, PassageDataset]:
    """Return what trains and what does not.

    The pieces that come first keep the names of their songs, and stand before the others, as do songs without a
    passage.
    """
    before, after, held_out = [], [], []
    for index, name in enumerate(songs.names):
        if index not in passages:
            before.append(Passage(index, 0, None, name))
            continue
        start, stop = passages[index]
        before.append(Passage(index, 0, start, name))
        held_out.append(Passage(index, start, stop, f"{name} [{start}:{stop}]"))
        after.append(Passage(index, stop, None, f"{name} (2)"))
    return PassageDataset(songs, [*before, *after]), PassageDataset(songs, held_out)
