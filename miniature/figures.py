"""`python -m miniature.figures`: measure the VAE, and count what the ears hear of what the models play.

Prints one line of JSON for each way of playing, and writes them all to a file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from woodshed.models.load import load_vae
from woodshed.toy.composer import compose, render
from woodshed.toy.listener import HELD_OUT_SEED, Listener, Playing, asked_pieces, hear_all, judge

WAYS = {
    "base": ("acestep-v15-base", Playing(steps=20, guidance=3.0)),
    "base, as generate plays it": ("acestep-v15-base", Playing()),
    "base, no guidance": ("acestep-v15-base", Playing(steps=20, guidance=1.0)),
    "base, empty condition": ("acestep-v15-base", Playing(steps=20, is_null=True)),
    "turbo": ("acestep-v15-turbo", Playing()),
}
RECONSTRUCTED = 32


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m miniature.figures", description="Measure a checkpoint root.")
    parser.add_argument("root", type=Path, help="the checkpoints")
    parser.add_argument("output", type=Path, help="a JSON file")
    parser.add_argument("--count", type=int, default=70, help="samples for each way of playing")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help="which ways")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"vae": measure_vae(arguments.root)}
    print(json.dumps(figures), flush=True)  # noqa: T201 - a script
    listener, pieces = Listener(arguments.root, torch.device("cpu")), asked_pieces(arguments.count)
    for name in arguments.ways:
        model, playing = WAYS[name]
        figures[name] = judge(pieces, hear_all(listener.play(model, pieces, playing)))
        print(json.dumps({name: figures[name]}), flush=True)  # noqa: T201 - a script
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def measure_vae(root: Path) -> dict[str, float]:
    """Compare held-out songs with what the VAE makes of them; return signal to noise in dB."""
    vae = load_vae(root / "vae", dtype=torch.float32, device="cpu")
    ratios, spread = [], []
    for number in range(RECONSTRUCTED):
        sound = torch.from_numpy(render(compose(HELD_OUT_SEED - 1 - number)))
        latents = vae.encode(sound[None]).latent_dist.mean
        noise = sound - vae.decode(latents).sample[0]
        ratios.append(10 * float(torch.log10(sound.square().mean() / noise.square().mean())))
        spread.append(float(latents.std()))
    return {
        "snr_db": round(float(np.mean(ratios)), 1),
        "snr_db_worst": round(min(ratios), 1),
        "latent_std": round(float(np.mean(spread)), 2),
    }


if __name__ == "__main__":
    main()
