"""The contract of an adapter: the trained part that sits on a frozen decoder.

Modules and parameters are named as in the original model, so that files, logs and resumes do not depend on the library
that holds the decoder: module `layers.0.self_attn.q_proj`, parameter `layers.0.self_attn.q_proj.lora_A.weight`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from woodshed.adapters.changes import Change
from woodshed.errors import AdapterError
from woodshed.models.keys import diffusers_to_original, original_to_diffusers
from woodshed.settings.schema import BiasMode

Recipe = Mapping[str, Any]
"""What made an adapter and how to play it, as JSON values; travels in the header of its file."""
RECIPE_KEY = "woodshed"
"""Where in that header."""
Copier = Callable[[Parameter], Parameter]
"""Returns the copy of a tensor that trains."""
Layer = TypeVar("Layer", bound=nn.Module)


class Adapter(ABC):
    """An adapter that is attached to a decoder and takes part in its forward pass.

    Args:
        linears: the adapted layers of the base model, by module name.
        parameters: for each adapted module, its trained tensors by a short name; float32.
        biases: the base model's biases that train too, by full name.
        undecayed: short names of those that weight decay must leave alone.
    """

    family: ClassVar[str]

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        parameters: Mapping[str, Mapping[str, Parameter]],
        biases: "TrainedBiases",
        undecayed: Collection[str] = (),
    ) -> None:
        self.modules = tuple(linears)
        self.biases = biases
        self._linears = dict(linears)
        self._parameters: dict[str, Parameter] = {}
        self._module_of: dict[str, str] = {}
        self._undecayed = list(biases.parameters.values())
        for module, parts in parameters.items():
            for part, parameter in parts.items():
                self._add(module, part, parameter)
                if part in undecayed:
                    self._undecayed.append(parameter)
        for name, parameter in biases.parameters.items():
            self._add(name.removesuffix(".bias"), "bias", parameter)

    def _add(self, module: str, part: str, parameter: Parameter) -> None:
        name = f"{module}.{part}"
        assert name not in self._parameters, f"{name} is trained twice"
        self._parameters[name] = parameter
        self._module_of[name] = module

    def still(self) -> Self:
        """Return the adapter as it is now, on the CPU: to be saved and compared while this one trains on."""
        twin = copy.copy(self)
        copies = {id(value): still_parameter(value) for value in self._parameters.values()}
        twin.hold(lambda value: copies[id(value)])
        return twin

    def hold(self, copied: Copier) -> None:
        """Take copies in place of the tensors that train; a family that reads them elsewhere changes that too."""
        self._parameters = {name: copied(value) for name, value in self._parameters.items()}
        self.biases = self.biases.holding(copied)

    @abstractmethod
    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write the files that other tools load into an existing folder; see `files.save_adapter` for a safe one."""

    @abstractmethod
    def change(self, module: str) -> Change:
        """Return what the adapter does to a module's weight, as factors: float32, on the CPU."""

    @abstractmethod
    def effective_delta(self, module: str) -> Tensor:
        """Return what the adapter adds to the weight of a module: (out, in), float32, on the CPU."""

    def base_weight(self, module: str) -> Tensor:
        """Return the frozen weight of a module: (out, in), float32, on the CPU."""
        return self._linears[module].weight.detach().cpu().float()

    def trainable_parameters(self) -> dict[str, Parameter]:
        """Return every trained tensor by its stable name, as the optimizer knows it."""
        return dict(self._parameters)

    def module_of(self, parameter_name: str) -> str:
        """Return the module that a trained tensor belongs to."""
        return self._module_of[parameter_name]

    @property
    def undecayed(self) -> list[Parameter]:
        """The trained tensors that do not start at zero and must not shrink towards it."""
        return list(self._undecayed)

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about this adapter before training it, as sentences."""
        return self.biases.notices(self.family)

    @torch.no_grad()
    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the trained tensors; each must be there and fit.

        Raises:
            AdapterError: listing what is missing, unknown, or of another shape; nothing is changed then.
        """
        missing = [name for name in self._parameters if name not in values]
        unknown = [name for name in values if name not in self._parameters]
        misfit = [
            f"{name} {tuple(values[name].shape)} for {tuple(parameter.shape)}"
            for name, parameter in self._parameters.items()
            if name in values and values[name].shape != parameter.shape
        ]
        kinds = {"is missing": missing, "is unknown": unknown, "has another shape": misfit}
        problems = [f"In the saved adapter {quote_some(names)} {what}." for what, names in kinds.items() if names]
        if problems:
            raise AdapterError(*problems)
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


