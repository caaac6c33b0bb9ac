"""OFT, through PEFT: W R^T x, where R turns blocks of the input and starts as the identity.

Each block is the Cayley-Neumann series of a skew-symmetric matrix, whose upper triangle is trained: shapes
(in / block, block (block - 1) / 2). There is no scale. Source: Qiu et al. 2023, https://arxiv.org/abs/2306.07280.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import OFTConfig
from torch import Tensor, nn
from torch.nn import Parameter

from woodshed.adapters.adapter import (
    Adapter,
    Copier,
    Recipe,
    find_linear_layers,
    quote_some,
    still_layer,
    train_biases,
)
from woodshed.adapters.changes import Rotation
from woodshed.adapters.content import Content
from woodshed.adapters.injection import NAME, inject
from woodshed.adapters.peft_format import write_peft
from woodshed.adapters.targets import Shapes
from woodshed.errors import AdapterError

TERMS = 5  # of the series; PEFT's default


def require_block_size(shapes: Shapes, block_size: int) -> None:
    """Stop unless the input of every layer can be cut into blocks of this size.

    Raises:
        AdapterError: naming layers whose input cannot.
    """
    odd = [f"{name} ({columns} inputs)" for name, (_, columns) in shapes.items() if columns % block_size]
    if odd:
        raise AdapterError(
            f"oft_block_size {block_size} does not divide the inputs of {quote_some(odd)}. "
            "Choose a divisor, such as 16 or 32."
        )


def attach_oft(decoder: nn.Module, targets: Sequence[str], *, block_size: int) -> "OftAdapter":
    """Freeze a decoder and put a trainable rotation before some of its linear layers.

    Args:
        decoder: with the module names of diffusers; changed in place.
        targets: original names of the linear layers.
        block_size: sides of a rotation; divides the input of every target.

    Raises:
        AdapterError: when the decoder lacks a target, or the size does not divide an input.
    """
    linears = find_linear_layers(decoder, targets)
    require_block_size({name: (one.out_features, one.in_features) for name, one in linears.items()}, block_size)
    decoder.requires_grad_(False)
    config = OFTConfig(r=0, oft_block_size=block_size, use_cayley_neumann=True, num_cayley_neumann_terms=TERMS)
    layers = inject(decoder, targets, config)
    for target, layer in layers.items():
        rotation, device = layer.oft_R[NAME], linears[target].weight.device
        rotation.weight = Parameter(torch.zeros(rotation.weight.shape, device=device))
        rotation.rows, rotation.cols = torch.triu_indices(block_size, block_size, 1, device=device)
    return OftAdapter(decoder, linears, layers)


class OftAdapter(Adapter):
    """An OFT on a decoder."""

    family = "oft"

    def __init__(self, decoder: nn.Module, linears: Mapping[str, nn.Linear], layers: Mapping[str, Any]) -> None:
        self._rotations = {module: layer.oft_R[NAME] for module, layer in layers.items()}
        parameters = {module: {"oft_R.weight": layer.weight} for module, layer in self._rotations.items()}
        super().__init__(linears, parameters, train_biases(decoder, [], "none"))

    def change(self, module: str) -> Rotation:
        """Return the rotations as they are now: float32, on the CPU."""
        return Rotation(self._parameters[f"{module}.oft_R.weight"].detach().float().cpu(), TERMS)

    def hold(self, copied: Copier) -> None:
        """Take copies, in PEFT's modules too."""
        super().hold(copied)
        self._rotations = {name: still_layer(rotation, copied) for name, rotation in self._rotations.items()}

    def effective_delta(self, module: str) -> Tensor:
        """Return W R^T - W, with R as PEFT itself builds it."""
        weight = self.base_weight(module)
        with torch.no_grad():
            rotation: Tensor = self._rotations[module].get_weight().cpu().double()
        return (weight.double() @ rotation.T - weight.double()).float()

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write the PEFT folder that ACE-Step loads."""
        write_peft(folder, Content({module: self.change(module) for module in self.modules}, recipe))
