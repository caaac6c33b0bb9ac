"""The exact text that the model reads about a song: as its own inference writes it, or as older trainers did.

Source: ACE-Step 1.5 inference: the prompt template, the lyric header, and the limits of 256 and 2,048 tokens. Older
trainers, ACE-Step's own among them: the same prompt, the lyrics without header, and 512 tokens of them.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from woodshed.data.songs import PromptSource, Song, SongList, TagPosition
from woodshed.models.encoders import MAX_LYRIC_TOKENS, MAX_PROMPT_TOKENS
from woodshed.settings.schema import Conditioning, SourceSettings

INSTRUCTION = "Fill the audio semantic mask based on the given conditions:"
INSTRUMENTAL = "[Instrumental]"
END_OF_TEXT = "<|endoftext|>"
LIMITS = {"inference": (MAX_PROMPT_TOKENS, MAX_LYRIC_TOKENS), "legacy": (MAX_PROMPT_TOKENS, 512)}
"""Tokens of prompt and lyrics that are read."""


def prompt_text(caption: str, *, bpm: str, timesignature: str, keyscale: str, seconds: float) -> str:
    """Return the prompt: instruction, caption, and four lines of metadata.

    Args:
        caption: with the trigger tag already in it.
        bpm, timesignature, keyscale: as written by the user; empty becomes N/A.
        seconds: the true duration; the model reads whole seconds.
    """
    metas = (
        f"- bpm: {bpm or 'N/A'}\n"
        f"- timesignature: {timesignature or 'N/A'}\n"
        f"- keyscale: {keyscale or 'N/A'}\n"
        f"- duration: {math.floor(seconds)} seconds\n"
    )
    return f"# Instruction\n{INSTRUCTION}\n\n# Caption\n{caption}\n\n# Metas\n{metas}{END_OF_TEXT}\n"


def lyric_text(lyrics: str, language: str, conditioning: Conditioning = "inference") -> str:
    """Return the lyrics with their header; without lyrics the song is instrumental.

    Args:
        lyrics: may have several lines and section marks.
        language: a code such as en or ja, or "unknown".
        conditioning: older trainers wrote no header.
    """
    if conditioning == "legacy":
        return lyrics or INSTRUMENTAL
    return f"# Languages\n{language}\n\n# Lyric\n{lyrics or INSTRUMENTAL}{END_OF_TEXT}"


def tagged(caption: str, tag: str, position: TagPosition) -> str:
    """Put the trigger tag before the caption, after it, or in its place."""
    if not tag:
        return caption
    if position == "replace" or not caption:
        return tag
    return f"{tag}, {caption}" if position == "prepend" else f"{caption}, {tag}"


def prompt_sources(songs: Sequence[Song], genre_ratio: int, seed: int) -> list[PromptSource]:
    """Decide for each song whether its caption or its genre is the prompt.

    A song's own override wins, and what is not known cannot be the prompt. Songs are ranked by a digest of seed and
    file name, so that one more song does not change the choice for all the others.

    Args:
        songs: in any order.
        genre_ratio: percent of the songs that use their genre.
        seed: decides which.
    """
    ranked = sorted(range(len(songs)), key=lambda index: _rank(seed, songs[index]))
    chosen = set(ranked[: round(len(songs) * genre_ratio / 100)])
    return [_source(song, index in chosen) for index, song in enumerate(songs)]


def _rank(seed: int, song: Song) -> bytes:
    return hashlib.sha256(f"{seed} {song.path.name}".encode(errors="surrogateescape")).digest()


def _source(song: Song, is_chosen: bool) -> PromptSource:
    wanted = song.prompt_override or ("genre" if is_chosen else "caption")
    if wanted == "genre":
        return "genre" if song.genre else "caption"
    return "caption" if song.caption else "genre"


def song_texts(
    song: Song,
    source: PromptSource,
    *,
    tag: str,
    position: TagPosition,
    language: str,
    seconds: float,
    conditioning: Conditioning,
) -> tuple[str, str]:
    """Return prompt and lyric text of a song.

    Args:
        song: what is known about it.
        source: whether caption or genre is the prompt.
        tag: the dataset's trigger tag; the song's own wins.
        position: where it goes.
        language: of the lyrics where the song does not say.
        seconds: true length of what is encoded.
        conditioning: whose lyric text it is.
    """
    caption = song.genre if source == "genre" else song.caption
    prompt = prompt_text(
        tagged(caption, song.custom_tag or tag, position),
        bpm=song.bpm,
        timesignature=song.timesignature,
        keyscale=song.keyscale,
        seconds=seconds,
    )
    lyrics = "" if song.is_instrumental else song.lyrics
    return prompt, lyric_text(lyrics, song.language or language, conditioning)


@dataclass(frozen=True)
class Wording:
    """How the songs of a dataset are put into words: the user's choices, else the dataset's, else the defaults."""

    settings: SourceSettings
    songs: SongList

    @property
    def custom_tag(self) -> str:
        """The trigger tag."""
        return self.settings.custom_tag if self._is_chosen("custom_tag") else self.songs.custom_tag

    @property
    def tag_position(self) -> TagPosition:
        """Where the tag goes."""
        theirs = None if self._is_chosen("tag_position") else self.songs.tag_position
        return theirs or self.settings.tag_position

    @property
    def genre_ratio(self) -> int:
        """Percent of genre prompts."""
        theirs = None if self._is_chosen("genre_ratio") else self.songs.genre_ratio
        return self.settings.genre_ratio if theirs is None else theirs

    def sources(self) -> list[PromptSource]:
        """Return for each song whether its caption or its genre is the prompt."""
        return prompt_sources(self.songs.songs, self.genre_ratio, self.settings.seed)

    def texts(self, song: Song, source: PromptSource, seconds: float) -> tuple[str, str]:
        """Return prompt and lyric text of a song of which so many seconds are encoded."""
        return song_texts(
            song,
            source,
            tag=self.custom_tag,
            position=self.tag_position,
            language=self.settings.language,
            seconds=seconds,
            conditioning=self.settings.conditioning,
        )

    @property
    def limits(self) -> tuple[int, int]:
        """How many tokens of prompt and lyrics are read."""
        return LIMITS[self.settings.conditioning]

    def _is_chosen(self, name: str) -> bool:
        """Tell whether the user set this, be it to the default."""
        return name in self.settings.model_fields_set
