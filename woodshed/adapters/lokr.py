"""LoKr: W x + s kron(w1, w2) x, either factor whole or a product of two low-rank ones.

LyCORIS's LokrModule holds the parameters: it decides their shapes, draws them, and defines the scale. The forward pass
is ours: it multiplies by the two factors in turn and never builds their Kronecker product, and it follows autocast.

Shapes: W (out, in) = (l k, m n), w1 (l, m), w2 (k, n) = w2_a (k, dim) @ w2_b (dim, n).

Source: Yeh et al. 2024, https://arxiv.org/abs/2309.14859; shape rules of lycoris-lora 4.1.3.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from lycoris.functional.general import factorization
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn
from torch.nn import Parameter

from woodshed.adapters.adapter import RECIPE_KEY, Adapter, Recipe, TrainedBiases, find_linear_layers, train_biases
from woodshed.adapters.targets import Shapes
from woodshed.settings.schema import BiasMode
from woodshed.storage import save_tensors

WEIGHTS_NAME = "lokr_weights.safetensors"
BIAS_PREFIX = "diffusion_model.decoder."
_CONTAINER = "woodshed_lokr"

_lycoris_log = logging.getLogger("LyCORIS")
_lycoris_log.handlers = [logging.NullHandler()]  # it prints to the terminal; let the program's own handlers decide
_lycoris_log.propagate = True


@dataclass(frozen=True)
class LokrSettings:
    """The switches of the algorithm, as the settings reference names them."""

    linear_dim: int
    linear_alpha: float
    factor: int = -1
    decompose_both: bool = False
    use_tucker: bool = False
    use_scalar: bool = False
    weight_decompose: bool = False


@dataclass(frozen=True)
class LokrShape:
    """What the settings come to on a linear layer of one size."""

    w1: tuple[int, int]
    w2: tuple[int, int]
    is_w1_whole: bool
    is_w2_whole: bool
    scale: float
    num_parameters: int

    @classmethod
    def of(cls, out_features: int, in_features: int, settings: LokrSettings) -> "LokrShape":
        """Apply LyCORIS's rules to a layer."""
        (rows1, rows2), (columns1, columns2) = (
            factorization(size, settings.factor) for size in (out_features, in_features)
        )
        dim = settings.linear_dim
        is_w1_whole = not (settings.decompose_both and dim < max(rows1, columns1) / 2)
        is_w2_whole = dim >= max(rows2, columns2) / 2
        return cls(
            w1=(rows1, columns1),
            w2=(rows2, columns2),
            is_w1_whole=is_w1_whole,
            is_w2_whole=is_w2_whole,
            scale=1.0 if is_w1_whole and is_w2_whole else settings.linear_alpha / dim,
            num_parameters=(rows1 * columns1 if is_w1_whole else dim * (rows1 + columns1))
            + (rows2 * columns2 if is_w2_whole else dim * (rows2 + columns2))
            + settings.use_scalar
            + settings.weight_decompose * out_features,
        )

    def __str__(self) -> str:
        """Return one line for the review before a run."""
        w1, w2 = (
            f"{name} {rows}x{columns} {'whole' if is_whole else 'low-rank'}"
            for name, (rows, columns), is_whole in (
                ("w1", self.w1, self.is_w1_whole),
                ("w2", self.w2, self.is_w2_whole),
            )
        )
        return f"{w1}, {w2}, scale {self.scale:g}, {self.num_parameters:,} parameters"


@dataclass(frozen=True)
class LokrDescription:
    """What a LoKr will be, known without the model."""

    shapes: Mapping[str, LokrShape]  # by module
    inert: Mapping[str, str]  # settings without effect here, each with the reason

    @property
    def num_parameters(self) -> int:
        """How many numbers will be trained."""
        return sum(shape.num_parameters for shape in self.shapes.values())

    def lines(self) -> list[str]:
        """Return one line for each kind of layer."""
        return [f"{count} x {shape}" for shape, count in Counter(self.shapes.values()).items()]


