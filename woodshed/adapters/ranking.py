"""How strongly each module responds to a dataset: the file that `woodshed estimate` writes and training reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from woodshed.adapters.adapter import quote_some
from woodshed.adapters.targets import Shapes
from woodshed.errors import AdapterError
from woodshed.settings.schema import Granularity
from woodshed.storage import write_text

Score = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Entry(BaseModel):
    """A module, or a layer with all its modules, and how strongly it responds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    modules: Annotated[tuple[str, ...], Field(min_length=1)]  # original names, in the order of the model
    score: Score
    halves: tuple[Score, Score]  # of every other batch, to see how much is chance


class Ranking(BaseModel):
    """What an estimate found, the strongest entry first."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    format: Literal[1] = 1
    woodshed: str
    model: str
    fingerprint: str  # of the model's condition encoder
    dataset: str
    dataset_digest: str
    songs: int
    batches: int
    seed: int
    granularity: Granularity
    formula: str
    half_correlation: float | None  # Spearman's; None when all scores are equal
    top_k: Annotated[int, Field(ge=1)]  # how many entries the estimate recommends
    recommendation: tuple[str, ...]
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_text(path, self.model_dump_json(indent=1))


def read_ranking(path: Path) -> Ranking:
    """Read an estimate.

    Raises:
        AdapterError: when the file is missing or no estimate.
    """
    try:
        return Ranking.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise AdapterError(f"There is no estimate {path}. Make one with woodshed estimate --output {path}.") from None
    except OSError as error:
        raise AdapterError(f"The estimate {path} cannot be read: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise AdapterError(f"{path} is no estimate that can be read: {place}: {reason}. Make it again.") from error


def ranked_targets(
    path: Path, top_k: int | Literal["auto"], *, shapes: Shapes, model: str, fingerprint: str
) -> list[str]:
    """Return the modules that an estimate ranks highest, in the order of the model.

    Args:
        path: of the estimate.
        top_k: how many entries to take; auto takes as many as it recommends.
        shapes: every linear layer of the model.
        model: its name, for messages.
        fingerprint: of its condition encoder.

    Raises:
        AdapterError: when there is no such estimate, it was made for another model, or it ranks fewer entries.
    """
    ranking = read_ranking(path)
    if ranking.fingerprint != fingerprint:
        raise AdapterError(
            f"The estimate {path} was made for {ranking.model}; {model} responds in other places. "
            f"Make one with woodshed estimate --model {model}."
        )
    count = ranking.top_k if top_k == "auto" else top_k
    if count > len(ranking.entries):
        raise AdapterError(
            f"top_k is {count}, but the estimate {path} ranks {len(ranking.entries)} {ranking.granularity}s. "
            f"Use --top-k {len(ranking.entries)} or less."
        )
    chosen = {name for entry in ranking.entries[:count] for name in entry.modules}
    unknown = sorted(chosen - shapes.keys())
    if unknown:
        raise AdapterError(f"The estimate {path} names layers that {model} does not have: {quote_some(unknown)}.")
    return _in_order(chosen, list(shapes))


def _in_order(chosen: set[str], names: Sequence[str]) -> list[str]:
    return [name for name in names if name in chosen]
