"""How long is a micro-step, how much memory does it take, and what does each technique bring?

    python benchmarks/step.py --folder DIR                        # toy size, on any machine
    python benchmarks/step.py --folder DIR --model 2b --seconds 60,240,600

All rows are measured in one process: first the library's modules as they are, then with one technique after the other;
what a machine cannot do is skipped. A micro-step is forward and backward pass of one song; the time is the median over
repetitions between two waits for the device, so that waiting for the processor counts. The norm is that of the
adapter's gradient, by which rows can be compared.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from real_size import build

from woodshed.errors import UserError

BASE = {"compile": "no", "cuda_graphs": "no", "attention": "blocks"}
ROWS: dict[str, dict[str, object]] = {
    "eager, blocks": BASE,
    "eager, flash": BASE | {"attention": "flash"},
    "graph, flash": BASE | {"attention": "flash", "cuda_graphs": "yes"},
    "compile, flash": BASE | {"attention": "flash", "compile": "yes"},
    "compile + graph, flash": BASE | {"attention": "flash", "compile": "yes", "cuda_graphs": "yes"},
    "compile + graph, compiled": {"attention": "compiled", "compile": "yes", "cuda_graphs": "yes"},
    "the same, half recomputed": {
        "attention": "compiled",
        "compile": "yes",
        "cuda_graphs": "yes",
        "recompute": "half",
    },
    "the same, all recomputed": {"attention": "compiled", "compile": "yes", "cuda_graphs": "yes", "recompute": "all"},
    "eager, blocks, all recomputed": BASE | {"recompute": "all"},
    "compile, blocks": BASE | {"compile": "yes"},
    "compile, blocks, all recomputed": BASE | {"compile": "yes", "recompute": "all"},
}


def measure(step: Callable[[], object], *, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a step, and the peak GiB of the device."""
    times = []
    for _ in range(3):
        step()
    _wait()
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        _wait()
        times.append(1000 * (time.perf_counter() - began))
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {"ms": round(statistics.median(times), 2), "peak_gib": round(peak, 2)}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load(folder: Path, model: str, seconds: int, changes: dict[str, object], flags: list[str]) -> object:
    """Return a run with some techniques."""
    from woodshed.cli import COMMANDS, build_parser
    from woodshed.settings.flags import flag_layer
    from woodshed.settings.resolve import Layer, resolve
    from woodshed.settings.schema import TrainSettings
    from woodshed.training.preflight import check
    from woodshed.training.run import load_run

    values = {
        "checkpoint_dir": folder / "checkpoints",
        "model": "xl-base" if model == "xl" else "base",
        "dataset_dir": folder / f"songs-{seconds}",
        "output_dir": folder / f"run-{time.time_ns()}",
        "gradient_accumulation": 1,
        "recompute": "none",
    } | changes
    typed = flag_layer(build_parser(COMMANDS["train"], show_all=True).parse_args(flags), TrainSettings)
    return load_run(check(resolve(TrainSettings, [Layer("benchmark", values), typed]).settings))


def row(
    folder: Path, model: str, seconds: int, changes: dict[str, object], flags: list[str], repeats: int
) -> dict[str, object]:
    """Measure one configuration."""
    from woodshed.models.devices import repeatable

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run = load(folder, model, seconds, changes, flags)
    began = time.monotonic()
    songs = next(run.prepare(run.loader.epoch(1)))
    songs = replace(songs, parts=tuple(part.to(run.device) for part in songs.parts))  # the songs are there already
    one = torch.ones((), device=run.device)

    def micro_step() -> None:
        run.engine.micro_step(songs, one)

    with repeatable():
        micro_step()
        _wait()
        first = time.monotonic() - began
        found = measure(micro_step, repeats=repeats)
    gradient = torch.cat([parameter.grad.flatten() for parameter in run.parameters]).double()
    return found | {"first_s": round(first, 1), "norm": gradient.norm().item()}


def main() -> None:
    """Print one line of JSON per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=["toy", "2b", "xl"], default="toy")
    parser.add_argument("--seconds", default="60")
    parser.add_argument("--rows", default="")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    for seconds in map(int, arguments.seconds.split(",")):
        build(arguments.folder, arguments.model, seconds)
        for name, changes in ROWS.items():
            if arguments.rows and name not in arguments.rows.split(";"):
                continue
            try:
                found = row(arguments.folder, arguments.model, seconds, changes, arguments.flags, arguments.repeats)
            except UserError as error:
                found = {"skipped": str(error)}
            gc.collect()  # a model that is still there would count for the next row
            torch.cuda.empty_cache()
            sys.stdout.write(json.dumps({"seconds": seconds, "row": name} | found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
