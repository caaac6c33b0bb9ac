"""Train real-size models with random weights: does it load, how long is a step, how much memory does it take?

    python benchmarks/real_size.py --folder /tmp/real --model 2b --seconds 240 -- --precision bf16
    python benchmarks/real_size.py --folder /tmp/real --suite 2b

The checkpoint is made once in the original layout (2B: one bf16 file of 4.4 GB; XL: float32 shards, 19 GB) and the
songs are random latents. Everything after `--` goes to `woodshed train`. A suite runs one process per configuration,
so that each row starts with an empty card. Rows: median of the optimizer steps after the third.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from woodshed.settings.schema import TrainSettings

CONDITION_TOKENS = 512
STEPS = 12
SUITES = {
    "2b": [
        [],
        ["--no-gradient-checkpointing"],
        ["--precision", "fp16"],
        ["--optimizer-type", "adamw8bit"],
        ["--optimizer-type", "adafactor"],
        ["--optimizer-type", "prodigy"],
        ["--adapter-type", "lokr"],
        ["--adapter-type", "lokr", "--lokr-factor", "8"],
        ["--batch-size", "2"],
        ["--target-modules", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"],
    ],
    "xl": [[], ["--optimizer-type", "adamw8bit", "--rank", "16"]],
}


def build(folder: Path, model: str, seconds: int) -> None:
    """Make checkpoint and songs unless they are there."""
    import torch

    from woodshed.toy.checkpoint import REAL_2B, REAL_XL, TOY, build_model

    checkpoint = folder / "checkpoints" / f"acestep-v15-{'xl-base' if model == 'xl' else 'base'}"
    if not (checkpoint / "silence_latent.pt").is_file():
        if model == "xl":
            build_model(checkpoint, REAL_XL | {"model_version": "base"}, dtype=torch.float32, shard_bytes=5 * 10**9)
        elif model == "toy":
            build_model(checkpoint, TOY | {"model_version": "base"}, dtype=torch.float32)
        else:
            build_model(checkpoint, REAL_2B | {"model_version": "base"}, dtype=torch.bfloat16)
    songs = folder / f"songs-{seconds}"
    songs.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for name in "abcd":
        if not (songs / f"{name}.pt").is_file():  # else somebody may be training on it
            torch.save(random_song(model, seconds * 25, CONDITION_TOKENS, generator), songs / f"{name}.pt")


def random_song(model: str, frames: int, tokens: int, generator: "torch.Generator") -> dict[str, object]:
    """Return a song as preprocessing writes it, with random numbers.

    Args:
        model: `toy` has narrower ones.
        frames: of its latents.
        tokens: of its conditions.
        generator: of the numbers.
    """
    import torch

    channels, width = (8, 64) if model == "toy" else (64, 2048)
    latents = torch.randn(frames, channels, generator=generator)
    return {
        "target_latents": latents.bfloat16(),
        "attention_mask": torch.ones(frames),
        "encoder_hidden_states": torch.randn(tokens, width, generator=generator).bfloat16(),
        "encoder_attention_mask": torch.ones(tokens, dtype=torch.bool),
        "context_latents": torch.cat([0.1 * latents, torch.ones_like(latents)], dim=1).bfloat16(),
        "metadata": {},
    }


def settings_of(folder: Path, model: str, seconds: int, flags: list[str], **changes: object) -> "TrainSettings":
    """Return the settings of a run that saves and logs nothing on the way."""
    from woodshed.cli import COMMANDS, build_parser
    from woodshed.settings.flags import flag_layer
    from woodshed.settings.resolve import Layer, resolve
    from woodshed.settings.schema import TrainSettings

    values = {
        "checkpoint_dir": folder / "checkpoints",
        "model": "xl-base" if model == "xl" else "base",
        "dataset_dir": folder / f"songs-{seconds}",
        "output_dir": folder / f"run-{time.time_ns()}",
        "gradient_accumulation": 1,
        "epochs": 1000,
        "save_every": 0,
        "log_every": 0,
        "log_heavy_every": 0,
    }
    typed = flag_layer(build_parser(COMMANDS["train"], show_all=True).parse_args(flags), TrainSettings)
    return resolve(TrainSettings, [Layer("benchmark", values | changes), typed]).settings


def measure(folder: Path, model: str, seconds: int, flags: list[str]) -> dict[str, object]:
    """Train a few steps in this process and return what they took."""
    from woodshed.training.events import Finished, Started, StepDone
    from woodshed.training.loop import train

    settings = settings_of(folder, model, seconds, flags)
    times: list[float] = []
    losses: list[float] = []
    row: dict[str, object] = {"model": model, "seconds": seconds, "flags": " ".join(flags) or "defaults"}
    began = time.monotonic()
    for event in train(settings, should_stop=lambda: len(losses) >= STEPS):
        if isinstance(event, Started):
            row |= {"device": event.device, "precision": event.precision, "parameters": event.trainable_parameters}
            row["load_s"] = round(time.monotonic() - began, 1)
        if isinstance(event, StepDone):
            losses.append(event.loss)
            if event.step > 3:
                times.append(event.seconds)
        if isinstance(event, Finished) and event.peak_memory_bytes is not None:
            row["peak_gib"] = round(event.peak_memory_bytes / 2**30, 2)
    row["ms_per_step"] = round(1000 * statistics.median(times), 1)
    row["first_loss"], row["last_loss"] = round(losses[0], 4), round(losses[-1], 4)
    row["host_peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def main() -> None:
    """Run one configuration, or a suite of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=["2b", "xl"], default="2b")
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--suite", choices=list(SUITES))
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    model = arguments.suite or arguments.model
    build(arguments.folder, model, arguments.seconds)
    if not arguments.suite:
        sys.stdout.write(json.dumps(measure(arguments.folder, model, arguments.seconds, arguments.flags)) + "\n")
        return
    for flags in SUITES[arguments.suite]:
        command = [sys.executable, __file__, "--folder", str(arguments.folder), "--model", model]
        command += ["--seconds", str(arguments.seconds), "--", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        sys.stdout.write((found[-1] if found else f"FAILED {flags}: {done.stderr[-1500:]}") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
