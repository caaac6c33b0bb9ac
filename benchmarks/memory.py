"""How much memory does a training step take, and how near does the plan come to it?

    python benchmarks/memory.py --folder DIR                        # the whole list at real size, on CUDA
    python benchmarks/memory.py --folder DIR --rows nf4             # those rows whose names contain this
    python benchmarks/memory.py --folder DIR --model xl --seconds 600 --cap 7.2 -- --base-precision nf4 --recompute all
    python benchmarks/memory.py --folder DIR --toy                  # toy size, on a processor

Each row is a training of a few optimizer steps, moments included. The plan is compared with the peak of what PyTorch
allocated, so its reserve for the CUDA context is left out; `reserved` is what the allocator held for it. With a cap,
PyTorch may hold no more than so many GiB, as on a card of that size, from the loading on. Rows for which the compiler
makes the same kernels share a process, and processes run side by side: what each allocates is counted by itself.

Without CUDA memory is what PyTorch's profiler saw allocated. The weights are then a small part, and what the plan
neglects a large one: it shows that the script works, not how good the plan is.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from real_size import build, settings_of
from torch._C._profiler import _EventType as EventType

from woodshed.doctor.run import estimate_of
from woodshed.errors import UserError
from woodshed.models.memory import GIB, MemoryEstimate
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Notice, StepDone
from woodshed.training.loop import train
from woodshed.training.preflight import check

STEPS = 4  # the first makes the moments, before the second the update is captured
ALL_PROJECTIONS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"


@dataclass(frozen=True)
class Row:
    """One configuration."""

    model: str  # toy, 2b or xl
    seconds: int
    flags: tuple[str, ...]
    cap: float | None = None  # GiB

    @property
    def name(self) -> str:
        """What is printed and chosen by."""
        cap = f" in {self.cap:g} GiB" if self.cap else ""
        return f"{self.model} {self.seconds} s {' '.join(self.flags)}{cap}"


def group(model: str, flags: str, *rows: "int | tuple[int, str] | tuple[int, str, float]") -> list[Row]:
    """Return rows for which the compiler makes the same kernels: lengths, each with what else differs and a cap."""
    found = []
    for row in rows:
        seconds, more, *cap = (row, "") if isinstance(row, int) else row
        usual = [] if "--base-precision" in flags else ["--base-precision", "bf16"]
        words = [word.replace("+", " ") for word in f"{flags} {more}".split()]
        found.append(Row(model, seconds, (*words, *usual), *cap))
    return found


MLP = f"--target-modules {ALL_PROJECTIONS.replace(' ', '+')}"
EAGER = "--compile no --cuda-graphs no"
ROWS = [
    group(
        *("2b", "--recompute all", 60, 240, 600, (240, "--optimizer-type adamw8bit")),
        *((240, "--optimizer-type prodigy"), (240, "--optimizer-type adafactor"), (120, "--batch-size 2")),
    ),
    group("2b", "--recompute none", 60, 240, 600, (60, "--batch-size 4")),
    group("2b", "--recompute all --base-precision nf4", 60, 240, 600, (240, "", 3.2)),
    group("2b", "--recompute all --base-precision int8", 240, 600),
    group("2b", "--recompute none --base-precision nf4", 60, 240),
    group("2b", "--recompute all --base-precision fp8", 240),
    group("2b", "--recompute all --rank 16", 240),
    group("2b", f"--recompute all {MLP}", 240),
    group("2b", "--recompute none --adapter-type lokr", 60, 240),
    group("2b", "--recompute all --adapter-type lokr --lokr-factor 8", 240),
    group("2b", f"--recompute none {EAGER}", 60, 240),
    group("2b", f"--recompute all {EAGER}", 60, 240),
    group("xl", "--recompute all --base-precision nf4", 240, (240, "", 5.2), (600, "", 7.2)),
    group("xl", "--recompute all", 240),
    group("xl", "--recompute all --base-precision int8", 240),
    group("2b", "--recompute half", 240),
]
"""Every part of the plan, alone and with others; what two others have made the kernels of comes last."""
TOY_ROWS = [
    group("toy", "--recompute none", 20, 40, (20, "--optimizer-type prodigy")),
    group("toy", "--recompute all", 20),
    group("toy", "--recompute none --adapter-type lokr", 20),
]


def measure(folder: Path, row: Row) -> dict[str, object]:
    """Train a few steps in this process; return what they took and what was planned, in GiB."""
    settings = settings_of(folder, row.model, row.seconds, list(row.flags))
    plan = estimate_of(check(settings))
    planned = plan.total - plan.reserve
    found: dict[str, object] = {"row": row.name, "plan": _gib(planned)}
    began = time.monotonic()
    try:
        with capped(row.cap), watched() as peak:
            said = list(first_steps(settings))
    except (UserError, torch.OutOfMemoryError) as error:
        return found | {"failed": str(error)[:400], "parts": _parts(plan)}
    allocated = peak["allocated"]
    found |= {name: _gib(size) for name, size in peak.items()}
    found |= {"error_percent": round(100 * (planned / allocated - 1), 1), "seconds": round(time.monotonic() - began, 1)}
    return found | {"parts": _parts(plan)} | ({"said": said} if said else {})


def first_steps(settings: TrainSettings) -> Iterator[str]:
    """Train a few steps, save nothing, and yield what was not done as planned."""
    events = train(settings)
    for event in events:
        if isinstance(event, Notice) and any(
            words in event.text for words in ("left out", "goes without", "again from")
        ):
            yield event.text
        if isinstance(event, StepDone) and event.step == STEPS:
            break
    events.close()  # type: ignore[attr-defined] # a generator, which lets everything go


@contextmanager
def capped(gib: float | None) -> Iterator[None]:
    """Let PyTorch hold no more than this of the card."""
    if gib is None:
        yield
        return
    if not torch.cuda.is_available():
        raise UserError("--cap needs CUDA: nothing else can be told to be small.")
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * GIB / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Note the most bytes that were allocated meanwhile, of which `before` were there already."""
    peak: dict[str, int] = {}
    gc.collect()  # a model that is still there would count
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        peak["before"] = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak["allocated"], peak["reserved"] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield peak
    peak["allocated"] = most_allocated(profile)


