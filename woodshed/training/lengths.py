"""Few lengths instead of many, so that what is made for a length is used again.

Lengths are rounded up to a grid that grows with them: at most 3 % more tokens of the song, and a quarter more of the
conditions. The grid depends on nothing but the length, so a song always meets the same kernels. What fills up is told
by lengths and has no influence.
"""

from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from woodshed.training.micro_step import Inputs

SONG_STEPS, CONDITION_STEPS = 32, 4  # of the grid between a power of two and the next
FEWEST = 160  # on both grids, and two blocks of 128: for a single one, kernels would be compiled anew


def rounded_up(count: int, steps: int) -> int:
    """Return the next number on the grid: `steps` even steps between a power of two and the next, each at least 8."""
    step = max(8, (1 << count.bit_length() - 1) // steps)
    return max(FEWEST, -(-count // step) * step)


def by_length(inputs: Inputs, patch_size: int) -> list[Inputs]:
    """Split songs of different lengths, which would pad each other, and fill each group up to the grid.

    Songs in turn cost no more time than songs side by side unless they are short, and less memory. Conditions of
    different lengths are side by side: they cost little, and short songs that were cut to one length gain by it.

    Args:
        inputs: of B songs, on any device, lengths on the CPU.
        patch_size: frames per token.

    Returns:
        Parts with lengths for every song, in order of their first song.
    """
    batch, longest = inputs.latents.shape[:2]
    frames = [longest] * batch if inputs.frame_lengths is None else inputs.frame_lengths.tolist()
    widest = inputs.conditions.shape[1]
    tokens = [widest] * batch if inputs.condition_lengths is None else inputs.condition_lengths.tolist()
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(batch):
        goal = rounded_up(-(-frames[row] // patch_size), SONG_STEPS) * patch_size
        groups[goal].append(row)
    return [_part(inputs, rows, goal, frames, tokens) for goal, rows in groups.items()]


def _part(inputs: Inputs, rows: list[int], goal: int, frames: list[int], tokens: list[int]) -> Inputs:
    width = rounded_up(max(tokens[row] for row in rows), CONDITION_STEPS)
    return replace(
        inputs,
        rows=tuple(inputs.rows[row] for row in rows),
        latents=_filled(inputs.latents, rows, goal),
        context=_filled(inputs.context, rows, goal),
        noise=_filled(inputs.noise, rows, goal),
        conditions=_filled(inputs.conditions, rows, width),
        t=inputs.t[rows],
        dropped=inputs.dropped[rows],
        frame_lengths=torch.tensor([frames[row] for row in rows]),
        condition_lengths=torch.tensor([tokens[row] for row in rows]),
    )


def _filled(values: Tensor, rows: list[int], length: int) -> Tensor:
    """Return some rows of (B, T, C), cut or filled up with zeros to a length."""
    filled = values.new_zeros(len(rows), length, values.shape[2])
    kept = min(length, values.shape[1])
    for place, row in enumerate(rows):
        filled[place, :kept] = values[row, :kept]
    return filled
