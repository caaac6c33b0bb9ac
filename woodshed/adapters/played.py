"""An adapter that was read from a file, on a decoder to be listened to: nothing of it trains."""

from functools import partial

import torch
from torch import Tensor, nn

from woodshed.adapters.adapter import TrainedBiases, find_linear_layers
from woodshed.adapters.changes import Change
from woodshed.adapters.saved import SavedAdapter


class PlayedAdapter:
    """Adds what an adapter's changes give to the outputs of a decoder's layers.

    Args:
        decoder: with the module names of diffusers; changed in place.
        saved: fits the decoder.
        strength: what all differences are multiplied by.
    """

    def __init__(self, decoder: nn.Module, saved: SavedAdapter, strength: float) -> None:
        self.strength = strength
        self._linears = find_linear_layers(decoder, saved.modules)
        self.changes = {
            module: saved.changes[module].to(linear.weight.device) for module, linear in self._linears.items()
        }
        for module, linear in self._linears.items():
            linear.register_forward_hook(partial(_add, self.changes[module], strength))
        _set_biases(decoder, saved, strength)

    def effective_delta(self, module: str) -> Tensor:
        """Return what is added to the weight of a module: (out, in), float32, on the CPU."""
        weight = self._linears[module].weight.detach().double()
        return (self.changes[module].delta(weight) * self.strength).float().cpu()


@torch.no_grad()
def _add(change: Change, strength: float, linear: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + change.outputs(inputs[0], linear.weight) * strength


def _set_biases(decoder: nn.Module, saved: SavedAdapter, strength: float) -> None:
    biases = TrainedBiases(decoder, saved.bias_names, "all")
    for name, parameter in biases.parameters.items():
        base = biases.base[name]
        parameter.data = base + strength * (saved.bias(name, base).to(base) - base)
    decoder.requires_grad_(False)
