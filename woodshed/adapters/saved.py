"""Reading adapter files: what they say, as effective weights.

Nothing in a file is executed, and a name in it never becomes a path. The formulas are written here, not taken from the
libraries that train, so that comparing a file with the adapter in memory means something.
"""

import json
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from woodshed.adapters import lokr, lora
from woodshed.adapters.adapter import RECIPE_KEY, Adapter, Recipe, quote_some
from woodshed.errors import AdapterError

LARGEST_CONFIG = 1 << 20  # bytes; real ones have a few thousand
_LORA_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_BIAS_KEY = re.compile(r"base_model\.model\.(.+?)(?:\.base_layer)?\.bias")
_LOKR_KEY = re.compile(r"(lycoris_\w+)\.(lokr_w[12](?:_[ab])?|alpha|dora_scale)")
_LOKR_BIAS_KEY = re.compile(re.escape(lokr.BIAS_PREFIX) + r"(.+)\.diff_b")


@dataclass(frozen=True)
class SavedAdapter(ABC):
    """What a file says, checked for sense but not yet for a model."""

    path: Path
    tensors: int
    recipe: Recipe
    biases: Mapping[str, Tensor] = field(default_factory=dict)  # by original name

    @property
    @abstractmethod
    def modules(self) -> list[str]:
        """The adapted modules, as the file names them."""

    @abstractmethod
    def name_in_file(self, module: str) -> str:
        """Translate an original module name."""

    @abstractmethod
    def shape(self, module: str) -> tuple[int, ...]:
        """Return (out, in) of the weight that a module of the file fits."""

    @abstractmethod
    def delta(self, module: str, weight: Tensor) -> Tensor:
        """Return the weight difference (out, in) in the precision of the base weight, which only norms depend on."""

    @abstractmethod
    def bias(self, name: str, base: Tensor) -> Tensor:
        """Return a trained bias, given that of the base model."""

    @abstractmethod
    def attach(self, decoder: nn.Module, targets: Mapping[str, str], strength: float) -> Adapter:
        """Put the adapter on a decoder; `targets` are original module names with those of the file."""


@dataclass(frozen=True)
class SavedLora(SavedAdapter):
    """A PEFT folder."""

    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # A, and B with the scale in it

    @property
    def modules(self) -> list[str]:
        """The adapted modules, by original name."""
        return list(self.factors)

    def name_in_file(self, module: str) -> str:
        """Return the same name."""
        return module

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the rows of B and the columns of A."""
        a, b = self.factors[module]
        return b.shape[0], a.shape[1]

    def delta(self, module: str, weight: Tensor) -> Tensor:
        """Return B A."""
        a, b = (factor.to(weight.dtype) for factor in self.factors[module])
        return b @ a

    def bias(self, name: str, base: Tensor) -> Tensor:  # noqa: ARG002 - PEFT stores the whole bias
        """Return the stored bias."""
        return self.biases[name]

    def attach(self, decoder: nn.Module, targets: Mapping[str, str], strength: float) -> Adapter:
        """Attach at one rank; smaller modules are filled up with zeros, which changes nothing."""
        rank = max(a.shape[0] for a, _ in self.factors.values())
        adapter = lora.attach_lora(decoder, list(targets), rank=rank, alpha=rank * strength, dropout=0.0, bias="none")
        values = {}
        for module, (a, b) in self.factors.items():
            missing = rank - a.shape[0]
            values[f"{module}.lora_A.weight"] = functional.pad(a, (0, 0, 0, missing))
            values[f"{module}.lora_B.weight"] = functional.pad(b, (0, missing))
        adapter.load_parameters(values)
        return adapter


@dataclass(frozen=True)
class SavedLokr(SavedAdapter):
    """A LyCORIS file."""

    parts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def modules(self) -> list[str]:
        """The adapted modules, by flattened name."""
        return list(self.parts)

    def name_in_file(self, module: str) -> str:
        """Return the flattened name."""
        return lokr.flat_name(module)

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return both factors as whole matrices, the scale in the first; two whole ones have scale 1 by definition."""
        parts = self.parts[module]
        first, second = (
            parts[name] if name in parts else parts[f"{name}_a"].double() @ parts[f"{name}_b"].double()
            for name in ("lokr_w1", "lokr_w2")
        )
        low_rank = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
        scale = 1.0 if low_rank is None or "alpha" not in parts else parts["alpha"].item() / low_rank.shape[0]
        return first * scale, second

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the products of the factors' sides."""
        parts = self.parts[module]
        rows, columns = 1, 1
        for name in ("lokr_w1", "lokr_w2"):
            left, right = parts.get(f"{name}_a", parts.get(name)), parts.get(f"{name}_b", parts.get(name))
            assert left is not None
            assert right is not None
            rows, columns = rows * left.shape[0], columns * right.shape[1]
        return rows, columns

    def delta(self, module: str, weight: Tensor) -> Tensor:
        """Return the Kronecker product, or with weight decomposition what it and the norms change."""
        first, second = self.factors(module)
        changed = weight + torch.kron(first.to(weight.dtype), second.to(weight.dtype).contiguous())
        norms = self.parts[module].get("dora_scale")
        if norms is not None:
            changed = functional.normalize(changed, dim=1) * norms.to(weight.dtype)
        return changed - weight

    def bias(self, name: str, base: Tensor) -> Tensor:
        """Return the base model's bias with the stored difference."""
        return base + self.biases[name].to(base)

    def attach(self, decoder: nn.Module, targets: Mapping[str, str], strength: float) -> Adapter:
        """Attach with whole factors, whatever split the file was trained with."""
        factors = {name: self.factors(in_file) for name, in_file in targets.items()}
        norms = {name: self.parts[in_file].get("dora_scale") for name, in_file in targets.items()}
        return lokr.attach_factors(decoder, factors, norms, strength=strength)


