"""The table of ranks that differ from the one for all: `cross_attn=32 layers.0.=8:4`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_RULE = re.compile(r"(?P<words>[\w.]+)=(?P<rank>[1-9]\d{0,5})(?::(?P<alpha>\d+(?:\.\d+)?))?", re.ASCII)


@dataclass(frozen=True)
class RankRule:
    """Rank, and perhaps alpha, of the modules that have these words in their names."""

    words: str
    rank: int
    alpha: float | None = None  # None: as strong as the others


def read_rank_pattern(pattern: Iterable[str]) -> list[RankRule]:
    """Parse a table.

    Raises:
        ValueError: naming the entries that make no sense.
    """
    matches = {text: _RULE.fullmatch(text) for text in pattern}
    bad = [text for text, match in matches.items() if match is None or (match["alpha"] and float(match["alpha"]) == 0)]
    if bad:
        raise ValueError(f"NAME=RANK or NAME=RANK:ALPHA, such as cross_attn=32, not {', '.join(bad)}")
    return [
        RankRule(match["words"], int(match["rank"]), float(match["alpha"]) if match["alpha"] else None)
        for match in matches.values()
        if match is not None
    ]
