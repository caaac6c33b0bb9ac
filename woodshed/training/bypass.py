"""The base model inside a decoder that carries an adapter, and a decoder that listens in place of training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from woodshed.adapters.adapter import Adapter
from woodshed.models.decoder import Decoder
from woodshed.models.keys import original_to_diffusers


@contextmanager
def listening(decoder: Decoder) -> Iterator[None]:
    """Switch dropout and gradients off, and back on."""
    was_training = decoder.training
    decoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        decoder.train(was_training)


@contextmanager
def without_adapter(decoder: Decoder, adapter: Adapter) -> Iterator[None]:
    """Let a decoder compute as the base model does, to the last bit, whatever family its adapter is of.

    Every adapted layer makes room for a plain one with the same frozen weight, and trained biases for those that they
    started from.
    """
    places = {name: decoder.get_submodule(name) for name in map(original_to_diffusers, adapter.modules)}
    trained = {name: parameter.data for name, parameter in adapter.biases.parameters.items()}
    try:
        for name, parameter in adapter.biases.parameters.items():
            parameter.data = adapter.biases.base[name].to(parameter.data)
        for name, layer in places.items():
            decoder.set_submodule(name, _plain(layer))
        yield
    finally:
        for name, layer in places.items():
            decoder.set_submodule(name, layer)
        for name, value in trained.items():
            adapter.biases.parameters[name].data = value


def _plain(layer: nn.Module) -> nn.Linear:
    """Return a layer without hooks and adapters that shares the frozen weight and bias of another."""
    linear = getattr(layer, "base_layer", layer)
    assert isinstance(linear, nn.Linear)
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    plain.weight, plain.bias = linear.weight, linear.bias
    return plain