def describe_lokr(shapes: Shapes, settings: LokrSettings) -> LokrDescription:
    """Work out effective shapes, scale and size on the target layers, and which settings do nothing."""
    found = {name: LokrShape.of(*shape, settings) for name, shape in shapes.items()}
    largest_w1 = max(max(shape.w1) for shape in found.values())
    inert = {
        "lokr_use_tucker": "Tucker decomposition exists for convolutions only, and every adapted layer is linear",
    }
    if settings.linear_dim >= largest_w1 / 2:
        inert["lokr_decompose_both"] = (
            f"the first factor is at most {largest_w1} wide and stays whole unless lokr_linear_dim is below "
            f"{largest_w1 / 2:g}"
        )
    if all(shape.is_w1_whole and shape.is_w2_whole for shape in found.values()):
        largest_w2 = max(max(shape.w2) for shape in found.values())
        inert["lokr_linear_dim"] = (
            f"both factors are whole matrices; the second becomes low-rank when this is below {largest_w2 / 2:g}, "
            "or with a smaller lokr_factor"
        )
        inert["lokr_linear_alpha"] = "both factors are whole matrices, and then the scale is always 1"
    return LokrDescription(found, inert)


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
            flat_name(name),
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


def attach_factors(
    decoder: nn.Module,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    norms: Mapping[str, Tensor | None],
    *,
    strength: float,
) -> "LokrAdapter":
    """Put a trained LoKr on a decoder, to be listened to.

    Args:
        decoder: with the module names of diffusers; changed in place.
        factors: both factors as whole matrices, scale included, by original module name; any split that fits.
        norms: (out, 1) of a weight decomposition, or None.
        strength: what the weight differences are multiplied by.
    """
    layers = {}
    for name, linear in find_linear_layers(decoder, list(factors)).items():
        norm = norms[name]
        has_norm = norm is not None
        layer = LokrModule(flat_name(name), linear, strength, full_matrix=True, weight_decompose=has_norm)
        layer.lokr_w1, layer.lokr_w2 = (Parameter(factor.float()) for factor in factors[name])
        if norm is not None:
            layer.dora_scale = Parameter(norm.float())
        layers[name] = layer.to(linear.weight.device)
    return LokrAdapter(decoder, layers, None, train_biases(decoder, [], "none"))


def flat_name(module: str) -> str:
    """Return how LyCORIS files call a module."""
    return "lycoris_" + module.replace(".", "_")


def _factors(layer: LokrModule) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return w1 with the scale and the scalar multiplied in, and w2 as the matrices to apply one after the other."""
    w1 = layer.lokr_w1 if layer.use_w1 else layer.lokr_w1_a @ layer.lokr_w1_b
    return w1 * (layer.scalar * layer.scale), (layer.lokr_w2,) if layer.use_w2 else (layer.lokr_w2_b, layer.lokr_w2_a)


def _apply_factors(layer: LokrModule, x: Tensor) -> Tensor:
    """Return scale kron(w1, w2) x for x (..., in), as two small matrix products."""
    w1, w2 = _factors(layer)
    grid = x.unflatten(-1, (w1.shape[1], -1))  # (..., m, n)
    for matrix in w2:
        grid = F.linear(grid, matrix.to(x.dtype))  # (..., m, k)
    grid = F.linear(grid.transpose(-1, -2), (w1 * layer.multiplier).to(x.dtype))  # (..., k, l)
    return grid.transpose(-1, -2).flatten(-2)


def _dense_delta(layer: LokrModule, cast: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what the layer adds to its weight, (out, in), computed on tensors as `cast` makes them."""
    w1, w2 = _factors(layer)
    delta = torch.kron(cast(w1), reduce(torch.matmul, map(cast, reversed(w2))))
    if layer.wd:
        weight = cast(layer.org_module[0].weight)
        changed = weight + delta
        delta = changed * (cast(layer.dora_scale) / changed.norm(dim=1, keepdim=True)) - weight
    return delta * float(layer.multiplier)


