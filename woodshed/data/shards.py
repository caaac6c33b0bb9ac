"""A part of the songs for each of several processes or machines, dealt so that all of them agree without talking."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from woodshed.data.songs import Song, safe_stem
from woodshed.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counting from 1; the only part is the whole."""

    number: int = 1
    count: int = 1
    origin: str = ""  # where this was read, when the user did not say it

    @property
    def is_whole(self) -> bool:
        """Whether all songs are in it."""
        return self.count == 1

    @property
    def suffix(self) -> str:
        """What the names of files and folders get that each shard has for itself; nothing for the whole."""
        return "" if self.is_whole else f"-{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def choose_shard(written: str, environment: Mapping[str, str]) -> Shard:
    """Return the part that this process does.

    Args:
        written: I/N as the settings accept it; empty when the user did not say.
        environment: RANK (from 0) and WORLD_SIZE, as torchrun and most clusters set them, then decide.

    Raises:
        UserError: when those two name no part.
    """
    if written:
        number, count = written.split("/")
        return Shard(int(number), int(count))
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not rank or not size:
        return Shard()
    if not (re.fullmatch("[0-9]+", rank) and re.fullmatch("[0-9]+", size) and int(rank) < int(size)):
        raise UserError(
            f"The environment says RANK={rank} of WORLD_SIZE={size}, which is no part of the songs. Give the part with "
            "--shard I/N; --shard 1/1 takes all songs."
        )
    return Shard(int(rank) + 1, int(size), "RANK and WORLD_SIZE")


def deal(songs: Sequence[Song], shard: Shard) -> list[int]:
    """Return the places in the list of the songs of a shard.

    Songs of one name and size stay together, because copies of a file are numbered in the order of the list: apart,
    each shard would number its own from one.
    """
    groups: dict[tuple[str, int], int] = {}
    numbers = [groups.setdefault(_name_and_size(song.path), len(groups)) for song in songs]
    return [place for place, number in enumerate(numbers) if number % shard.count == shard.number - 1]


def songs_digest(songs: Sequence[Song]) -> str:
    """Return a digest of the list that is dealt: names and sizes in their order, wherever the folders lie."""
    lines = "\n".join(f"{name} {size}" for name, size in (_name_and_size(song.path) for song in songs))
    return hashlib.sha256(lines.encode()).hexdigest()


def _name_and_size(path: Path) -> tuple[str, int]:
    try:
        size = path.stat().st_size
    except OSError:  # reading it will say what is wrong with it
        size = -1
    return safe_stem(path.stem).casefold(), size
