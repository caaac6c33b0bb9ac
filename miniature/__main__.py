"""`python -m miniature`: train everything, write the checkpoints, and measure them."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from miniature.decoder import Dataset, train_base, train_turbo, write_model
from miniature.sizes import MODEL, SEED, Budget
from miniature.stage import Log
from miniature.words import encode_words, incomplete_prompt, write_text_encoder
from woodshed.data.latents import encode_waveform
from woodshed.models.checkpoints import TEXT_ENCODER_FOLDER, VAE_FOLDER
from woodshed.models.load import load_text_encoder, load_vae
from woodshed.toy.composer import Piece, compose
from woodshed.toy.filterbank import CONFIG, build_filterbank, latents_of
from woodshed.toy.listener import piece_lyrics, piece_prompt


def main() -> None:
    """Read the command line and do it all."""
    parser = argparse.ArgumentParser(prog="python -m miniature", description="Train the miniature checkpoints.")
    parser.add_argument("--output", type=Path, required=True, help="checkpoints, log.jsonl and figures.json go here")
    for field in fields(Budget):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    budget = Budget(**{field.name: getattr(arguments, field.name) for field in fields(Budget)})
    train(arguments.output, budget, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def train(output: Path, budget: Budget, device: torch.device) -> None:
    """Make every part and write it as soon as it is there."""
    output.mkdir(parents=True, exist_ok=True)
    log = Log(output / "log.jsonl")
    root = output / "checkpoints"
    pieces = [compose(seed) for seed in range(budget.songs)]
    strengths = np.stack([latents_of(piece) for piece in pieces]).astype(np.float32)
    means, stds = strengths.mean((0, 1)), strengths.std((0, 1))
    log("songs", count=len(pieces))
    write_vae(root / VAE_FOLDER, torch.from_numpy(means), torch.from_numpy(stds))
    write_text_encoder(root / TEXT_ENCODER_FOLDER)
    data = prepare(root, pieces, (strengths - means) / stds, device)
    log("words", prompts=len(data.words.text), longest=data.words.text.shape[1])
    silence = data.silence.T[None].cpu()
    base = train_base(data, budget, log)
    write_model(root / "acestep-v15-base", base, "base", silence)
    turbo = train_turbo(base, data, budget, log)
    write_model(root / "acestep-v15-turbo", turbo, "turbo", silence)


def write_vae(folder: Path, means: Tensor, stds: Tensor) -> None:
    """Write the VAE in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = build_filterbank(means, stds)
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in vae.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    described = {"_class_name": "AutoencoderOobleck", **CONFIG}
    (folder / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def prepare(root: Path, pieces: list[Piece], latents: np.ndarray, device: torch.device) -> Dataset:
    """Put songs and words together: every song is asked for in full, and once more with some metadata missing."""
    place: dict[str, Any] = {"dtype": torch.float32, "device": device}
    texts = load_text_encoder(root / TEXT_ENCODER_FOLDER, **place)
    random = np.random.default_rng(SEED)
    prompts = [piece_prompt(piece) for piece in pieces] + [incomplete_prompt(piece, random) for piece in pieces]
    words = encode_words(texts, prompts, [piece_lyrics(piece) for piece in pieces] * 2)
    silence = torch.zeros(2, MODEL["timbre_fix_frame"] * 1920)
    heard = encode_waveform(load_vae(root / VAE_FOLDER, **place), silence).mean
    return Dataset(torch.from_numpy(latents).to(device), words, heard.to(device))


if __name__ == "__main__":
    main()