def most_allocated(profile: torch.profiler.profile) -> int:
    """Return the most bytes that were allocated at once of those that the profiler saw come."""
    assert profile.profiler is not None
    events, changes = list(profile.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == EventType.Allocation and event.extra_fields.device.type == "cpu":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(accumulate(size for _, size in sorted(changes)))


def _gib(size: int) -> float:
    return round(size / GIB, 2 if size > GIB / 10 else 5)


def _parts(plan: MemoryEstimate) -> dict[str, float]:
    return {name: _gib(size) for name, size in plan.parts().items()}


class Writer:
    """Prints rows as they come and keeps them in a file, so that nothing is lost when time is up."""

    def __init__(self, results: Path) -> None:
        self._results = results
        results.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, line: str) -> None:
        """Write a line."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        with self._results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def build_all(folder: Path, model: str, lengths: Iterable[int]) -> None:
    """Make a model and songs of all lengths."""
    for seconds in lengths:
        build(folder, model, seconds)


def run_group(folder: Path, rows: list[Row], ready: "Future[None]", write: Writer) -> None:
    """Measure rows in a process of their own, as soon as their model is there."""
    ready.result()
    texts = json.dumps([asdict(row) for row in rows])
    command = [sys.executable, __file__, "--folder", str(folder), "--here", texts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        with ThreadPoolExecutor(1) as reader:
            errors = reader.submit(child.stderr.read)
            for line in child.stdout:
                if line.startswith("{"):
                    write(line.rstrip())
            complaint = errors.result()
    if child.returncode:
        write(json.dumps({"row": rows[0].name, "failed": complaint[-1500:]}))


def measure_here(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Measure rows one after the other in this process."""
    for row in rows:
        found = measure(folder, Row(**row | {"flags": tuple(row["flags"])}))
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def chosen_rows(arguments: argparse.Namespace) -> list[list[Row]]:
    """Return the groups of rows that are asked for."""
    if arguments.flags or arguments.cap:
        return [
            group(arguments.model, " ".join(word.replace(" ", "+") for word in arguments.flags), row)
            for row in [(arguments.seconds, "", *([arguments.cap] if arguments.cap else []))]
        ]
    groups = TOY_ROWS if arguments.toy else ROWS
    wanted = [[row for row in rows if arguments.rows in row.name] for rows in groups]
    return [rows for rows in wanted if rows]


def main() -> None:
    """Print one line of JSON per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--toy", action="store_true", help="toy size, on any machine")
    parser.add_argument("--rows", default="", help="only those whose names contain this")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--results", type=Path, help="file for the rows beside the output; in the folder unless given")
    parser.add_argument("--model", choices=["toy", "2b", "xl"], default="2b", help="of a row of your own")
    parser.add_argument("--seconds", type=int, default=240, help="the same")
    parser.add_argument("--cap", type=float, help="the same: GiB that PyTorch may hold")
    parser.add_argument("--here", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="of woodshed train, for a row of your own")
    arguments = parser.parse_args()
    if arguments.here:
        measure_here(arguments.folder, arguments.here)
        return
    groups = chosen_rows(arguments)
    write = Writer(arguments.results or arguments.folder / "memory.jsonl")
    lengths: dict[str, set[int]] = defaultdict(set)
    for row in (row for rows in groups for row in rows):
        lengths[row.model].add(row.seconds)
    # One model after the other, because they share their songs.
    with ThreadPoolExecutor(1) as builder, ThreadPoolExecutor(arguments.jobs) as pool:
        ready = {model: builder.submit(build_all, arguments.folder, model, lengths[model]) for model in lengths}
        run = partial(run_group, arguments.folder)
        for done in [pool.submit(run, rows, ready[rows[0].model], write) for rows in groups]:
            done.result()


if __name__ == "__main__":
    main()
