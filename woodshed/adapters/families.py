"""The families of adapters: from the settings of a run to an adapter on a decoder, and to its size beforehand."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from woodshed.adapters.adapter import Adapter
from woodshed.adapters.dora import attach_dora
from woodshed.adapters.loha import attach_loha
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings, describe_lokr
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.oft import attach_oft, require_block_size
from woodshed.adapters.ranks import module_ranks
from woodshed.adapters.targets import Shapes
from woodshed.settings.schema import TrainSettings


def lokr_settings(settings: TrainSettings) -> LokrSettings:
    """Return the LoKr switches among the settings."""
    return LokrSettings(
        linear_dim=settings.lokr_linear_dim,
        linear_alpha=settings.lokr_linear_alpha,
        factor=settings.lokr_factor,
        decompose_both=settings.lokr_decompose_both,
        use_tucker=settings.lokr_use_tucker,
        use_scalar=settings.lokr_use_scalar,
        weight_decompose=settings.lokr_weight_decompose,
    )


def attach_adapter(decoder: nn.Module, targets: Sequence[str], settings: TrainSettings) -> Adapter:
    """Freeze a decoder and put a trainable adapter of the chosen family on it.

    Args:
        decoder: changed in place.
        targets: original names of the linear layers.
        settings: of the run.

    Raises:
        AdapterError: when the decoder lacks a target, or the settings do not fit one.
    """
    if settings.adapter_type == "lokr":
        return attach_lokr(decoder, targets, lokr_settings(settings), bias=settings.bias)
    if settings.adapter_type == "oft":
        return attach_oft(decoder, targets, block_size=settings.oft_block_size)
    size: dict[str, Any] = {"rank": settings.rank, "alpha": settings.alpha, "rank_pattern": settings.rank_pattern}
    if settings.adapter_type == "loha":
        return attach_loha(decoder, targets, **size)
    attach = {"lora": attach_lora, "dora": attach_dora}[settings.adapter_type]
    return attach(decoder, targets, **size, dropout=settings.dropout, bias=settings.bias)


def count_parameters(shapes: Shapes, settings: TrainSettings) -> int:
    """Return how many numbers the adapter trains on these layers, without biases.

    Raises:
        AdapterError: when the settings do not fit a layer.
    """
    if settings.adapter_type == "lokr":
        return describe_lokr(shapes, lokr_settings(settings)).num_parameters
    return sum(map(math.prod, tensor_shapes(shapes, settings)))


def tensor_shapes(shapes: Shapes, settings: TrainSettings) -> list[tuple[int, ...]]:
    """Return the shape of every tensor that an adapter other than a LoKr trains on these layers, without biases.

    Raises:
        AdapterError: when the settings do not fit a layer.
    """
    if settings.adapter_type == "oft":
        size = settings.oft_block_size
        require_block_size(shapes, size)
        return [(columns // size, size * (size - 1) // 2) for _, columns in shapes.values()]
    ranks = module_ranks(shapes, settings.rank, settings.alpha, settings.rank_pattern)
    found: list[tuple[int, ...]] = []
    for name, (rows, columns) in shapes.items():
        rank = ranks[name][0]
        found += [(rank, columns), (rows, rank)] * (2 if settings.adapter_type == "loha" else 1)
        found += [(rows,)] if settings.adapter_type == "dora" else []
    return found
