"""`python -m miniature`: train everything, write the checkpoints, and measure them."""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from dataclasses import fields
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from miniature.decoder import Dataset, train_base, train_turbo, write_model
from miniature.listen import HELD_OUT_SEED, Listener, Playing, asked_pieces, hear, judge
from miniature.sizes import MODEL, SEED, VAE, Budget
from miniature.snake import use_fast_snake
from miniature.songs import Songs, sound_of, training_seeds
from miniature.stage import Log
from miniature.vae import encode_silence, encode_songs, measure, train_vae, unit_scale
from miniature.words import encode_words, piece_lyrics, piece_prompt, write_text_encoder
from woodshed.models.checkpoints import TEXT_ENCODER_FOLDER, VAE_FOLDER
from woodshed.models.load import load_text_encoder, load_vae
from woodshed.toy.composer import SAMPLE_RATE, compose
from woodshed.toy.instruments import Sound


def main() -> None:
    """Read the command line and do it all."""
    parser = argparse.ArgumentParser(prog="python -m miniature", description="Train the miniature checkpoints.")
    parser.add_argument("--output", type=Path, required=True, help="checkpoints, log.jsonl and figures.json go here")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"), help="25 GB of songs go here and are removed")
    for field in fields(Budget):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--vae", type=Path, help="a VAE's folder to use instead of training one")
    parser.add_argument("--no-listening", action="store_true", help="write no figures of what the models play")
    parser.add_argument("--only-vae", action="store_true", help="end when the VAE is trained")
    arguments = parser.parse_args()
    budget = Budget(**{field.name: getattr(arguments, field.name) for field in fields(Budget)})
    arguments.output.mkdir(parents=True, exist_ok=True)
    use_fast_snake()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    is_heard = not (arguments.no_listening or arguments.only_vae)
    ears = multiprocessing.get_context("fork").Pool(max(1, (os.cpu_count() or 2) // 4))
    if is_heard:
        ears.map_async(hear, [np.zeros((2, SAMPLE_RATE))] * 64)  # they learn while the GPU trains
    songs_file = arguments.scratch / "miniature-songs.i16"
    try:
        figures = _train(arguments.output, songs_file, budget, device, arguments.vae, is_short=arguments.only_vae)
    finally:
        songs_file.unlink(missing_ok=True)
    if is_heard:
        figures |= _listen(arguments.output, budget, device, ears)
        _write_figures(arguments.output, figures)
    ears.terminate()


def _write_figures(output: Path, figures: dict[str, object]) -> None:
    (output / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


def _train(
    output: Path, songs_file: Path, budget: Budget, device: torch.device, vae_folder: Path | None, *, is_short: bool
) -> dict[str, object]:
    """Train every part and write it as soon as it is there."""
    log = Log(output / "log.jsonl")
    songs = Songs(songs_file, training_seeds(budget.songs, budget.vae_songs // 3))
    named = [number for number, seed in enumerate(songs.seeds) if seed < budget.songs]
    figures: dict[str, object] = {}
    root = output / "checkpoints"
    write_text_encoder(root / TEXT_ENCODER_FOLDER)
    if vae_folder is None:
        vae = train_vae(songs.wait_for, budget, device, log)
        means, _ = encode_songs(vae, songs.wait_for, named[:512], device)
        figures["latent_scale"] = unit_scale(vae, means)
        _write_vae(root / VAE_FOLDER, vae)
    else:
        shutil.copytree(vae_folder, root / VAE_FOLDER, dirs_exist_ok=True)
    vae = load_vae(root / VAE_FOLDER, dtype=torch.float32, device=device)  # as rounded in the file
    held_out = np.stack([sound_of(HELD_OUT_SEED - 1 - number) for number in range(budget.reconstructed)])
    figures["vae"] = measure(vae, torch.from_numpy(held_out).to(device))
    log("vae", **figures["vae"])
    means, stds = encode_songs(vae, songs.wait_for, named[: 512 if is_short else None], device)
    songs.close()
    figures["latents"] = {
        "mean": float(means.mean()),
        "std": float(means.std()),
        "channel_std_smallest": float(means.std((0, 1)).min()),
        "channel_std_largest": float(means.std((0, 1)).max()),
        "posterior_std": float(stds.mean()),
        "largest": float(means.abs().max()),
    }
    log("latents", **figures["latents"])
    _write_figures(output, figures)
    if is_short:
        return figures
    data = _dataset(root, means, stds, [songs.seeds[number] for number in named], vae, device)
    log("words", prompts=len(data.words.text), longest=data.words.text.shape[1])
    silence = data.silence.T[None].cpu()
    base = train_base(data, budget, log)
    write_model(root / "acestep-v15-base", base, "base", silence)
    turbo = train_turbo(base, data, budget, log)
    write_model(root / "acestep-v15-turbo", turbo, "turbo", silence)
    return figures


def _write_vae(folder: Path, vae: torch.nn.Module) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in vae.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    described = {"_class_name": "AutoencoderOobleck", **VAE}
    (folder / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def _dataset(
    root: Path, means: torch.Tensor, stds: torch.Tensor, seeds: list[int], vae: torch.nn.Module, device: torch.device
) -> Dataset:
    """Put songs and words together: every song is asked for in full, and once more with some metadata missing."""
    texts = load_text_encoder(root / TEXT_ENCODER_FOLDER, dtype=torch.float32, device=device)
    pieces = [compose(seed) for seed in seeds]
    random = np.random.default_rng(SEED)
    prompts = [piece_prompt(piece) for piece in pieces] + [piece_prompt(piece, random) for piece in pieces]
    words = encode_words(texts, prompts, [piece_lyrics(piece) for piece in pieces] * 2)
    silence = encode_silence(vae, MODEL["timbre_fix_frame"], device)[0].T.to(device)
    return Dataset(means, stds, words, silence.contiguous())


def _listen(output: Path, budget: Budget, device: torch.device, ears: Pool) -> dict[str, object]:
    """Play what was asked for in several ways; write the shares, and the first sounds as files."""
    started_at = time.monotonic()
    listener = Listener(output / "checkpoints", device)
    pieces = asked_pieces(budget.judged)
    ways = {
        "base": ("acestep-v15-base", Playing()),
        "base, guidance 3": ("acestep-v15-base", Playing(guidance=3.0)),
        "base, no guidance": ("acestep-v15-base", Playing(guidance=1.0)),
        "base, 20 steps": ("acestep-v15-base", Playing(steps=20)),
        "base, empty condition": ("acestep-v15-base", Playing(is_null=True)),
        "turbo": ("acestep-v15-turbo", Playing()),
    }
    figures: dict[str, object] = {}
    for name, (model, playing) in ways.items():
        sounds = listener.play(model, pieces, playing)
        figures[name] = judge(pieces, ears.map(hear, sounds))
        print(name, figures[name], round(time.monotonic() - started_at, 1), flush=True)  # noqa: T201 - a script
        _write_sounds(output / f"{name.replace(', ', '-').replace(' ', '-')}.wav", sounds[:7])
    return {"heard": figures}


def _write_sounds(path: Path, sounds: list[Sound]) -> None:
    """Write sounds one after the other, as 16-bit WAV."""
    import wave

    samples: NDArray[np.int16] = (np.clip(np.concatenate(sounds, axis=1), -1, 1) * 32_767).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.ascontiguousarray(samples.T).tobytes())


if __name__ == "__main__":
    main()
