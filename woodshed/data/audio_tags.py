"""What an audio file says about itself: the tags that players and shops write into it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from woodshed.data.audio import open_audio
from woodshed.data.fields import facts_of
from woodshed.errors import DataError

TAG_NAMES = {
    "title": ("title", "tit2"),
    "genre": ("genre", "tcon"),
    "bpm": ("bpm", "tbpm", "tmpo", "tempo"),
    "keyscale": ("initialkey", "initial_key", "initial key", "tkey", "key"),
    "lyrics": ("lyrics", "unsyncedlyrics", "unsynced lyrics", "uslt"),
}
"""How different formats call the same thing, in small letters."""
KEY = re.compile(r"([A-G])\s*([#b\u266f\u266d]?)\s*(m|min|minor|maj|major)?", re.IGNORECASE)


def read_tags(path: Path) -> dict[str, Any]:
    """Return title, genre, bpm, keyscale and lyrics as far as a file has them.

    Nobody wrote them for this purpose, so what makes no sense is left out, and a file that cannot be opened has none:
    decoding will say what is wrong with it.
    """
    try:
        with open_audio(path) as container:
            written = {**container.metadata, **container.streams.audio[0].metadata}
    except DataError:
        return {}
    tags = {name.lower(): value for name, value in written.items()}
    fields = {field: _first(tags, names) for field, names in TAG_NAMES.items()}
    fields["keyscale"] = _key(fields["keyscale"])
    facts: dict[str, Any] = {}
    for name in ("genre", "bpm", "keyscale", "lyrics"):
        facts |= facts_of({name: fields[name]}, [])
    if facts.get("bpm") == "0":
        del facts["bpm"]
    title = " ".join(fields["title"].split())
    return facts | ({"title": title} if title else {})


def _first(tags: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Return the first tag of several names; lyrics may carry their language behind theirs, as in lyrics-eng."""
    for name in names:
        for tag, value in tags.items():
            if (tag == name or (name == "lyrics" and tag.startswith("lyrics-"))) and value.strip():
                return value.strip()
    return ""


def _key(written: str) -> str:
    """Return a key as the model knows it: Am is A minor; codes such as 8A are no key."""
    match = KEY.fullmatch(written.strip())
    if match is None:
        return ""
    letter, sign, mode = match.groups()
    is_minor = (mode or "")[:3].lower() in ("m", "min")
    sign = sign.replace("\u266f", "#").replace("\u266d", "b").lower()
    return f"{letter.upper()}{sign} {'minor' if is_minor else 'major'}"
