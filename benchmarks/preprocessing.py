"""How fast songs become tensors, what that takes, and what a second run does, with models of real size.

The models are built with random weights, which computes the same as trained ones. Give it a folder of real songs.

    python benchmarks/preprocessing.py --folder DIR --songs DIR

`--toy` uses the tiny models: to try the script, not to measure.
"""

import argparse
import json
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path

import torch

from woodshed.data.encode import preprocess
from woodshed.data.events import EncodeEvent, Finished, Found, Notice, SongDone, SongFailed
from woodshed.data.latents import Tiling, choose_tiling, encode_waveform
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.models.load import load_vae
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings
from woodshed.toy.checkpoint import (
    REAL_2B,
    REAL_TEXT,
    REAL_VAE,
    build_model,
    build_text_encoder,
    build_toy_root,
    build_vae,
)

MODEL = "acestep-v15-base"


def say(text: str) -> None:
    """Print at once: whoever waits for a lent machine wants to see how far it is."""
    print(text, flush=True)  # noqa: T201 - a script


def build(root: Path, *, toy: bool) -> None:
    """Write the models, unless they are there."""
    if (root / MODEL).is_dir():
        return
    if toy:
        build_toy_root(root)
        return
    build_vae(root / "vae", REAL_VAE)
    build_text_encoder(root / "Qwen3-Embedding-0.6B", REAL_TEXT)
    build_model(root / MODEL, REAL_2B, dtype=torch.bfloat16)


def run(title: str, root: Path, songs: Path, output: Path, **changes: object) -> Finished:
    """Preprocess once and print what happened."""
    values = {"checkpoint_dir": root, "model": MODEL, "audio_dir": songs, "tensor_output": output, **changes}
    settings = resolve(PreprocessSettings, [Layer("benchmark", values)]).settings
    started_at = time.monotonic()
    music: dict[str, float] = defaultdict(float)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    end: EncodeEvent | None = None
    for event in preprocess(settings):
        now = time.monotonic() - started_at
        if isinstance(event, SongDone):
            music[event.step] += event.audio_seconds
            first.setdefault(event.step, now)
            last[event.step] = now
        elif isinstance(event, Found):
            say(f"{title}: {event.songs} songs, {event.unchanged} unchanged, after {now:.2f} s")
        elif isinstance(event, SongFailed):
            say(f"  failed: {event.problem}")
        elif isinstance(event, Notice):
            say(f"  {event.text[:120]}")
        end = event
    assert isinstance(end, Finished)
    seconds = time.monotonic() - started_at
    say(f"  {end.encoded} encoded, {end.unchanged} unchanged, {end.failed} failed in {seconds:.2f} s")
    if end.encoded:
        pace = f"{60 * end.encoded / seconds:.1f} songs a minute, {end.audio_seconds / seconds:.0f} s of music a second"
        say(f"  {pace}, loading the models included")
        say(f"  device waited {100 * (end.waited or 0):.1f} %")
        for step, at in last.items():
            say(f"  {step}: from {first[step]:.2f} s (first song done) to {at:.2f} s")
        for step, size in end.peaks.items():
            say(f"  {step}: peak {size / 2**30:.2f} GiB")
    return end


def compare_tilings(root: Path, seconds: int) -> None:
    """Time the VAE alone on one song, cut in different ways."""
    device = resolve_device("auto")
    vae = load_vae(root / "vae", dtype=resolve_precision("auto", device), device=device)
    say(f"chosen tiling: {choose_tiling(vae)}")
    waveform = 0.1 * torch.randn(2, seconds * 48_000)
    for tiling in (Tiling(), Tiling(at_once=2), Tiling(at_once=5), Tiling(seconds=15), Tiling(seconds=6)):
        encode_waveform(vae, waveform[:, : 60 * 48_000], tiling)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started_at = time.monotonic()
        encode_waveform(vae, waveform, tiling)
        took = time.monotonic() - started_at
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
        say(f"VAE, {tiling}: {seconds / took:.0f} s of music a second, peak {peak:.2f} GiB")


def main() -> None:
    """Build, measure, measure again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where models and tensors go")
    parser.add_argument("--songs", type=Path, required=True, help="real music")
    parser.add_argument("--toy", action="store_true", help="tiny models")
    parser.add_argument("--tiling-seconds", type=int, default=240, help="length of the song for the VAE alone")
    chosen = parser.parse_args()
    root, output, songs = chosen.folder / "checkpoints", chosen.folder / "tensors", chosen.folder / "songs"
    started_at = time.monotonic()
    build(root, toy=chosen.toy)
    say(f"models after {time.monotonic() - started_at:.1f} s; {os.cpu_count()} processors")
    if torch.cuda.is_available():
        say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    shutil.copytree(chosen.songs, songs, dirs_exist_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    run("warm-up on three songs", root, _few(songs, chosen.folder / "few"), chosen.folder / "warm")
    run("first run", root, songs, output)
    run("second run", root, songs, output)
    one = sorted(path for path in songs.iterdir() if path.suffix in (".ogg", ".opus", ".mp3", ".flac", ".wav"))[0]
    one.with_suffix(".caption.txt").write_text("another caption", encoding="utf-8")
    run("third run, one caption changed", root, songs, output)
    one.with_suffix(".caption.txt").unlink()
    run("with --offload-encoder", root, songs, chosen.folder / "offloaded", offload_encoder=True)
    compare_tilings(root, chosen.tiling_seconds)
    say(json.dumps({"done": True}))


def _few(songs: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in sorted(songs.iterdir())[:3]:
        shutil.copy(path, folder)
    return folder


if __name__ == "__main__":
    main()