def _add_output(layer: LokrModule, _linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Add the layer's part to the output of its linear layer; a forward hook."""
    (x,) = inputs
    if not layer.wd:
        return output + _apply_factors(layer, x)
    delta = _dense_delta(layer, Tensor.float)  # a bf16 weight would swallow a small change
    return output + F.linear(x, delta.to(x.dtype))


class LokrAdapter(Adapter):
    """A LoKr on a decoder.

    Args:
        decoder: gets the layers as a submodule.
        layers: by original module name.
        settings: with which a player rebuilds the layers; None for one that was itself read from a file, whose layers
            may follow no setting: it can be played but not saved.
        biases: those of the base model that train too.
    """

    family = "lokr"

    def __init__(
        self,
        decoder: nn.Module,
        layers: Mapping[str, LokrModule],
        settings: LokrSettings | None,
        biases: TrainedBiases,
    ) -> None:
        self.layers = dict(layers)
        self.settings = settings
        linears = {name: layer.org_module[0] for name, layer in layers.items()}
        for name, linear in linears.items():
            linear.register_forward_hook(partial(_add_output, layers[name]))
        # Part of the decoder, so that devices, DistributedDataParallel and counts see the parameters.
        decoder.add_module(_CONTAINER, nn.ModuleList(layers.values()))
        parameters = {name: dict(layer.named_parameters()) for name, layer in layers.items()}
        super().__init__(linears, parameters, biases, undecayed=["dora_scale"])

    def effective_delta(self, module: str) -> Tensor:
        """Return scale kron(w1, w2), or with weight decomposition what that and the norms change."""
        with torch.no_grad():
            delta: Tensor = _dense_delta(self.layers[module], lambda tensor: tensor.cpu().double()).float()
            return delta

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write the LyCORIS file that ACE-Step, ComfyUI and LyCORIS read.

        The scalar is multiplied into the first factor, and that is stored whole: with `use_scalar` ACE-Step spoils the
        layers that have no LoKr, and the C++ players know no low-rank first factor.
        """
        assert self.settings is not None, "a LoKr that was read from a file cannot be saved"
        tensors = {}
        for module in self.modules:
            for part, value in _file_parts(self.layers[module]).items():
                tensors[f"{flat_name(module)}.{part}"] = value.detach().float().cpu().contiguous()
        for name, difference in self.biases.differences().items():
            tensors[f"{BIAS_PREFIX}{name.removesuffix('.bias')}.diff_b"] = difference
        header = {
            "format": "lycoris",
            "algo": "lokr",
            "lokr_config": json.dumps(_lokr_config(self.settings, self.modules)),
            RECIPE_KEY: json.dumps(dict(recipe)),
        }
        save_tensors(folder / WEIGHTS_NAME, tensors, header)


def _file_parts(layer: LokrModule) -> dict[str, Tensor]:
    """Return the tensors of one module under LyCORIS's names."""
    w1 = layer.lokr_w1 if layer.use_w1 else layer.lokr_w1_a @ layer.lokr_w1_b
    parts = {"lokr_w1": w1 * layer.scalar, "alpha": torch.tensor(layer.scale * layer.lora_dim)}
    if layer.use_w2:
        parts["lokr_w2"] = layer.lokr_w2
    else:
        parts |= {"lokr_w2_a": layer.lokr_w2_a, "lokr_w2_b": layer.lokr_w2_b}
    if layer.wd:
        parts["dora_scale"] = layer.dora_scale
    return parts


def _lokr_config(settings: LokrSettings, modules: Sequence[str]) -> dict[str, object]:
    """Return the settings with which ACE-Step rebuilds the modules that the file's tensors fit."""
    return {
        "linear_dim": settings.linear_dim,
        "linear_alpha": settings.linear_alpha,
        "factor": settings.factor,
        "decompose_both": False,
        "use_tucker": settings.use_tucker,
        "use_scalar": False,
        "weight_decompose": settings.weight_decompose,
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "full_matrix": False,
        "bypass_mode": False,  # older LyCORIS forgets the scale in it
        "rs_lora": False,
        "unbalanced_factorization": False,
    }
