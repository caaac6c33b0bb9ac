"""The base model's weights, read one at a time from its checkpoint, for conversions that depend on them."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from woodshed.errors import AdapterError
from woodshed.models.checkpoints import Checkpoint
from woodshed.models.weights import StoredTensor, read_headers

PART = "decoder."
LONGEST_NAME = 100


class BaseWeights:
    """The decoder's weights and biases by original name.

    Args:
        checkpoint: of the model that the adapter was trained on; None where nobody named one.
        recipe: of the adapter, whose word for that model goes into the message.
    """

    def __init__(self, checkpoint: Checkpoint | None, recipe: Mapping[str, Any] | None = None) -> None:
        self.checkpoint = checkpoint
        self._name = (recipe or {}).get("base_model")

    @property
    def is_known(self) -> bool:
        """Whether there are weights to read."""
        return self.checkpoint is not None

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor of the decoder, by its name in the decoder."""
        if self.checkpoint is None:
            raise AdapterError(
                f"This conversion depends on the weights of the base model. Name {self._which()} "
                "with --checkpoint-dir and --model."
            )
        headers = read_headers(self.checkpoint.weight_files)
        return {name.removeprefix(PART): tensor for name, tensor in headers.items() if name.startswith(PART)}

    def _which(self) -> str:
        """Return how the adapter calls its base model; what a file says may be anything."""
        name = self._name
        is_usable = isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME
        return f"{name}, which the adapter was trained on," if is_usable else "the one that the adapter was trained on"

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of matrices by module name, and of biases by full name."""
        matrices = {
            name.removesuffix(".weight"): tensor.shape
            for name, tensor in self.stored.items()
            if name.endswith(".weight") and len(tensor.shape) == 2
        }
        return matrices | {name: tensor.shape for name, tensor in self.stored.items() if name.endswith(".bias")}

    def weight(self, module: str) -> Tensor:
        """Return the weight of a module: (out, in), float32.

        Raises:
            AdapterError: when no model was named.
        """
        return self.stored[f"{module}.weight"].read(dtype=torch.float32)

    def bias(self, name: str) -> Tensor:
        """Return a bias by its full name, float32.

        Raises:
            AdapterError: when no model was named.
        """
        return self.stored[name].read(dtype=torch.float32)
