"""A long run in small: many steps with samples, validation and saving, watched for what grows; see `test_endurance.py`.

usage: enduring.py CHECKPOINTS FOLDER STEPS

Memory and handles are looked at twenty times on the way. Needs Linux, whose /proc tells them.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from killing_training import write_song

from woodshed.console import Terminal
from woodshed.monitor.views import watch
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Event, StepDone
from woodshed.training.loop import train

SONGS, LOOKS, KEEP = 5, 20, 2


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def look(output: Path, step: int) -> dict[str, float]:
    return {
        "step": step,
        "memory": round(resident_mib(), 1),
        "handles": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "checkpoints": len(list(output.glob("checkpoint-*/"))),
        "files": sum(path.is_file() for path in output.rglob("*")),
        "journal": (output / "events.jsonl").stat().st_size,
    }


def main() -> None:
    checkpoints, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    for number in range(SONGS):
        write_song(folder / "tensors", number, frames=20 + 6 * number)
    epochs = steps // (SONGS - 1)  # one song is held out
    often = {"save_every": epochs // 50, "validate_every_n_epochs": epochs // 50, "sample_every_n_epochs": epochs // 10}
    values = {
        **{"checkpoint_dir": checkpoints, "model": "acestep-v15-base", "dataset_dir": folder / "tensors"},
        **{"output_dir": folder / "out", "device": "cpu", "rank": 4, "epochs": epochs, "gradient_accumulation": 1},
        **{"num_workers": 0, "keep_last": KEEP, "keep_best": True, "validation_share": 0.2, "log_every": 10},
        **{"sample_count": 1, "sample_seconds": 0.5, "num_inference_steps": 2, "gradient_checkpointing": False},
        **often,
    }
    settings = resolve(TrainSettings, [Layer("test", values)]).settings
    started_at, looks = time.monotonic(), []

    def watched() -> Iterator[Event]:
        for event in train(settings):
            yield event
            if isinstance(event, StepDone) and event.step % (steps // LOOKS) == 0:
                looks.append(look(settings.output_dir, event.step))

    terminal = Terminal(plain=True)
    terminal.hush()
    finished = watch(watched(), settings, terminal)
    leftovers = [path.name for path in settings.output_dir.glob(".*")]
    seconds = round(time.monotonic() - started_at, 1)
    sys.stdout.write(json.dumps({"steps": finished.steps, "seconds": seconds, "leftovers": leftovers, "looks": looks}))


if __name__ == "__main__":
    main()