def still_parameter(value: Tensor) -> Parameter:
    """Return a copy on the CPU that no gradient reaches; on a device it waits for what is computed there."""
    return Parameter(value.detach().to("cpu", copy=True), requires_grad=False)


def still_layer(layer: Layer, copied: Copier) -> Layer:
    """Return a module that computes as this one does, on the CPU, with copies in place of what it trains."""
    twin = copy.copy(layer)
    # The tables of tensors are the module's own; a shallow copy shares them.
    twin.__dict__["_parameters"] = {name: copied(value) for name, value in layer.named_parameters(recurse=False)}
    twin.__dict__["_buffers"] = {name: value.cpu() for name, value in layer.named_buffers(recurse=False)}
    return twin


def quote_some(names: Sequence[str], limit: int = 3) -> str:
    """Return the first few of many names, each as it can be shown."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(shown, names[:limit])) + rest


def shown(text: object, longest: int = 100) -> str:
    r"""Return what a file says so that it fits into a line and commands no terminal.

    >>> shown("a" * 99 + "\x1b[2J" + "b" * 99, longest=20)
    'aaaaaaaa...bbbbbbbbb'
    """
    words = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    half = (longest - 3) // 2
    return words if len(words) <= longest else f"{words[:half]}...{words[half + 3 - longest :]}"


class TrainedBiases:
    """Biases of the base model that are trained together with an adapter.

    A float32 parameter takes the place of each, and the value it had is kept, because files store the difference.
    """

    def __init__(self, decoder: nn.Module, names: Sequence[str], mode: BiasMode) -> None:
        self.mode = mode
        self.parameters: dict[str, Parameter] = {}
        self.base: dict[str, Tensor] = {}
        owners = _bias_owners(decoder)
        for name in names:
            self.base[name] = owners[name].get_parameter("bias").detach().float()
            owners[name].bias = self.parameters[name] = Parameter(self.base[name].clone())

    def differences(self) -> dict[str, Tensor]:
        """Return how far each bias is from the base model's: float32, on the CPU."""
        return {name: value.detach().cpu() - self.base[name].cpu() for name, value in self.parameters.items()}

    def holding(self, copied: Copier) -> Self:
        """Return the same biases with copies in place of those that train."""
        twin = copy.copy(self)
        twin.parameters = {name: copied(value) for name, value in self.parameters.items()}
        return twin

    def notices(self, family: str) -> tuple[str, ...]:
        """Say what a bias mode other than none does here."""
        count = len(self.parameters)
        if self.mode == "none":
            return ()
        if count == 0:
            return (f"Bias mode {self.mode} trains no bias: none of the adapted layers has one.",)
        readers = "ComfyUI" if family == "lokr" else "PEFT and ACE-Step"
        return (f"Bias mode {self.mode} trains {count} bias tensors; of the players only {readers} apply them.",)


def train_biases(decoder: nn.Module, modules: Sequence[str], mode: BiasMode) -> TrainedBiases:
    """Let the base model's biases train: all of them, those of the adapted modules, or none."""
    there = _bias_owners(decoder)
    wanted = {"none": [], "all": list(there), "lora_only": [f"{module}.bias" for module in modules]}[mode]
    return TrainedBiases(decoder, [name for name in wanted if name in there], mode)


def bias_shapes(decoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every bias of the base model by its original name."""
    return {name: tuple(owner.get_parameter("bias").shape) for name, owner in _bias_owners(decoder).items()}


def _bias_owners(decoder: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold a bias, by its original name; PEFT keeps an adapted layer as `base_layer`."""
    return {
        diffusers_to_original(name.removesuffix(".base_layer")) + ".bias": module
        for name, module in decoder.named_modules()
        if "bias" in dict(module.named_parameters(recurse=False))
    }


def find_linear_layers(decoder: nn.Module, modules: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the linear layers with these original names.

    Raises:
        AdapterError: naming those the decoder does not have.
    """
    there = dict(decoder.named_modules())
    found = {name: there.get(original_to_diffusers(name)) for name in modules}
    layers = {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear)}
    if len(layers) < len(modules):
        absent = [name for name in modules if name not in layers]
        raise AdapterError(f"This model has no linear layer {quote_some(absent)}; the adapter is for another model.")
    return layers
