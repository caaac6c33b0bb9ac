"""The dataset doctor: what is wrong or doubtful in a folder of songs, before hours are spent on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from woodshed.data.conditioning import Wording
from woodshed.data.listening import Heard, alike, listen
from woodshed.data.songs import PromptSource, Song
from woodshed.errors import DataError
from woodshed.models.encoders import END_OF_TEXT

Level = Literal["error", "warning", "note"]
QUIET = 0.001  # of full scale, -60 dBFS
CLIPPED = 0.001  # share of the samples
SHORT = 5.0  # seconds
USUAL_RATE = 44_100
SLOWEST, FASTEST = 30, 300  # beats per minute


@dataclass(frozen=True)
class Finding:
    """One thing about one song."""

    level: Level
    song: Path
    text: str


@dataclass(frozen=True)
class Listened:
    """One more song was heard."""

    song: Path
    done: int
    total: int


@dataclass(frozen=True)
class Length:
    """How many tokens a text has, and what the model will not read of it."""

    what: str  # "prompt" or "lyrics"
    tokens: int
    limit: int
    lost: str


def lengths(tokenizer: Tokenizer, prompt: str, lyrics: str, limits: tuple[int, int]) -> tuple[Length, Length]:
    """Return the lengths of a song's two texts, of which so many tokens are read."""
    return _length(tokenizer, "prompt", prompt, limits[0]), _length(tokenizer, "lyrics", lyrics, limits[1])


def _length(tokenizer: Tokenizer, what: str, text: str, limit: int) -> Length:
    """Count tokens; the one that ends a text is kept when it is cut, see `TextEncoder`."""
    encoded = tokenizer.encode(text)
    count = len(encoded.ids)
    lost = text[encoded.offsets[limit - 1][0] :] if count > limit else ""
    return Length(what, count, limit, lost.strip().removesuffix(END_OF_TEXT))


def check_songs(wording: Wording, tokenizer: Tokenizer | None) -> Iterator[Finding | Listened]:
    """Hear and read every song.

    Args:
        wording: the songs and how they are put into words.
        tokenizer: without one, lengths of texts are not checked.
    """
    songs = wording.songs.songs
    for item in wording.songs.unusable:
        yield from (Finding("error", item.where, problem) for problem in item.problems)
    heard: list[Heard] = []
    for number, (song, source) in enumerate(zip(songs, wording.sources(), strict=True), 1):
        seconds = 0.0
        try:
            sound = listen(song.path)
        except DataError as error:
            yield from (Finding("error", song.path, problem) for problem in error.problems)
        except OSError as error:
            yield Finding("error", song.path, f"It cannot be read: {error.strerror}. Mend its permissions.")
        else:
            heard.append(sound)
            seconds = sound.seconds
            yield from _check_sound(sound)
        yield from _check_words(song)
        if tokenizer is not None:
            yield from _check_lengths(wording, song, source, seconds, tokenizer)
        yield Listened(song.path, number, len(songs))
    yield from _check_copies(heard)


def _check_sound(sound: Heard) -> Iterator[Finding]:
    if sound.peak < QUIET:
        yield Finding("error", sound.path, "It is silent: nothing in it is louder than -60 dBFS. Remove it.")
    if sound.clipped > CLIPPED:
        share = f"{100 * sound.clipped:.1f} %"
        yield Finding(
            "warning", sound.path, f"{share} of its samples are clipped, and the adapter will learn that sound."
        )
    if sound.seconds < SHORT:
        yield Finding(
            "warning", sound.path, f"It lasts {sound.seconds:.1f} seconds only, too short for a musical phrase."
        )
    if sound.channels == 1:
        yield Finding("note", sound.path, "It is mono: the same sound is put on both sides.")
    if sound.rate < USUAL_RATE:
        yield Finding(
            "note", sound.path, f"Its sample rate is {sound.rate} Hz, so it has nothing above {sound.rate // 2} Hz."
        )


def _check_words(song: Song) -> Iterator[Finding]:
    if song.origins.get("caption") in ("file name", "audio tags"):
        yield Finding(
            "warning",
            song.path,
            f'It has no caption, so "{song.caption}" from its {song.origins["caption"]} stands in.',
        )
    elif not song.caption:
        yield Finding("warning", song.path, f'It has no caption, so its genre "{song.genre}" is the prompt.')
    if song.is_instrumental and song.lyrics:
        yield Finding("warning", song.path, "It is marked instrumental and has lyrics, which are left out.")
    if song.bpm and not SLOWEST <= float(song.bpm) <= FASTEST:
        yield Finding("warning", song.path, f"{song.bpm} bpm is no likely tempo; music has {SLOWEST} to {FASTEST}.")


def _check_lengths(
    wording: Wording, song: Song, source: PromptSource, seconds: float, tokenizer: Tokenizer
) -> Iterator[Finding]:
    for length in lengths(tokenizer, *wording.texts(song, source, seconds), wording.limits):
        if length.lost:
            said = f"Its {length.what} has {length.tokens} tokens; the model reads {length.limit}. "
            yield Finding("warning", song.path, f'{said}Cut from "{" ".join(length.lost.split())[:40]}" on.')


def _check_copies(heard: Sequence[Heard]) -> Iterator[Finding]:
    first: dict[str, Heard] = {}
    for sound in heard:
        original = first.setdefault(sound.digest, sound)
        if original is not sound:
            yield Finding(
                "warning", sound.path, f"It is the same file as {original.path}, and counts twice in training."
            )
    unique = list(first.values())
    for one, other in alike(unique):
        yield Finding("warning", other.path, f"It sounds like {one.path}: perhaps the same song, counted twice.")


def counts(findings: Sequence[Finding]) -> Mapping[Level, int]:
    """Return how many findings there are of each level."""
    levels: tuple[Level, ...] = ("error", "warning", "note")
    return {level: sum(finding.level == level for finding in findings) for level in levels}
