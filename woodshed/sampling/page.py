"""A page to listen to samples side by side: one file beside the sounds, which asks nothing of any server."""

import html
import itertools
import json
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from woodshed.storage import write_text

BASE = "base"
PAGE = "index.html"
TITLE = "Samples while training"
_EPOCH = re.compile(r"epoch-(\d+)")


def version_folder(epoch: int) -> str:
    """Return the name of the folder that holds an epoch's samples; epoch 0 is the base model."""
    return f"epoch-{epoch}" if epoch else BASE


def versions(folder: Path, last_epoch: int) -> dict[str, str]:
    """Return what can be heard as folder -> label: the base model first, then the epochs up to one in their order."""
    found = [int(match[1]) for path in folder.glob("epoch-*") if (match := _EPOCH.fullmatch(path.name))]
    epochs = sorted(epoch for epoch in found if epoch <= last_epoch)
    return {BASE: "base model"} | {version_folder(epoch): f"epoch {epoch}" for epoch in epochs}


def set_aside_later(folder: Path, epoch: int) -> list[Path]:
    """Rename the folders of later epochs, so that no page shows them; return their new names."""
    renamed = []
    for path in sorted(folder.glob("epoch-*")):
        match = _EPOCH.fullmatch(path.name)
        if match and int(match[1]) > epoch:
            names = (path.with_name(f"{path.name}-superseded-{number}") for number in itertools.count(1))
            renamed.append(path.rename(next(name for name in names if not name.exists())))
    return renamed


def write_page(
    folder: Path, titles: Mapping[str, str], last_epoch: int, *, about: str, belongs: Callable[[Path], bool]
) -> None:
    """Write the page for the samples that are there.

    Args:
        folder: with a folder for each version.
        titles: what each file is, by its name, which is the same in every version.
        last_epoch: later ones are from before the run went back to a checkpoint, and are left out.
        about: what made the samples, for the head of the page.
        belongs: tells whether a file can be compared with the others.
    """
    rows: list[dict[str, object]] = [
        {
            "title": title,
            "sounds": [
                {"label": label, "source": quote(f"{version}/{name}")}
                for version, label in versions(folder, last_epoch).items()
                if belongs(folder / version / name)
            ],
        }
        for name, title in titles.items()
    ]
    write_text(folder / PAGE, _page([row for row in rows if row["sounds"]], about))


def _page(rows: list[dict[str, object]], about: str) -> str:
    template = files("woodshed.sampling").joinpath("page.html").read_text(encoding="utf-8")
    # "<" cannot end the script, nor begin anything else in it.
    data = json.dumps(rows, ensure_ascii=False).replace("<", "\\u003c")
    filled = {"TITLE": html.escape(TITLE), "ABOUT": html.escape(about), "DATA": data}
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: filled[match[1]], template)  # never in what was filled in
