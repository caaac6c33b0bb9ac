"""How much memory a training step will need, part by part, before anything is loaded.

The parts that hold weights are counted exactly. What the backward pass keeps is worked out from the sizes in
config.json and the longest song; its factors were fitted to measurements and are an estimate.

Letters: N tokens of the longest song, D width of the decoder, I width of its MLP.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from woodshed.models.config import ModelConfig
from woodshed.models.decoder import build_decoder
from woodshed.models.frozen import BITS
from woodshed.settings.schema import OptimizerType

GIB = 2**30
BASIS = (
    "An estimate: weights and optimizer are counted; activations are fitted to the 2B model with a LoRA of rank 64 "
    "on an NVIDIA H200 (60 to 600 s of music) and may be off by a fifth."
)

STREAM = 40
"""Bytes kept per token, block and unit of D beside MLP and adapter: queries, keys, values, modulation, and norms, which
compute in float32 whatever the rest does."""
STREAM_COMPILED = 17
"""The same where the compiler makes the kernels: it computes again what costs nothing."""
MLP = 3
"""Numbers kept per token, block and unit of I: gate, up, and their product's factor."""
RECOMPUTED = 1.3
"""With checkpointing one block's activations are alive, and its gradients while it is walked back through."""
RECOMPUTED_COMPILED = 2.0
"""The same where the compiler plans it."""
COPIES_COMPILED = 4
"""Bytes per trained number: what it is cast to, and the gradient of that."""
WORKSPACE_COMPILED = int(0.15 * GIB)
"""What the matrix products of a captured graph work in, and its inputs."""
DENSE = 8
"""Bytes kept per element of a weight that a weight-decomposed LoKr rebuilds: two matrices in float32."""
FUSED_SMALL = 4096
"""bitsandbytes keeps the moments of tensors smaller than this in float32."""
RESERVE = GIB
"""CUDA context, kernels and what the allocator keeps ready; measured 1.0 GiB beside what is allocated."""

# Source: fitted to our own measurements of the 2B model in bf16 on an H200: 6.3, 14.6 and 31.1 GiB at 60, 240 and
# 600 s with everything kept; 3.4, 4.1 and 5.4 GiB with every block recomputed. Compiled and captured, without the
# optimizer's state: 5.5, 10.9 and 21.8 GiB with everything kept, 3.8, 4.3 and 5.7 GiB with every block recomputed.


@dataclass(frozen=True)
class Trained:
    """What is trained, as far as memory is concerned."""

    shapes: Sequence[tuple[int, ...]]  # of every trained tensor
    inputs: Sequence[int]  # in_features of every adapted layer
    keeps_mask: bool = False  # dropout keeps a byte for each input number
    dense: int = 0  # elements of weights that are rebuilt in every step

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device while a step runs."""

    frozen: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    reserve: int
    songs: int = 0  # that are kept there

    @property
    def total(self) -> int:
        """The whole process."""
        return sum(getattr(self, part.name) for part in fields(self))

    def parts(self) -> dict[str, int]:
        """Return every part by name, in order."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def estimate_memory(
    config: ModelConfig,
    trained: Trained,
    *,
    dtype: torch.dtype,
    optimizer_type: OptimizerType,
    frames: int,
    batch_size: int,
    recomputed: float,
    is_compiled: bool,
    is_cuda: bool,
    packed: str | None = None,
) -> MemoryEstimate:
    """Add up what a training step holds.

    Args:
        config: of the model.
        trained: the adapter.
        dtype: of the frozen weights and the computation; the adapter and everything about it is float32.
        optimizer_type: decides how much is remembered per trained number.
        frames: latent frames of the longest song.
        batch_size: songs in a step; shorter ones are padded to the longest.
        recomputed: share of the blocks that are computed again in the backward pass, 0 to 1.
        is_compiled: whether the compiler makes the blocks' kernels, which keep less.
        is_cuda: a CUDA context needs room of its own.
        packed: how the linear layers of the blocks are held in fewer bits; None for not so.
    """
    tokens = math.ceil(frames / config.patch_size) * batch_size
    return MemoryEstimate(
        frozen=frozen_bytes(config, dtype, packed),
        adapter=trained.count * 4,
        gradients=trained.count * 4,
        optimizer=optimizer_bytes(optimizer_type, trained.shapes),
        activations=activation_bytes(
            config, trained, tokens=tokens, itemsize=dtype.itemsize, recomputed=recomputed, is_compiled=is_compiled
        ),
        workspace=COPIES_COMPILED * trained.count + WORKSPACE_COMPILED if is_compiled else 0,
        reserve=RESERVE if is_cuda else 0,
    )


def count_decoder(config: ModelConfig) -> int:
    """Return how many numbers the frozen decoder holds."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_decoder(config).parameters())


def frozen_bytes(config: ModelConfig, dtype: torch.dtype, packed: str | None) -> int:
    """Return what the frozen decoder takes, and the largest weight that is unpacked while it is computed with."""
    whole = count_decoder(config) * dtype.itemsize
    if packed is None:
        return whole
    with torch.device("meta"):
        layers = build_decoder(config).layers
    sizes = [module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    return round(whole - sum(sizes) * (dtype.itemsize - BITS[packed] / 8) + max(sizes) * dtype.itemsize)


def optimizer_bytes(optimizer_type: OptimizerType, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return what an optimizer remembers about the trained tensors, in bytes."""
    return sum(_state_bytes(optimizer_type, shape) for shape in shapes)


def _state_bytes(optimizer_type: OptimizerType, shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    match optimizer_type:
        case "adamw":
            return 8 * count  # two moments
        case "adamw8bit":
            return 2 * count if count >= FUSED_SMALL else 8 * count
        case "adafactor":
            return 4 * (sum(shape[-2:]) * math.prod(shape[:-2]) if len(shape) >= 2 else count)  # a row and a column
        case "prodigy":
            return 16 * count  # two moments, the starting point, and the sum that finds the rate


def activation_bytes(
    config: ModelConfig, trained: Trained, *, tokens: int, itemsize: int, recomputed: float, is_compiled: bool = False
) -> int:
    """Return what the backward pass needs of the forward pass, in bytes."""
    layers = config.num_hidden_layers
    stream = STREAM_COMPILED if is_compiled else STREAM
    base = stream * config.hidden_size + itemsize * MLP * config.intermediate_size
    keeps_mask = trained.keeps_mask and not is_compiled
    adapters = sum(trained.inputs) * (itemsize + keeps_mask) / layers  # of an average block
    block = tokens * (base + adapters) + DENSE * trained.dense / layers
    again = recomputed * layers
    alive = (RECOMPUTED_COMPILED if is_compiled else RECOMPUTED) * block if again else 0
    return round((layers - again) * block + again * tokens * config.hidden_size * itemsize + alive)


def device_memory(device: torch.device) -> int | None:
    """Return the bytes of memory a device has, of the host for those that share its memory; None when unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
