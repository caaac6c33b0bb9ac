"""Do the settings that need a GPU do what they say there? One JSON line for each check.

    python benchmarks/cuda_settings.py --folder /tmp/real
    python benchmarks/cuda_settings.py --folder /tmp/toy --toy --device cpu     to try the script itself

Most checks train a few steps of a real-size 2B model with random weights on songs of a minute; resuming uses the toy
model. A check that fails or breaks says so in its line and does not stop the others; the exit code is 1 then.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from real_size import build

from woodshed.errors import UserError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.toy.checkpoint import build_toy_root
from woodshed.training.loop import take_step, train
from woodshed.training.preflight import check
from woodshed.training.run import Run, describe_device, load_run, precision_name

STEPS = 6
SECONDS = 60
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy")
Facts = dict[str, Any]


class Bench:
    """A place to train in: a model, songs for it, and a device."""

    def __init__(self, folder: Path, device: str, *, is_toy: bool) -> None:
        self.folder, self.device = folder, device
        toy = folder / "toy"
        if not (toy / "vae").is_dir():
            build_toy_root(toy)
        write_toy_songs(toy, folder / "toy-songs")
        self.toy_places = {"checkpoint_dir": toy, "model": "base", "dataset_dir": folder / "toy-songs"}
        self.places = self.toy_places
        if not is_toy:
            build(folder, "2b", SECONDS)
            songs = folder / f"songs-{SECONDS}"
            self.places = {"checkpoint_dir": folder / "checkpoints", "model": "base", "dataset_dir": songs}

    def settings(self, **changes: Any) -> TrainSettings:
        """Return settings for the model of this bench."""
        values = {
            **self.places,
            "output_dir": self.folder / f"run-{time.time_ns()}",
            "device": self.device,
            "gradient_accumulation": 1,
            "warmup_steps": 0,
            "epochs": 3,
            "save_every": 0,
            "log_every": 0,
        }
        return resolve(TrainSettings, [Layer("bench", values | changes)]).settings

    @contextmanager
    def loaded(self, **changes: Any) -> Iterator[Run]:
        """Load a run; its memory is free again afterwards."""
        free_memory()
        run = load_run(check(self.settings(**changes)))
        try:
            yield run
        finally:
            run.loader.close()
            # Whoever still holds the run (a traceback, a generator) must not hold its memory.
            run.decoder.to("meta")
            run.optimizer.state.clear()
            run.parameters.clear()
            del run
            free_memory()

    def measure(self, **changes: Any) -> Facts:
        """Train a few steps; return losses, time, memory and what the compute and the state are made of."""
        with self.loaded(**changes) as run:
            return measure_run(run)


def free_memory() -> None:
    """Give back what nobody uses, and count anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gib(size: int) -> float:
    """Return bytes as GiB."""
    return round(size / 2**30, 3)


def measure_run(run: Run, steps: int = STEPS) -> Facts:
    """Take steps over the songs, epoch after epoch."""
    seen: set[str] = set()
    hook = run.decoder.layers[0].mlp.register_forward_hook(lambda *call: seen.add(str(call[-1].dtype)))
    results, times = [], []
    while len(results) < steps:
        for batch in run.loader.epoch(run.position.epoch):
            wait()
            began = time.monotonic()
            results.append(take_step(run, [batch]))
            wait()
            times.append(1000 * (time.monotonic() - began))
            run.position.step += 1
        run.position.epoch += 1
    hook.remove()
    held = [value for state in run.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    large = max(run.parameters, key=torch.Tensor.numel)
    numbers = sum(parameter.numel() for parameter in run.parameters)
    return {
        "device": str(run.device),
        "precision": precision_name(run.preflight.dtype),
        "compute": sorted(name.removeprefix("torch.") for name in seen),
        "adapter": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in run.parameters}),
        "parameters": numbers,
        "losses": [loss for result in results for loss in result.losses],
        "rates": [result.learning_rate for result in results],
        "skipped": sum(result.was_skipped for result in results),
        "ms": round(statistics.median(times[2:]), 1),
        "peak_gib": gib(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None,
        "state_bytes_per_parameter": round(sum(tensor.nbytes for tensor in held) / numbers, 3),
        "state_dtypes": sorted(
            {
                str(value.dtype).removeprefix("torch.")
                for value in run.optimizer.state[large].values()
                if torch.is_tensor(value) and value.numel() == large.numel()
            }
        ),
    }


