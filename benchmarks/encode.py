"""How fast do songs become latents, words states, and states conditions, and how much memory does that take?

    python benchmarks/encode.py --folder DIR            # models of real size with random weights
    python benchmarks/encode.py --folder DIR --toy      # tiny models, on any machine

Rows are printed as soon as they are known. The VAE's are measured from a waveform in memory to latents in memory, so
copies count; the first run of each, in which kernels are made and chosen, is `first_s`. Ahead of them stands what the
libraries do by themselves, weight norm in every call and one operation after the other.
"""

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from preprocessing import MODEL, build

from woodshed.data.latents import Tiling, encode_waveform
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.models.encoders import TextEncoder, encode_conditions
from woodshed.models.load import load_condition_encoder, load_silence, load_text_encoder, load_vae
from woodshed.models.memory import GIB
from woodshed.models.vae import FusedEncoder

SAMPLE_RATE = 48_000
SECONDS = {False: 624, True: 66}  # 24 tiles of 30 seconds, or two
REPEATS = {False: 3, True: 1}
PROMPT_TOKENS, LYRIC_TOKENS = 250, 1200  # of a song with many words


class Bench:
    """Measures on one device, and prints.

    Args:
        root: folder of the models.
        is_toy: whether they are tiny.
        results: file for the rows beside the output.
    """

    def __init__(self, root: Path, *, is_toy: bool, results: Path) -> None:
        self.root, self.is_toy, self._results = root, is_toy, results
        self.device = resolve_device("auto")
        self.dtype = resolve_precision("auto", self.device)
        generator = torch.Generator().manual_seed(0)
        self.waveform = 0.1 * torch.randn(2, SECONDS[is_toy] * SAMPLE_RATE, generator=generator)

    def say(self, name: str, **found: object) -> None:
        """Print a row."""
        line = json.dumps({"row": name} | found)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        with self._results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, run: Callable[[], object]) -> tuple[float, float, float | None]:
        """Return the seconds of the first run, of the fastest after it, and the peak GiB of these."""
        self._forget()
        times = []
        for repeat in range(REPEATS[self.is_toy] + 1):
            if repeat == 1:
                self._forget()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - began)
        peak = round(torch.cuda.max_memory_allocated() / GIB, 2) if self.device.type == "cuda" else None
        return times[0], min(times[1:]), peak

    def _forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def vae(self, name: str, vae: AutoencoderOobleck, *, at_once: int = 1, seconds: int = 0) -> None:
        """Measure a VAE on a long song."""
        wave = self.waveform[:, : seconds * SAMPLE_RATE or None]
        try:
            first, took, peak = self.time(partial(encode_waveform, vae, wave, Tiling(at_once=at_once)))
        except RuntimeError as error:  # out of memory too: the other rows are wanted all the same
            self.say(name, failed=str(error)[:300])
            return
        music = wave.shape[1] / SAMPLE_RATE
        self.say(name, music_per_s=round(music / took), peak_gib=peak, first_s=round(first, 2), of_s=music)


def by_the_library(bench: Bench) -> AutoencoderOobleck:
    """Return the VAE as diffusers gives it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        vae = AutoencoderOobleck.from_pretrained(bench.root / "vae", torch_dtype=bench.dtype)
    return vae.eval().to(bench.device)


def compare_vaes(bench: Bench, *, with_profile: bool) -> None:
    """Measure the VAE's ways, one after the other."""
    bench.vae("VAE as it comes, tiles of 30 s", by_the_library(bench))
    vae = load_vae(bench.root / "vae", dtype=bench.dtype, device=bench.device)
    bench.vae("weights folded", vae)
    bench.vae("weights folded, 8 tiles at once", vae, at_once=8)
    usual = vae.encoder
    expected = encode_waveform(vae, bench.waveform).mean
    vae.encoder = FusedEncoder(usual)
    for at_once in (1, 2, 4, 8):
        bench.vae(f"fused, {at_once} at once", vae, at_once=at_once)
    off = encode_waveform(vae, bench.waveform).mean - expected
    bench.say("fused against eager", largest=off.abs().max().item(), mean=off.abs().mean().item())
    bench.vae("fused, a song of 10 s", vae, seconds=10)
    bench.vae("fused, a song of 240 s, 2 at once", vae, seconds=240, at_once=2)
    if with_profile:
        profile(bench, vae)
    torch.backends.cudnn.benchmark = True
    for at_once in (1, 2, 8):
        bench.vae(f"fused, kernels chosen by trial, {at_once} at once", vae, at_once=at_once)
    torch.backends.cudnn.benchmark = False
    vae.encoder = torch.compile(usual)
    for at_once in (1, 8):
        bench.vae(f"the whole encoder compiled, {at_once} at once", vae, at_once=at_once)


def profile(bench: Bench, vae: AutoencoderOobleck) -> None:
    """Print the kernels that take most of a song's time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if bench.device.type == "cuda" else []
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiled:
        encode_waveform(vae, bench.waveform[:, : 56 * SAMPLE_RATE])
        bench.wait()
    key = "self_cuda_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=key, row_limit=24, max_name_column_width=70)
    bench.say("profile", table=table.splitlines())


def compare_words(bench: Bench) -> None:
    """Measure what the words of a song take."""
    found = find_checkpoints(bench.root)
    checkpoint = choose_model(found, MODEL)
    texts = load_text_encoder(found.require_text_encoder(), dtype=bench.dtype, device=bench.device)
    prompt, lyrics = "a" * PROMPT_TOKENS, "b" * LYRIC_TOKENS
    states: dict[str, torch.Tensor] = {}

    def read(reader: TextEncoder) -> None:
        states["prompt"] = reader.encode_text(prompt).cpu()
        states["lyrics"] = reader.embed_lyrics(lyrics).cpu()

    first, took, peak = bench.time(partial(read, texts))
    bench.say("text of a song", ms=round(1000 * took, 1), peak_gib=peak, first_s=round(first, 2))
    del texts
    encoder = load_condition_encoder(checkpoint, dtype=bench.dtype, device=bench.device)
    reference = load_silence(checkpoint)[None, : checkpoint.config.timbre_fix_frame]

    def condition() -> None:
        encode_conditions(encoder, states["prompt"], states["lyrics"], reference).cpu()

    first, took, peak = bench.time(condition)
    bench.say("conditions of a song", ms=round(1000 * took, 1), peak_gib=peak, first_s=round(first, 2))


def main() -> None:
    """Build, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--toy", action="store_true", help="tiny models")
    parser.add_argument("--results", type=Path, help="file for the rows; in the folder unless given")
    parser.add_argument("--profile", action="store_true", help="also say which kernels take the time")
    chosen = parser.parse_args()
    root = chosen.folder / "checkpoints"
    build(root, toy=chosen.toy)
    results = chosen.results or chosen.folder / "encode.jsonl"
    bench = Bench(root, is_toy=chosen.toy, results=results)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "a processor"
    bench.say("machine", device=name, torch=torch.__version__, precision=str(bench.dtype))
    compare_words(bench)
    compare_vaes(bench, with_profile=chosen.profile)


if __name__ == "__main__":
    main()
