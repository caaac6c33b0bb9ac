"""What the wizard remembers between sessions, in the user's settings file, and what it suggests from that."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from woodshed.settings.files import read_user_settings, save_user_settings
from woodshed.wizard.draft import Draft

AUDIO = frozenset({".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a"})
MOST_FOLDERS = 400  # looked into below the working folder, so that a home folder does not stall the wizard
DEEPEST = 3


def last_dataset() -> Path | None:
    """Return the dataset that was made or used last, if it is still there."""
    known = read_user_settings().get("last", {}).get("dataset_dir")
    return Path(known) if known and holds_tensors(Path(known)) else None


def remember_dataset(folder: Path) -> None:
    """Remember a dataset for the next session."""
    save_user_settings({"last": {"dataset_dir": str(folder.absolute())}})


def last_adapter() -> Path | None:
    """Return the adapter that was trained last, if it is still there."""
    known = read_user_settings().get("last", {}).get("adapter")
    return Path(known) if known and Path(known).exists() else None


def remember_adapter(path: Path) -> None:
    """Remember an adapter for the next session."""
    save_user_settings({"last": {"adapter": str(path.absolute())}})


def known_base(model: str) -> str | None:
    """Return what the user said a fine-tune descends from."""
    base = read_user_settings().get("bases", {}).get(model)
    return base if base in ("base", "sft", "turbo") else None


def remember_base(model: str, base: str) -> None:
    """Remember what a fine-tune descends from."""
    save_user_settings({"bases": {model: base}})


def holds_tensors(folder: Path) -> bool:
    """Tell whether a folder looks like a dataset."""
    try:
        return any(path.name != "silence_latent.pt" for path in folder.glob("*.pt"))
    except OSError:
        return False


def holds_songs(folder: Path) -> bool:
    """Tell whether a folder holds audio."""
    try:
        return any(path.suffix.lower() in AUDIO for path in folder.iterdir())
    except OSError:
        return False


def folders_below(root: Path) -> Iterator[Path]:
    """Return folders below a root, nearest first, as many as can be looked into in a moment."""
    level, seen = [root], 0
    for _ in range(DEEPEST):
        following: list[Path] = []
        for folder in level:
            try:
                inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
            except OSError:
                continue
            for path in inner:
                seen += 1
                if seen > MOST_FOLDERS:
                    return
                yield path
            following += inner
        level = following


def suggest(name: str, draft: Draft, job: str) -> str | None:
    """Return what a setting could be that has no default: for required ones what Enter takes.

    Nothing is created by suggesting it.
    """
    match name:
        case "dataset_dir":
            folder = last_dataset() or next(filter(holds_tensors, folders_below(Path())), None)
            return _near(folder) if folder else None
        case "audio_dir":
            folder = next(filter(holds_songs, folders_below(Path())), None)
            return str(folder) if folder else None
        case "path" | "adapter":
            adapter = last_adapter()
            return _near(adapter) if adapter else None
        case "tensor_output":
            return str(Path("tensors"))
        case "output_dir":
            return _free(Path("output"), _short_name(draft), "")
        case "output":
            if job == "generate":
                return _free(Path("output"), "song", ".wav")
            return _free(Path("output"), job, ".json" if job == "estimate" else "")
        case "duration":
            return "60"
    return None


def _short_name(draft: Draft) -> str:
    """Return what to call a run: the model and the kind of adapter."""
    values = dict(draft.look().settings)
    model = Path(str(values["model"])).name.removeprefix("acestep-v15-") if not draft.is_missing("model") else "run"
    adapter = values.get("adapter_type")
    return f"{model}-{adapter}" if adapter else model


def _free(parent: Path, stem: str, suffix: str) -> str:
    """Return the first name with a number that is not taken."""
    return str(next(path for n in count(1) if not (path := parent / f"{stem}-{n}{suffix}").exists()))


def _near(folder: Path) -> str:
    """Return a folder relative to the working folder when it lies below it."""
    try:
        return str(folder.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
