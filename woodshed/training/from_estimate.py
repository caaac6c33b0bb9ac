"""What the user should know of the estimate that a run takes its modules from."""

from collections.abc import Collection
from pathlib import Path

from woodshed.adapters.ranking import read_ranking
from woodshed.data.identity import dataset_digest

STABLE = 0.8
"""Rank correlation of an estimate's two halves above which its ranking is not chance."""


def estimate_notices(path: Path, *, model: str, files: Collection[Path]) -> list[str]:
    """Say where an estimate is not one of this model and these songs, or is mostly chance.

    Args:
        path: of the estimate.
        model: that is trained; one with another condition encoder is refused elsewhere.
        files: of all songs, those that are held out too.

    Raises:
        AdapterError: when there is no such estimate.
    """
    ranking = read_ranking(path)
    said = []
    if ranking.model != model:
        said.append(
            f"The estimate {path} was made with {ranking.model}, and this run trains {model}: it may respond in other "
            "places."
        )
    if ranking.dataset_digest != dataset_digest(files):
        count = f"{ranking.songs} songs" if ranking.songs > 1 else "one song"
        said.append(
            f"The estimate {path} was made from another dataset ({ranking.dataset}, {count}), or this one has changed "
            "since: other songs pull in other places. Make it again with woodshed estimate."
        )
    if ranking.half_correlation is None or ranking.half_correlation < STABLE:
        how = "not at all" if ranking.half_correlation is None else f"by {ranking.half_correlation:.2f} only"
        said.append(
            f"The two halves of the estimate {path} rank alike {how} (1 = the same, 0 = chance), so that its choice is "
            f"partly chance; woodshed estimate --estimate-batches {4 * ranking.batches} tells more."
        )
    return said