def write_toy_songs(toy: Path, folder: Path) -> None:
    """Write random songs of unequal lengths for the toy model."""
    config = choose_model(find_checkpoints(toy), "base").config
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for name, frames in {"a": 120, "b": 90, "c": 75}.items():
        latents = torch.randn(frames, config.latent_channels, generator=generator)
        sample = {
            "target_latents": latents,
            "attention_mask": torch.ones(frames),
            "encoder_hidden_states": torch.randn(20, config.condition_width, generator=generator),
            "encoder_attention_mask": torch.ones(20, dtype=torch.bool),
            "context_latents": torch.cat([0.1 * latents, torch.ones_like(latents)], dim=1),
            "metadata": {},
        }
        torch.save(sample, folder / f"{name}.pt")


def auto(bench: Bench) -> Facts:
    """Check that auto takes the first CUDA card, and bf16 where it has that."""
    found = check(bench.settings(device="auto"))
    ok = (str(found.device), found.dtype) == ("cuda:0", torch.bfloat16)
    return {"ok": ok, "device": describe_device(found.device), "precision": precision_name(found.dtype)}


def absent_card(bench: Bench) -> Facts:
    """Check that a card that is not there is refused, naming those that are, and that the last one is taken."""
    try:
        check(bench.settings(device="cuda:99"))
        return {"ok": False, "message": "cuda:99 was accepted"}
    except UserError as error:
        last = f"cuda:{torch.cuda.device_count() - 1}"
        taken = str(check(bench.settings(device=last)).device)
        return {"ok": "cuda:99" in str(error) and taken == last, "message": str(error), "last": taken}


def precisions(bench: Bench) -> Facts:
    """Check that each precision is that of the compute, and how far its first loss is from float32."""
    rows = {word: bench.measure(precision=word) for word in ("bf16", "fp16", "fp32")}
    exact = rows["fp32"]["losses"][0]
    facts: Facts = {"ok": True}
    for word, row in rows.items():
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        error = abs(row["losses"][0] / exact - 1)
        facts["ok"] &= row["compute"] == [names[word]] and row["adapter"] == ["float32"] and error < 0.05
        facts[word] = {key: row[key] for key in ("compute", "ms", "peak_gib", "skipped")} | {"loss_error": error}
    facts["ok"] &= len({row["losses"][0] for row in rows.values()}) == 3
    return facts


def float16_overflow(bench: Bench) -> Facts:
    """Check that a gradient beyond float16 is skipped, halves the loss scale, and changes no weight."""
    with bench.loaded(precision="fp16") as run:
        run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**60})
        before = [parameter.detach().clone() for parameter in run.parameters]
        result = take_step(run, [next(run.loader.epoch(1))])
        untouched = all(map(torch.equal, before, run.parameters))
        scale = run.scaler.get_scale()
        return {"ok": result.was_skipped and untouched and scale == 2.0**59, "untouched": untouched, "scale": scale}


def optimizers(bench: Bench) -> Facts:
    """Time each optimizer and weigh its state."""
    facts: Facts = {"ok": True}
    for name in OPTIMIZERS:
        try:
            row = bench.measure(optimizer_type=name)
        except (UserError, RuntimeError, ImportError) as error:
            facts |= {"ok": False, name: str(error)[:500]}
            continue
        keys = ("ms", "peak_gib", "state_bytes_per_parameter", "state_dtypes")
        facts[name] = {key: row[key] for key in keys} | {"rates": row["rates"][-2:], "loss": row["losses"][-1]}
    sizes = {name: facts[name]["state_bytes_per_parameter"] for name in OPTIMIZERS if isinstance(facts[name], dict)}
    facts["ok"] &= sorted(sizes, key=sizes.__getitem__) == ["adafactor", "adamw8bit", "adamw", "prodigy"]
    facts["ok"] &= facts["ok"] and facts["adamw8bit"]["state_dtypes"] == ["uint8"]
    return facts


def gradient_checkpointing(bench: Bench) -> Facts:
    """Check that recomputing costs time, saves memory, and leaves the losses nearly the same."""
    rows = {word: bench.measure(gradient_checkpointing=word == "on", dropout=0) for word in ("on", "off")}
    on, off = rows["on"], rows["off"]
    facts: Facts = {word: {key: row[key] for key in ("ms", "peak_gib")} for word, row in rows.items()}
    facts["first_losses"] = [row["losses"][0] for row in rows.values()]
    saves = on["peak_gib"] is None or on["peak_gib"] < off["peak_gib"]
    return facts | {"ok": saves and abs(on["losses"][0] / off["losses"][0] - 1) < 1e-3}


def repetition(bench: Bench) -> Facts:
    """Check that the same seed gives the same losses to the last bit, and another one does not."""
    first, again, other = (bench.measure(seed=seed)["losses"] for seed in (1, 1, 2))
    return {"ok": first == again != other, "losses": first[:3], "again": again[:3], "other": other[:3]}


