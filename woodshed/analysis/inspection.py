"""`inspect`: what a path holds, told by its files and not by its name."""

from pathlib import Path

from woodshed.adapters.adapter import quote_some
from woodshed.analysis.inspect_adapter import Stage, inspect_adapter
from woodshed.analysis.inspect_folders import inspect_dataset, inspect_estimate, inspect_run, inspect_song
from woodshed.analysis.inspect_model import inspect_model, inspect_root
from woodshed.analysis.report import Report
from woodshed.data.manifest import MANIFEST
from woodshed.errors import UserError, collecting
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.config import read_json
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.sampling.waveform import CODECS
from woodshed.settings.schema import InspectSettings
from woodshed.training.checkpoint import holds_a_run

ADAPTER_CONFIG = "adapter_config.json"
KINDS = (
    "an adapter (a folder or a .safetensors file), a model or a folder of models, a dataset, a run, "
    "an estimate (.json) or a song (.wav, .flac)"
)


def inspect_path(path: Path, settings: InspectSettings) -> Report:
    """Look at whatever lies at a path.

    Raises:
        UserError: when there is nothing, or nothing that is known.
    """
    if not path.exists():
        raise UserError(f"There is nothing at {path}. Give {KINDS}.")
    if path.is_file():
        return _inspect_file(path, settings)
    if not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder. Give {KINDS}.")
    if _is_model(path):
        return inspect_model(path)
    if holds_a_run(path):
        return inspect_run(path)
    if (path / "config.json").is_file() and not (path / ADAPTER_CONFIG).is_file():
        raise UserError(f"{path} is a part that several models share. Inspect the folder it lies in: {path.parent}.")
    if (path / ADAPTER_CONFIG).is_file() or _has(path, "*.safetensors"):
        return inspect_adapter(path, find_stage(settings))
    if (path / MANIFEST).is_file() or _has(path, "*.pt"):
        return inspect_dataset(path)
    if any(_is_model(folder) for folder in path.iterdir() if folder.is_dir()):
        return inspect_root(path)
    seen = sorted(entry.name for entry in path.iterdir())
    raise UserError(f"{path} holds nothing that is known, only {quote_some(seen) or 'nothing'}. Give {KINDS}.")


def _inspect_file(path: Path, settings: InspectSettings) -> Report:
    ending = path.suffix.lower()
    if ending in CODECS:
        return inspect_song(path)
    if path.name == "run.toml":
        return inspect_run(path.parent)
    if path.name == MANIFEST:
        return inspect_dataset(path.parent)
    if ending == ".json" and path.name != ADAPTER_CONFIG:
        return inspect_estimate(path)
    return inspect_adapter(path, find_stage(settings))


def _has(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _is_model(folder: Path) -> bool:
    """Tell whether config.json says that this is an ACE-Step model."""
    if not (folder / "config.json").is_file():
        return False
    fields = read_json(folder / "config.json")
    return fields.get("model_type") == "acestep" or "auto_map" in fields


def find_stage(settings: InspectSettings) -> Stage | None:
    """Return the model to try an adapter on; None when none is named.

    Raises:
        UserError: when there is no such model or device.
    """
    if not settings.model:
        return None
    problems: list[str] = []
    stage = None
    with collecting(problems):
        device = resolve_device(settings.device)
        dtype = resolve_precision(settings.precision, device)
        stage = Stage(choose_model(find_checkpoints(settings.checkpoint_dir), settings.model), device, dtype)
    if problems:
        raise UserError(*problems)
    return stage
