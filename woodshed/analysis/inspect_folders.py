"""What is in a dataset, a run, an estimate or a song."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from woodshed.adapters.ranking import read_ranking
from woodshed.analysis.report import Report, Table, folder_size
from woodshed.data.crops import FRAMES_PER_SECOND
from woodshed.data.dataset import TEMPORARY
from woodshed.data.manifest import MANIFEST, read_manifest, shard_manifests
from woodshed.data.tensor_files import read_tensors
from woodshed.errors import DataError, UserError
from woodshed.sampling.waveform import read_tags
from woodshed.settings.schema import TrainSettings
from woodshed.training.checkpoint import list_checkpoints

LOOKED_AT = 1000  # songs of a dataset whose files are opened
LISTED = 20  # entries of an estimate; the file holds all


def inspect_dataset(folder: Path) -> Report:
    """Look at a folder of preprocessed songs, without loading their tensors.

    Raises:
        DataError: when its manifest is no manifest, or none of its songs can be read.
    """
    manifest = read_manifest(folder)
    there = {path.name for path in folder.glob("*.pt") if not path.name.startswith(".")}
    there = {name for name in there if not name.endswith(TEMPORARY)}
    names = sorted(there) if manifest.samples is None else list(manifest.samples)
    notices = [f"{name}, which the manifest names, is not there." for name in names if name not in there]
    songs = []
    for name in [name for name in names if name in there][:LOOKED_AT]:
        try:
            songs.append(_song_facts(folder / name))
        except DataError as error:
            notices += error.problems
    if not songs:
        raise DataError(*notices, f"None of the songs in {folder} can be read.")
    seconds = [song["frames"] / FRAMES_PER_SECOND for song in songs]
    facts: dict[str, Any] = {"songs": len(names)}
    if len(names) > LOOKED_AT:
        facts["songs that were opened"] = len(songs)
    facts |= {
        "seconds of music": round(sum(seconds), 2),
        "shortest and longest": [min(seconds), max(seconds)],
        "condition tokens": [min(song["tokens"] for song in songs), max(song["tokens"] for song in songs)],
        "latent channels": _one_or_all(song["channels"] for song in songs),
        "condition width": _one_or_all(song["width"] for song in songs),
        "number format": _one_or_all(song["format"] for song in songs),
        "made for": manifest.model or "not said",
        "conditioning": manifest.conditioning or "not said: made by another tool",
        "trigger tag": manifest.custom_tag or "none",
        **({"tag position": manifest.tag_position} if manifest.custom_tag else {}),
        "manifest": (folder / MANIFEST).is_file(),
    }
    parts = shard_manifests(folder)
    if parts:
        notices.append(
            f"It is in {len(parts)} parts that are not put together yet: run woodshed dataset merge {folder} once all "
            "are there."
        )
    if not manifest.is_complete:
        notices.append("Preprocessing was interrupted: run it again to finish the rest.")
    return Report("dataset", folder, facts, (), tuple(notices))


def _song_facts(path: Path) -> dict[str, Any]:
    content = read_tensors(path, mapped=True)
    try:
        latents, states = content["target_latents"], content["encoder_hidden_states"]
        return {
            "frames": latents.shape[0],
            "channels": latents.shape[1],
            "tokens": int(content["encoder_attention_mask"].bool().sum()),
            "width": states.shape[1],
            "format": str(latents.dtype).removeprefix("torch."),
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path.name} is no preprocessed song ({error!r}).") from error


def _one_or_all(values: Any) -> Any:
    found = sorted(set(values))
    return found[0] if len(found) == 1 else found


def inspect_run(folder: Path) -> Report:
    """Look at a training run's output folder."""
    notices: list[str] = []
    chosen = _run_file(folder / "run.toml", notices)
    checkpoints = list_checkpoints(folder)
    is_finished = (folder / "final").is_dir()
    facts: dict[str, Any] = {
        "model": chosen.get("model", "not said"),
        "dataset": str(chosen.get("dataset_dir", "not said")),
        "finished": is_finished,
        **_last_step(folder / "events.jsonl"),
        "bytes": folder_size(folder),
        "settings that differ from their defaults": {
            name: value for name, value in chosen.items() if name not in _PLACES and value != _default(name)
        },
    }
    folders = [*checkpoints, *([folder / "final"] if is_finished else [])]
    rows = [[path.name, folder_size(path)] for path in folders]
    if not is_finished:
        how = "woodshed train --resume-from latest" if checkpoints else "nothing was saved yet"
        notices.append(f"The run is not finished: {how}.")
    return Report("run", folder, facts, (Table("adapters", ("name", "bytes"), rows),), tuple(notices))


_PLACES = ("checkpoint_dir", "model", "dataset_dir", "output_dir")


def _default(name: str) -> Any:
    field = TrainSettings.model_fields.get(name)
    if field is None:
        return None
    return list(field.default) if isinstance(field.default, tuple) else field.default


def _run_file(path: Path, notices: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        notices.append("There is no run.toml, so it does not say with which settings it was trained.")
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notices.append(f"{path} cannot be read: {error}.")
        return {}


def _last_step(path: Path) -> dict[str, Any]:
    """Return how far the journal of a run comes."""
    last: dict[str, Any] = {}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if '"StepDone"' in line:
                    last = _event(line) or last
    return {f"last {name}": last[name] for name in ("epoch", "step", "loss") if name in last}


def _event(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # a line that a crash cut short
        return {}
    return content if isinstance(content, dict) else {}


def inspect_estimate(path: Path) -> Report:
    """Look at what `woodshed estimate` wrote.

    Raises:
        AdapterError: when the file is no estimate.
    """
    ranking = read_ranking(path)
    facts = {
        "model": ranking.model,
        "dataset": ranking.dataset,
        "songs": ranking.songs,
        "batches": ranking.batches,
        "ranked": f"{len(ranking.entries)} {ranking.granularity}s",
        "recommended": ranking.top_k,
        "rank correlation of two halves": ranking.half_correlation,
        "score": ranking.formula,
    }
    rows = [[entry.name, entry.score, *entry.halves] for entry in ranking.entries[:LISTED]]
    table = Table("ranking", ("name", "score", "first half", "second half"), rows)
    return Report("estimate", path, facts, (table,), ranking.recommendation)


def inspect_song(path: Path) -> Report:
    """Look at a song's tags, and at the recipe among them if Woodshed made it.

    Raises:
        UserError: when it is no sound file.
    """
    tags = read_tags(path)
    try:
        recipe = json.loads(tags.get("comment", ""))
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or "woodshed" not in recipe:
        raise UserError(f"{path} does not say how it was made: Woodshed did not make it.")
    return Report("song", path, recipe)
