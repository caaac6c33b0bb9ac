"""How much faster do several GPUs train than one, and do they train the same?

    python benchmarks/several_gpus.py --folder DIR --seconds 60,240
    torchrun --nproc-per-node 2 benchmarks/several_gpus.py --folder DIR --seconds 60

Several processes measure one length per command: they meet only once. Real-size 2B with random weights and random
songs; `--model toy` on any machine, processors included. Everything after
`--` goes to `woodshed train`. One line of JSON per length, from the first process: the median of the optimizer steps
after the fifth, and the losses of all, to be compared between both commands.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from real_size import build, settings_of

STEPS = 25


def measure(folder: Path, seconds: int, flags: list[str]) -> dict[str, object]:
    """Train a few steps, with every process that a launcher started."""
    from woodshed.training.events import StepDone
    from woodshed.training.loop import train

    output = folder / f"run-{os.environ.get('TORCHELASTIC_RUN_ID', '')}-{seconds}-{int(time.time()) // 600}"
    settings = settings_of(folder, "2b", seconds, flags, output_dir=output, gradient_accumulation=4)
    losses: list[float] = []
    times: list[float] = []
    for event in train(settings, should_stop=lambda: len(losses) >= STEPS):
        if isinstance(event, StepDone):
            losses.append(event.loss)
            times.append(event.seconds)
    milliseconds = 1000 * statistics.median(times[5:])
    return {
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "seconds": seconds,
        "ms_per_step": round(milliseconds, 2),
        "songs_per_second": round(1000 * settings.batch_size * settings.gradient_accumulation / milliseconds, 2),
        "losses": losses,
    }


def main() -> None:
    """Print a line per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=["toy", "2b"], default="2b")
    parser.add_argument("--seconds", default="60")
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    leads = os.environ.get("RANK", "0") == "0"
    lengths = [int(word) for word in arguments.seconds.split(",")]
    if len(lengths) > 1 and "RANK" in os.environ:
        parser.error("several processes measure one length per command")
    for seconds in lengths:
        if leads:
            build(arguments.folder, arguments.model, seconds)
        else:  # another process makes the songs
            while not (arguments.folder / f"songs-{seconds}" / "d.pt").is_file():
                time.sleep(0.5)
            time.sleep(1)
        found = measure(arguments.folder, seconds, arguments.flags)
        if leads:
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
