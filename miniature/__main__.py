"""`python -m miniature`: train everything, and write the checkpoints and a log."""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from miniature.decoder import train_base, train_turbo
from miniature.model import Dataset, write_model
from miniature.sizes import MODEL, SEED, Budget
from miniature.stage import Log
from miniature.words import encode_words, incomplete_prompt, write_text_encoder
from woodshed.data.latents import encode_waveform
from woodshed.models.checkpoints import TEXT_ENCODER_FOLDER, VAE_FOLDER
from woodshed.models.devices import repeatable
from woodshed.models.load import load_text_encoder, load_vae
from woodshed.toy.composer import Piece, compose
from woodshed.toy.filterbank import CONFIG, build_filterbank, latents_of
from woodshed.toy.listener import piece_lyrics, piece_prompt

HELD_OUT = 256
"""Songs after those that are trained on, of which the loss is only measured."""


def main() -> None:
    """Read the command line and do it all."""
    parser = argparse.ArgumentParser(prog="python -m miniature", description="Train the miniature checkpoints.")
    parser.add_argument("--output", type=Path, required=True, help="checkpoints and log.jsonl go here")
    for field in fields(Budget):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    arguments = parser.parse_args()
    budget = Budget(**{field.name: getattr(arguments, field.name) for field in fields(Budget)})
    train(arguments.output, budget, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def train(output: Path, budget: Budget, device: torch.device) -> None:
    """Make every part and write it as soon as it is there."""
    output.mkdir(parents=True, exist_ok=True)
    log = Log(output / "log.jsonl")
    root = output / "checkpoints"
    log("device", name=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", torch=torch.__version__)
    pieces = [compose(seed) for seed in range(budget.songs + HELD_OUT)]
    strengths = compute_latents(pieces)
    means, stds = (statistic(strengths[: budget.songs], axis=(0, 1)) for statistic in (np.mean, np.std))
    log("songs", count=len(pieces))
    write_vae(root / VAE_FOLDER, torch.from_numpy(means), torch.from_numpy(stds))
    write_text_encoder(root / TEXT_ENCODER_FOLDER)
    torch.zeros(1, device=device)
    with repeatable():
        torch.set_float32_matmul_precision("high")
        data, held_out = prepare(root, pieces, torch.from_numpy((strengths - means) / stds), device)
        log("words", prompts=len(data.words.text), longest=data.words.text.shape[1])
        silence = data.silence.T[None].cpu()
        base = train_base(data, held_out, budget, log)
        write_model(root / "acestep-v15-base", base, "base", silence)
        turbo = train_turbo(base, data, budget, log)
        write_model(root / "acestep-v15-turbo", turbo, "turbo", silence)


def compute_latents(pieces: list[Piece]) -> NDArray[np.float32]:
    """Return (songs, T, C) of what the encoder makes of each song before it standardises, on all processors."""
    with ProcessPoolExecutor() as processes:
        return np.stack(list(processes.map(latents_of, pieces, chunksize=64))).astype(np.float32)


def write_vae(folder: Path, means: Tensor, stds: Tensor) -> None:
    """Write the VAE in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = build_filterbank(means, stds)
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in vae.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    described = {"_class_name": "AutoencoderOobleck", **CONFIG}
    (folder / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def prepare(root: Path, pieces: list[Piece], latents: Tensor, device: torch.device) -> tuple[Dataset, Dataset]:
    """Put songs and words together: every song is asked for in full, and once more with some metadata missing."""
    place: dict[str, Any] = {"dtype": torch.float32, "device": device}
    texts = load_text_encoder(root / TEXT_ENCODER_FOLDER, **place)
    random = np.random.default_rng(SEED)
    asked = [(piece_prompt(piece), piece_lyrics(piece)) for piece in pieces]
    asked += [(incomplete_prompt(piece, random), piece_lyrics(piece)) for piece in pieces]
    number_of = {pair: number for number, pair in enumerate(dict.fromkeys(asked))}  # many songs share their words
    words = encode_words(texts, [prompt for prompt, _ in number_of], [lyrics for _, lyrics in number_of])
    prompts = torch.tensor([number_of[pair] for pair in asked], device=device).reshape(2, -1)
    silence = torch.zeros(2, MODEL["timbre_fix_frame"] * 1920)
    heard = encode_waveform(load_vae(root / VAE_FOLDER, **place), silence).mean.to(device)
    means, split = latents.to(device), len(pieces) - HELD_OUT
    trained = Dataset(means[:split], prompts[:, :split], words, heard)
    return trained, Dataset(means[split:], prompts[:, split:], words, heard)


if __name__ == "__main__":
    main()
