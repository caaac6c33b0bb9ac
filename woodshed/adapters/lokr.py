"""LoKr: W x + s kron(w1, w2) x, either factor whole or a product of two low-rank ones.

LyCORIS's LokrModule holds the parameters: it decides their shapes, draws them, and defines the scale. The forward pass
is ours, see `lokr_forward`.

Shapes: W (out, in) = (l k, m n), w1 (l, m), w2 (k, n) = w2_a (k, dim) @ w2_b (dim, n).

Source: Yeh et al. 2024, https://arxiv.org/abs/2309.14859.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

from woodshed.adapters.adapter import (
    Adapter,
    Copier,
    Recipe,
    TrainedBiases,
    find_linear_layers,
    still_layer,
    train_biases,
)
from woodshed.adapters.changes import Norms
from woodshed.adapters.content import Content
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.lokr_forward import add_output, dense_delta
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lycoris_format import LOKR_NAME, write_lycoris
from woodshed.adapters.naming import lycoris_module
from woodshed.settings.schema import BiasMode

_CONTAINER = "woodshed_lokr"

_lycoris_log = logging.getLogger("LyCORIS")
_lycoris_log.handlers = [logging.NullHandler()]  # it prints to the terminal; let the program's own handlers decide
_lycoris_log.propagate = True


def attach_lokr(decoder: nn.Module, targets: Sequence[str], settings: LokrSettings, *, bias: BiasMode) -> "LokrAdapter":
    """Freeze a decoder and put a trainable LoKr on some of its linear layers.

    Args:
        decoder: with the module names of diffusers; changed in place.
        targets: original names of the linear layers.
        settings: passed to LyCORIS as they are.
        bias: which of the base model's biases train too.

    Raises:
        AdapterError: when the decoder lacks a target.
    """
    linears = find_linear_layers(decoder, targets)
    decoder.requires_grad_(False)
    layers = {
        name: LokrModule(
            lycoris_module(name),
            linear,
            1.0,
            settings.linear_dim,
            settings.linear_alpha,
            factor=settings.factor,
            decompose_both=settings.decompose_both,
            use_tucker=settings.use_tucker,
            use_scalar=settings.use_scalar,
            weight_decompose=settings.weight_decompose,
            bypass_mode=not settings.weight_decompose,
        ).to(linear.weight.device)
        for name, linear in linears.items()
    }
    return LokrAdapter(decoder, layers, settings, train_biases(decoder, targets, bias))


class LokrAdapter(Adapter):
    """A LoKr on a decoder.

    Args:
        decoder: gets the layers as a submodule.
        layers: by original module name.
        settings: with which a player rebuilds the layers.
        biases: those of the base model that train too.
    """

    family = "lokr"

    def __init__(
        self,
        decoder: nn.Module,
        layers: Mapping[str, LokrModule],
        settings: LokrSettings,
        biases: TrainedBiases,
    ) -> None:
        self.layers = dict(layers)
        self.settings = settings
        linears = {name: layer.org_module[0] for name, layer in layers.items()}
        for name, linear in linears.items():
            linear.register_forward_hook(partial(add_output, layers[name]))
        # Part of the decoder, so that devices, DistributedDataParallel and counts see the parameters.
        decoder.add_module(_CONTAINER, nn.ModuleList(layers.values()))
        parameters = {name: dict(layer.named_parameters()) for name, layer in layers.items()}
        super().__init__(linears, parameters, biases, undecayed=["dora_scale"])

    def hold(self, copied: Copier) -> None:
        """Take copies, in the layers too."""
        super().hold(copied)
        self.layers = {name: still_layer(layer, copied) for name, layer in self.layers.items()}

    def effective_delta(self, module: str) -> Tensor:
        """Return scale kron(w1, w2), or with weight decomposition what that and the norms change."""
        with torch.no_grad():
            delta: Tensor = dense_delta(self.layers[module], lambda tensor: tensor.cpu().double()).float()
            return delta

    def change(self, module: str) -> Kronecker:
        """Return the factors as they are now, the scalar multiplied into the first: float32, on the CPU."""
        layer = self.layers[module]
        parts = {name: value.detach().float().cpu() for name, value in layer.named_parameters()}
        w1, w2 = (
            (parts[name],) if name in parts else (parts[f"{name}_a"], parts[f"{name}_b"])
            for name in ("lokr_w1", "lokr_w2")
        )
        w1 = (w1[0] * layer.scalar.detach().cpu(), *w1[1:])
        norms = Norms(parts["dora_scale"].flatten()) if "dora_scale" in parts else None
        return Kronecker(w1, w2, layer.scale, norms=norms)

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write the LyCORIS file that ACE-Step, ComfyUI and LyCORIS read."""
        config = {"linear_dim": self.settings.linear_dim, "factor": self.settings.factor}
        changes = {module: self.change(module) for module in self.modules}
        content = Content(changes, recipe, bias_differences=self.biases.differences(), lokr_config=config)
        write_lycoris(folder / LOKR_NAME, content)
