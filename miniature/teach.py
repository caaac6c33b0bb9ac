"""`python -m miniature.teach`: teach the miniature its lesson in several ways, and count what it plays afterwards."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from woodshed.data.encode import preprocess
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings, TrainSettings
from woodshed.toy.lesson import MODEL, distance_to_new, examine, lesson_pieces, lesson_settings, prompts, write_lesson
from woodshed.toy.listener import Listener, Playing
from woodshed.training.events import Validated
from woodshed.training.loop import train

WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lokr": {"adapter_type": "lokr", "lokr_factor": 8, "learning_rate": 0.01},
    "lora, shuffled captions": {},
}
STEPS, GUIDANCE = 20, 2.0


def main() -> None:
    """Read the command line, teach and count."""
    parser = argparse.ArgumentParser(prog="python -m miniature.teach", description="Teach the miniature its lesson.")
    parser.add_argument("root", type=Path, help="the checkpoints")
    parser.add_argument("folder", type=Path, help="where to work; figures.json goes there")
    parser.add_argument("--new", type=int, default=20, help="prompts for the new instrument")
    parser.add_argument("--old", type=int, default=35, help="prompts for the old instruments")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help="which ways")
    parser.add_argument("--set", nargs="*", default=[], help="name=value: settings of training to try")
    arguments = parser.parse_args()
    more = {name: json.loads(value) for name, value in (word.split("=") for word in arguments.set)}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    listener, asked = Listener(arguments.root, torch.device("cpu")), prompts(arguments.new, arguments.old)
    figures: dict[str, Any] = {}

    def hear(name: str, playing: Playing) -> None:
        recital = examine(listener, MODEL, asked, playing)
        shares = {"new": recital.share_new, "old": recital.share_old, "old heard as new": recital.share_taken}
        figures.setdefault(name, {}).update({**shares, "distance to new": distance_to_new(recital.new)})
        print(json.dumps({name: figures[name]}), flush=True)  # noqa: T201 - a script
        (arguments.folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    hear("base", Playing(STEPS, GUIDANCE))
    for name in arguments.ways:
        place = arguments.folder / name.replace(", ", "-").replace(" ", "-")
        figures[name] = teach(arguments.root, place, WAYS[name] | more, is_shuffled="shuffled" in name)
        hear(name, Playing(STEPS, GUIDANCE, place / "out" / "final"))


def teach(root: Path, place: Path, settings: dict[str, Any], *, is_shuffled: bool) -> dict[str, float]:
    """Preprocess and train; return the held-out loss, and how far below base's it lies with its error."""
    captions = None
    if is_shuffled:  # each song gets the caption of another
        captions = [piece.caption for piece in lesson_pieces()]
        captions = captions[8:] + captions[:8]
    dataset = write_lesson(place / "songs", captions=captions)
    words = {"checkpoint_dir": root, "model": MODEL, "dataset_json": dataset, "audio_dir": dataset.parent}
    words |= {"tensor_output": place / "tensors", "device": "cpu"}
    for _ in preprocess(resolve(PreprocessSettings, [Layer("lesson", words)]).settings):
        pass
    values = lesson_settings(root, place / "tensors", place / "out") | settings
    found = {}
    for event in train(resolve(TrainSettings, [Layer("lesson", values)]).settings):
        if isinstance(event, Validated):
            found = {"held-out loss": event.loss, "change": event.change, "error": event.error}
    return found


if __name__ == "__main__":
    main()
