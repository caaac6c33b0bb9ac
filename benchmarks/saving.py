"""How long a checkpoint holds training: LoRA rank 64 on the 192 modules of the 2B model (44 M), with AdamW's moments.

usage: saving.py --folder DIR

The frozen weights are one small tensor that all layers share, so that little memory is needed; what is saved is of
real size. "Held" is how long training waits for a save that is written beside it, "written" how long that takes.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn

from woodshed.adapters.lora import attach_lora
from woodshed.models.keys import original_to_diffusers
from woodshed.training.events import Saved
from woodshed.training.resume_point import Position
from woodshed.training.saver import Saver
from woodshed.training.snapshot import Snapshot

WIDTH, KEYS, LAYERS = 2048, 1024, 24


def build_decoder() -> tuple[nn.Module, list[str]]:
    """Return a tree of linear layers with the names of the decoder's, and those names."""
    decoder, names = nn.Module(), []
    for layer in range(LAYERS):
        for block in ("self_attn", "cross_attn"):
            for part, width in (("q_proj", WIDTH), ("k_proj", KEYS), ("v_proj", KEYS), ("o_proj", WIDTH)):
                name = f"layers.{layer}.{block}.{part}"
                linear = nn.Linear(WIDTH, width, bias=False, device="meta")
                linear.weight = nn.Parameter(torch.full((1, 1), 0.01).expand(width, WIDTH), requires_grad=False)
                place = decoder
                *path, last = original_to_diffusers(name).split(".")
                for word in path:
                    if not hasattr(place, word):
                        place.add_module(word, nn.Module())
                    place = getattr(place, word)
                place.add_module(last, linear)
                names.append(name)
    return decoder, names


def main() -> None:
    """Save three times, in the training thread's own time and beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    decoder, names = build_decoder()
    adapter = attach_lora(decoder, names, rank=64, alpha=128, dropout=0, bias="none")
    parameters = list(adapter.trainable_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> float:
        started_at = time.monotonic()
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        return time.monotonic() - started_at

    steps = [step() for _ in range(5)][1:]
    sys.stdout.write(f"{sum(p.numel() for p in parameters):,} parameters, a step alone {max(steps):.2f} s\n")
    with Saver(folder, "run", keep_last=1, step=0) as saver:
        for number in (1, 2, 3):
            position = Position(epoch=number + 1, step=number)
            started_at = time.monotonic()
            saver.begin(
                Saved(folder / f"checkpoint-epoch-{number}", "checkpoint", number, number),
                position,
                lambda at=position: Snapshot.take(adapter, optimizer, at, facts={}, scaler={}, recipe={}),  # type: ignore[misc]
            )
            held, beside = time.monotonic() - started_at, []
            while not list(saver.done()):
                beside.append(step())
            written = time.monotonic() - started_at
            sys.stdout.write(
                f"save {number}: held {held:.2f} s, written in {written:.1f} s, during which {len(beside)} steps were "
                f"taken, the longest {max(beside):.2f} s\n"
            )


if __name__ == "__main__":
    main()