def read_adapter(path: Path) -> SavedAdapter:
    """Read a PEFT LoRA folder, or a LyCORIS LoKr file or the folder it lies in.

    Raises:
        AdapterError: when there is no such adapter, or its files are damaged or of a kind that is not supported.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / lora.CONFIG_NAME).is_file() and path.name in (folder.name, lora.CONFIG_NAME, lora.WEIGHTS_NAME):
        return _read_lora(folder)
    if (folder / lokr.WEIGHTS_NAME).is_file() and path == folder:
        return _read_lokr(folder / lokr.WEIGHTS_NAME)
    if path.is_file() and path.suffix == ".safetensors":
        return _read_lokr(path)
    seen = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    raise AdapterError(
        f"There is no adapter at {path}"
        + (f", only {quote_some(seen)}" if seen else "")
        + f". Give a folder with {lora.CONFIG_NAME} and {lora.WEIGHTS_NAME}, or a LoKr .safetensors file."
    )


def _read_lora(folder: Path) -> SavedLora:
    scale_of = _read_peft_config(folder / lora.CONFIG_NAME)
    path = folder / lora.WEIGHTS_NAME
    header, tensors = _read_tensors(path)
    factors: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        if match := _LORA_KEY.fullmatch(key):
            factors.setdefault(match[1], {})[match[2]] = tensor
        elif (match := _BIAS_KEY.fullmatch(key)) and tensor.dim() == 1:
            biases[f"{match[1]}.bias"] = tensor
        else:
            unknown.append(key)
    bad = [name for name, pair in factors.items() if not _are_factors(pair.get("B"), pair.get("A"))]
    _refuse_damage(path, unknown, bad, is_empty=not factors)
    scaled = {name: (pair["A"], pair["B"] * scale_of(pair["A"].shape[0])) for name, pair in factors.items()}
    return SavedLora(path, len(tensors), header, biases, scaled)


def _read_peft_config(path: Path) -> Callable[[int], float]:
    """Return the scale as a function of a module's rank."""
    config = _read_config(path)
    alpha, is_rslora = config.get("lora_alpha"), config.get("use_rslora", False)
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"{path} is of PEFT type {config.get('peft_type')!r}; only LORA can be read.")
    if config.get("use_dora"):
        problems.append(f"{path} is a DoRA, which cannot be read yet.")
    if config.get("alpha_pattern"):
        problems.append(f"{path} has an alpha for each layer (alpha_pattern), which cannot be read yet.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= sys.float_info.max:
        problems.append(f"{path} has no usable lora_alpha; got {alpha!r}.")
    if problems:
        raise AdapterError(*problems)
    assert isinstance(alpha, int | float)
    return lambda rank: alpha / (math.sqrt(rank) if is_rslora else rank)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise AdapterError(f"{path} is far too large for a PEFT config.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no JSON object.")
    return config


def _read_lokr(path: Path) -> SavedLokr:
    header, tensors = _read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        if match := _LOKR_KEY.fullmatch(key):
            parts.setdefault(match[1], {})[match[2]] = tensor
        elif (match := _LOKR_BIAS_KEY.fullmatch(key)) and tensor.dim() == 1:
            biases[f"{match[1]}.bias"] = tensor
        else:
            unknown.append(key)
    bad = [name for name, module in parts.items() if not _are_lokr_parts(module)]
    _refuse_damage(path, unknown, bad, is_empty=not parts)
    return SavedLokr(path, len(tensors), header, biases, parts)


def _are_lokr_parts(parts: Mapping[str, Tensor]) -> bool:
    """Tell whether the tensors of a module make two factors, and norms of its outputs if any."""
    rows = 1
    for name in ("lokr_w1", "lokr_w2"):
        whole, a, b = (parts.get(name + end) for end in ("", "_a", "_b"))
        is_whole = whole is not None and whole.dim() == 2 and a is None and b is None
        if not is_whole and (whole is not None or not _are_factors(a, b)):
            return False
        rows *= len(parts[name] if is_whole else parts[f"{name}_a"])
    norms, alpha = parts.get("dora_scale"), parts.get("alpha")
    return (alpha is None or alpha.numel() == 1) and (norms is None or norms.shape == (rows, 1))


def _are_factors(left: Tensor | None, right: Tensor | None) -> bool:
    """Tell whether two tensors are matrices that can be multiplied."""
    if left is None or right is None:
        return False
    return left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] > 0


def _refuse_damage(path: Path, unknown: list[str], bad: list[str], *, is_empty: bool) -> None:
    problems = []
    if unknown:
        problems.append(f"{path} holds tensors that are no part of such an adapter: {quote_some(unknown)}.")
    if bad:
        problems.append(f"{path} is damaged: tensors of {quote_some(bad)} are missing or do not fit together.")
    if is_empty:
        problems.append(f"{path} adapts no layer.")
    if problems:
        raise AdapterError(*problems)


def _read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the recipe and the tensors of a file, as finite float32."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        recipe = json.loads(header.get(RECIPE_KEY, "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.") from error
    bad = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    bad += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise AdapterError(f"{path} is damaged: {quote_some(bad)} holds what is no finite number.")
    return recipe if isinstance(recipe, dict) else {}, tensors