def workers(bench: Bench) -> Facts:
    """Check that songs read by workers, or kept in memory, give the same losses."""
    ways = {
        "resident": {"keep_in_memory": "yes"},
        "workers": {"keep_in_memory": "no", "num_workers": 2},
        "new workers each epoch": {"keep_in_memory": "no", "num_workers": 2, "persistent_workers": False},
    }
    rows = {name: bench.measure(**changes) for name, changes in ways.items()}
    losses = [row["losses"] for row in rows.values()]
    return {"ok": losses[0] == losses[1] == losses[2]} | {name: row["ms"] for name, row in rows.items()}


def pinned_memory(bench: Bench) -> Facts:
    """Check that batches lie in page-locked memory when asked, with and without workers, and not otherwise."""
    found = {}
    for workers_, wanted in ((0, True), (0, False), (2, True), (2, False)):
        kept = "no" if workers_ else "yes"
        with bench.loaded(**bench.toy_places, pin_memory=wanted, num_workers=workers_, keep_in_memory=kept) as run:
            batches = list(run.loader.epoch(1))
            found[f"workers {workers_}, pin {wanted}"] = all(batch.latents.is_pinned() for batch in batches)
    return {"ok": list(found.values()) == [True, False, True, False], **found}


def lokr(bench: Bench) -> Facts:
    """Train LoKr as the defaults give it, with a small factor, and with weight decomposition."""
    facts: Facts = {"ok": True}
    for name, changes in {
        "defaults": {},
        "factor 8": {"lokr_factor": 8},
        "factor 8, DoRA": {"lokr_factor": 8, "lokr_weight_decompose": True},
        "factor 8, all switches": {"lokr_factor": 8, "lokr_decompose_both": True, "lokr_use_scalar": True},
    }.items():
        row = bench.measure(adapter_type="lokr", **changes)
        facts[name] = {key: row[key] for key in ("parameters", "ms", "peak_gib", "compute")}
        facts["ok"] &= row["adapter"] == ["float32"] and all(loss < 1e4 for loss in row["losses"])
    return facts


def biases(bench: Bench) -> Facts:
    """Check that bias mode all trains the nine biases of the base model."""
    with bench.loaded(bias="all") as run:
        before = {name: value.detach().clone() for name, value in run.adapter.biases.parameters.items()}
        take_step(run, [next(run.loader.epoch(1))])
        moved = [name for name, value in run.adapter.biases.parameters.items() if not torch.equal(value, before[name])]
        return {"ok": len(before) == len(moved) == 9, "moved": len(moved)}


def resume(bench: Bench) -> Facts:
    """Check, on the toy model and songs of unequal lengths, that each optimizer continues to the last byte."""
    facts: Facts = {"ok": True}
    for name in OPTIMIZERS:
        common = {**bench.toy_places, "optimizer_type": name, "epochs": 3, "rank": 64, "batch_size": 2}
        whole, again = (bench.settings(**common, save_every=1) for _ in range(2))
        rest = bench.settings(**common, save_every=1, resume_from=whole.output_dir / "checkpoint-epoch-1")
        try:
            for settings in (whole, again, rest):
                for _ in train(settings):
                    pass
        except (UserError, RuntimeError, ImportError) as error:
            facts |= {"ok": False, name: str(error)[:500]}
            continue
        first, second, third = (
            (settings.output_dir / "final" / "adapter_model.safetensors").read_bytes()
            for settings in (whole, again, rest)
        )
        facts[name] = {"repeats": first == second, "resumes": first == third}
        facts["ok"] &= first == second == third
    return facts


CHECKS: tuple[Callable[[Bench], Facts], ...] = (
    auto,
    absent_card,
    pinned_memory,
    resume,
    precisions,
    float16_overflow,
    optimizers,
    gradient_checkpointing,
    repetition,
    workers,
    lokr,
    biases,
)


def main() -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--toy", action="store_true", help="the toy model in place of the 2B one")
    parser.add_argument("--only", nargs="+", choices=[function.__name__ for function in CHECKS])
    arguments = parser.parse_args()
    began = time.monotonic()
    bench = Bench(arguments.folder, arguments.device, is_toy=arguments.toy)
    report({"check": "build", "ok": True, "seconds": round(time.monotonic() - began, 1)})
    failed = 0
    for function in CHECKS:
        if arguments.only and function.__name__ not in arguments.only:
            continue
        began = time.monotonic()
        try:
            facts = function(bench)
        except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
            facts = {"ok": False, "broke": f"{type(error).__name__}: {error}"[:1000]}
        failed += not facts["ok"]
        report({"check": function.__name__, **facts, "seconds": round(time.monotonic() - began, 1)})
    return min(failed, 1)


def report(facts: Facts) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
