"""Adapter files: save whole or not at all, prove that a file holds what was trained, and load one to be listened to."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from woodshed.adapters.adapter import Adapter, Recipe, TrainedBiases, bias_shapes, quote_some
from woodshed.adapters.saved import SavedAdapter, read_adapter
from woodshed.adapters.targets import linear_shapes
from woodshed.errors import AdapterError
from woodshed.storage import whole_folder

TOLERANCE = 1e-5  # of a weight difference, relative to its largest entry
NOTHING = 1e-6  # of a weight; an untrained weight decomposition differs by its rounding


@dataclass(frozen=True)
class Verification:
    """What reading an adapter back has shown."""

    modules: int
    tensors: int
    max_relative_error: float  # over all weight differences, each relative to its largest entry
    is_live: bool  # whether the adapter changes anything


def save_adapter(adapter: Adapter, folder: Path, recipe: Recipe) -> Verification:
    """Write an adapter as a folder of its own, replacing an older one, and verify it before it gets its name.

    Raises:
        AdapterError: when the files do not hold what is in memory.
    """
    with whole_folder(folder) as building:
        adapter.save(building, recipe)
        return verify_saved(adapter, building)


def verify_saved(adapter: Adapter, folder: Path) -> Verification:
    """Read an adapter's files back and compare every effective weight with the adapter in memory.

    Raises:
        AdapterError: when a module is missing or surplus, or a weight differs.
    """
    saved = read_adapter(folder)
    expected = {saved.name_in_file(module) for module in adapter.modules}
    if expected != set(saved.modules) or set(adapter.biases.parameters) != set(saved.biases):
        odd = expected ^ set(saved.modules) | set(adapter.biases.parameters) ^ set(saved.biases)
        raise AdapterError(f"{saved.path} does not hold the layers that were trained: {quote_some(sorted(odd))}.")
    errors: dict[str, float] = {}
    is_live = False
    for module in adapter.modules:
        live, weight = adapter.effective_delta(module).double(), adapter.base_weight(module).double()
        name = saved.name_in_file(module)
        fits = saved.shape(name) == live.shape
        errors[module] = _relative_error(saved.delta(name, weight), live) if fits else math.inf
        is_live |= bool(live.abs().max() > NOTHING * weight.abs().max())
    for name, difference in adapter.biases.differences().items():
        base = adapter.biases.base[name].cpu()
        errors[name] = _relative_error(saved.bias(name, base), base + difference)
        is_live |= bool(difference.any())
    wrong = [f"{name} ({error:.1e})" for name, error in errors.items() if not error < TOLERANCE]
    if wrong:
        raise AdapterError(
            f"{saved.path} does not hold what was trained; the relative error is in {quote_some(wrong)}."
        )
    return Verification(len(adapter.modules), saved.tensors, max(errors.values()), is_live)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest entry; infinite for something in place of zero."""
    difference, size = ((found - expected).abs().max().item(), expected.abs().max().item())
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


@torch.no_grad()
def load_adapter(decoder: nn.Module, path: Path, strength: float = 1.0) -> Adapter:
    """Attach a saved adapter to a decoder, to be listened to: nothing of it trains.

    Args:
        decoder: without an adapter; changed in place.
        path: a PEFT LoRA folder, a folder with a LoKr, or a LoKr file, made by Woodshed or another trainer.
        strength: what the weight differences are multiplied by; 0 is the base model, 1 the adapter as trained.

    Raises:
        AdapterError: when the file cannot be read or was made for another model; the decoder is unchanged then.
    """
    saved = read_adapter(path)
    _refuse_misfit(saved, decoder)
    names = {saved.name_in_file(name): name for name in linear_shapes(decoder)}
    adapter = saved.attach(decoder, {names[name]: name for name in saved.modules}, strength)
    biases = TrainedBiases(decoder, list(saved.biases), "all")
    for name, parameter in biases.parameters.items():
        base = biases.base[name]
        parameter.copy_(base + strength * (saved.bias(name, base) - base))
    decoder.requires_grad_(False)
    return adapter


def _refuse_misfit(saved: SavedAdapter, decoder: nn.Module) -> None:
    """Stop when a decoder has not the layers and biases, in the shapes, that an adapter changes."""
    there: dict[str, tuple[int, ...]] = {
        saved.name_in_file(name): shape for name, shape in linear_shapes(decoder).items()
    }
    there |= bias_shapes(decoder)
    wanted = {name: saved.shape(name) for name in saved.modules}
    wanted |= {name: tuple(bias.shape) for name, bias in saved.biases.items()}
    unknown = [name for name in wanted if name not in there]
    misfits = [f"{name} {shape} for {there[name]}" for name, shape in wanted.items() if there.get(name, shape) != shape]
    problems = []
    if unknown:
        problems.append(f"{saved.path} is for another model: this one has no {quote_some(unknown)}.")
    if misfits:
        problems.append(f"{saved.path} is for another model: the shapes differ in {quote_some(misfits)}.")
    if problems:
        raise AdapterError(*problems)
