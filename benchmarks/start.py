"""How long is it from the command to the first step, and what takes the time?

    python benchmarks/start.py --folder DIR                          # toy size, on any machine
    python benchmarks/start.py --folder DIR --model 2b --seconds 60  # real size, random weights

`woodshed train` runs in a process of its own, as often as asked. Each run prints a line: the seconds of every phase,
one after the other, until the first optimizer step is done, and then how many steps a second the run says it takes, how
many the clock says, and which share of the time it waited for songs. The first run has an empty cache of compiled
kernels unless `--warm` is given; the others find what it left. Everything after `--` goes to `woodshed train`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = "WOODSHED_BENCHMARK_BEGAN"


class Clock:
    """The moments at which phases ended."""

    def __init__(self, began: float) -> None:
        self._last = began
        self.phases: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """Count the time since the last phase ended to this one."""
        now = time.time()
        self.phases[phase] = round(self.phases.get(phase, 0.0) + now - self._last, 2)
        self._last = now

    def around(self, call: Callable[..., Any], before: str, phase: str) -> Callable[..., Any]:
        """Return a function that counts what was before it, and itself."""

        def timed(*given: Any, **named: Any) -> Any:
            self.end(before)
            try:
                return call(*given, **named)
            finally:
                self.end(phase)

        return timed


def child(words: list[str], steps: int) -> None:
    """Train in this process until enough steps are done, and print what took how long."""
    clock = Clock(float(os.environ[BEGAN]))
    clock.end("python")
    import torch

    clock.end("import torch")
    from woodshed.cli import COMMANDS, build_parser
    from woodshed.monitor import views  # noqa: F401 - what the command imports before it trains
    from woodshed.settings.flags import flag_layer
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import TrainSettings
    from woodshed.training import courier, loop, preflight, run
    from woodshed.training.engine import Engine
    from woodshed.training.events import Started, StepDone

    clock.end("import the rest")
    layer = flag_layer(build_parser(COMMANDS["train"], show_all=True).parse_args(words), TrainSettings)
    settings = resolve(TrainSettings, [layer]).settings
    if torch.cuda.is_available():
        torch.zeros((), device="cuda")
    clock.end("settings, start of the device")
    places: list[tuple[Any, str, str, str]] = [
        (preflight, "fingerprint", "checks", "checks: fingerprint"),
        (preflight, "open_dataset", "checks", "checks: songs"),
        (loop, "load_run", "checks", "loading: optimizer and the rest"),
        (run, "load_decoder", "loading: optimizer and the rest", "loading: decoder"),
        (run, "attach_adapter", "loading: optimizer and the rest", "loading: adapter"),
        (Engine, "rehearse", "first songs", "rehearsal"),
    ]
    for owner, name, before, phase in places:
        setattr(owner, name, clock.around(getattr(owner, name), before, phase))
    assert courier.prepare
    done: list[StepDone] = []
    first = 0.0
    for event in loop.train(settings, should_stop=lambda: len(done) >= steps):
        if isinstance(event, Started):
            clock.end("folder")
        elif isinstance(event, StepDone):
            if not done:
                clock.end("first step")
                Engine.rehearse = lambda *_: []  # type: ignore[method-assign]
                first = time.time()
                total = first - float(os.environ[BEGAN])
            done.append(event)
            last = time.time()
    found: dict[str, Any] = {"to_first_step": round(total, 1), "phases": clock.phases}
    if len(done) > 1:
        rest = done[1:]
        took = sum(step.seconds for step in rest)
        found |= {
            "steps": len(rest),
            "said_steps_per_s": round(len(rest) / took, 3),
            "clock_steps_per_s": round(len(rest) / (last - first), 3),
            "median_ms": round(1000 * statistics.median(step.seconds for step in rest), 2),
            "waited_percent": round(100 * sum(step.waited for step in rest) / took, 3),
        }
    if torch.cuda.is_available():
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["device"] = torch.cuda.get_device_name()
    sys.stdout.write(json.dumps(found) + "\n")


def build_songs(folder: Path, model: str, seconds: int, count: int, *, mixed: bool) -> Path:
    """Make random songs unless they are there; mixed ones are from half as long to as long as asked."""
    import torch
    from real_size import CONDITION_TOKENS, random_song

    songs = folder / f"songs-{seconds}-{count}{'-mixed' if mixed else ''}"
    if songs.is_dir():
        return songs
    songs.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        frames = round(25 * seconds * (0.5 + 0.5 * number / count if mixed else 1))
        tokens = 300 + 7 * (number % 60) if mixed else CONDITION_TOKENS
        torch.save(random_song(model, frames, tokens, generator), songs / f"{number:03}.pt")
    return songs


def main() -> None:
    """Run the command in new processes and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=["toy", "2b", "xl"], default="toy")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--songs", type=int, default=20)
    parser.add_argument("--mixed", action="store_true", help="songs of many lengths")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--warm", action="store_true", help="keep the compiled kernels that are there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.flags, arguments.steps)
        return
    from real_size import build

    build(arguments.folder, arguments.model, 20)
    songs = build_songs(arguments.folder, arguments.model, arguments.seconds, arguments.songs, mixed=arguments.mixed)
    cache = arguments.folder / "kernels"
    if not arguments.warm:
        shutil.rmtree(cache, ignore_errors=True)
    for number in range(arguments.runs):
        words = ["--checkpoint-dir", str(arguments.folder / "checkpoints"), "--dataset-dir", str(songs)]
        words += ["--model", "xl-base" if arguments.model == "xl" else "base", "--epochs", "1000"]
        words += ["--gradient-accumulation", "1", "--save-every", "0", "--log-heavy-every", "0"]
        words += ["--output-dir", str(arguments.folder / f"run-{time.time_ns()}"), *arguments.flags]
        command = [sys.executable, __file__, "--folder", str(arguments.folder), "--child"]
        command += ["--steps", str(arguments.steps), "--", *words]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), BEGAN: str(time.time())}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        line = {"model": arguments.model, "seconds": arguments.seconds, "songs": arguments.songs, "run": number + 1}
        line |= {"flags": " ".join(arguments.flags)}
        line |= json.loads(found[-1]) if found else {"failed": done.stderr[-1500:]}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
