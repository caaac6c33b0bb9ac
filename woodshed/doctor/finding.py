"""One thing that the doctor looked at."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what mends it."""

    topic: str  # "machine", "packages", "checkpoints", "dataset", "run"
    state: State  # a note is worth knowing, a problem stops something
    text: str  # one full sentence: what was found
    remedy: str = ""  # a line to copy, or what to do


def problems(topic: str, sentences: Iterable[str]) -> Iterator[Finding]:
    """Return the sentences of a `UserError`, which say themselves what to do, as findings."""
    return (Finding(topic, "problem", sentence) for sentence in dict.fromkeys(sentences))


def is_ready(findings: Sequence[Finding]) -> bool:
    """Tell whether nothing stands in the way."""
    return all(finding.state != "problem" for finding in findings)
