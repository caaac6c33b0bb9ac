"""How long a training run may take: the work of a step, and how fast this machine does such work.

Letters: N tokens of a song, L condition tokens, A width of the attention (heads x head size).
"""

import math
import time
from functools import cache

import torch

from woodshed.models.config import ModelConfig
from woodshed.models.memory import count_decoder

SHARES = {"cuda": 0.15, "xpu": 0.15, "mps": 0.3, "cpu": 0.5}
"""What part of its matrix speed a device reaches in training. Source for CUDA: our measurement on an H200, 0.12 with
240 s of music and 0.19 with 600 s; the others are guesses."""
SHARE_CAPTURED = 0.3
"""The same with compiled blocks in a CUDA graph. Source: our measurement on an H100, 0.23 at 60 s and 0.40 at 240 s."""
LAUNCHES = {"cuda": 0.012, "xpu": 0.012, "mps": 0.012, "cpu": 0.003}
"""Seconds that a block takes at least, however short the song: the time to start its kernels."""


def step_work(config: ModelConfig, *, frames: float, conditions: float, recomputed: float) -> float:
    """Return the floating-point operations of one song's forward and backward pass.

    The frozen weights get no gradients, so that a matrix product costs two in all, three where it is recomputed:
    in a share of the blocks from 0 to 1.
    """
    tokens = frames / config.patch_size
    width = config.num_attention_heads * config.head_dim
    matrices = 2 * count_decoder(config) * tokens
    attention = 0.0
    for kind in config.layer_types[: config.num_hidden_layers]:
        seen = tokens if kind == "full_attention" else min(tokens, 2 * config.sliding_window + 1)
        attention += 4 * tokens * (seen + conditions) * width
    return (2 + recomputed) * matrices + (3.5 + recomputed) * attention


@cache
def matrix_speed(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a matrix product, measured in a tenth of a second."""
    size = 4096 if device.startswith(("cuda", "xpu")) else 512
    one = torch.randn(size, size, device=device).to(dtype)
    _finish(one @ one)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < 0.1:
        _finish(one @ one)
        count += 1
    return 2 * size**3 * count / (time.monotonic() - began)


def _finish(result: torch.Tensor) -> None:
    """Wait until a result is there."""
    result[0, 0].item()


def song_seconds(
    config: ModelConfig, device: torch.device, work: float, speed: float, *, is_captured: bool = False
) -> float:
    """Return how long one song's forward and backward pass may take, `is_captured` in a CUDA graph."""
    if is_captured:
        return work / (speed * SHARE_CAPTURED)
    least = LAUNCHES.get(device.type, 0.012) * config.num_hidden_layers
    return max(work / (speed * SHARES.get(device.type, 0.15)), least)


def about(seconds: float) -> str:
    """Return a time in the rough words that an estimate deserves."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            count = seconds / size
            return f"about {math.ceil(count) if count >= 10 else round(count, 1):g} {unit}"
    return "a minute or two" if seconds >= 60 else "less than a minute"
