"""Adapter files: save whole or not at all, prove that a file holds what was trained, and load one to be listened to."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from woodshed.adapters.adapter import Adapter, Recipe, bias_shapes
from woodshed.adapters.played import PlayedAdapter
from woodshed.adapters.saved import SavedAdapter, read_adapter
from woodshed.adapters.targets import linear_shapes
from woodshed.adapters.verification import Expected, Verification, compare, refuse_other_names
from woodshed.errors import AdapterError
from woodshed.storage import whole_folder


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
    refuse_other_names(saved, adapter.modules, adapter.biases.parameters)
    return compare(saved, _expected(adapter, saved))


def look_back(adapter: Adapter, folder: Path) -> None:
    """Read an adapter's files back and look at names, shapes and numbers only: for one whose format is proven already.

    Raises:
        AdapterError: when a module is missing or surplus, or a value is no finite number.
    """
    refuse_other_names(read_adapter(folder), adapter.modules, adapter.biases.parameters)


def _expected(adapter: Adapter, saved: SavedAdapter) -> Iterator[Expected]:
    """Yield what is in memory beside what the file gives."""
    for module in adapter.modules:
        weight, live = adapter.base_weight(module).double(), adapter.effective_delta(module).double()
        fits = saved.changes[module].fits(tuple(live.shape))
        yield Expected(
            module,
            weight,
            live,
            saved.delta(module, weight) if fits else None,
            has_rounding=saved.changes[module].needs_weight,
        )
    for name, difference in adapter.biases.differences().items():
        base = adapter.biases.base[name].cpu().double()
        found = saved.bias(name, base) - base
        yield Expected(name, base, difference.double(), found, has_rounding=True)


def load_adapter(decoder: nn.Module, path: Path, strength: float = 1.0) -> PlayedAdapter:
    """Attach a saved adapter to a decoder, to be listened to: nothing of it trains.

    Args:
        decoder: without an adapter; changed in place.
        path: an adapter's folder or file, made by Woodshed or another trainer.
        strength: what the weight differences are multiplied by; 0 is the base model, 1 the adapter as trained.

    Raises:
        AdapterError: when the file cannot be read or was made for another model; the decoder is unchanged then.
    """
    saved = read_adapter(path)
    shapes: dict[str, tuple[int, ...]] = {**linear_shapes(decoder), **bias_shapes(decoder)}
    if problems := saved.misfits(shapes):
        raise AdapterError(*problems)
    return PlayedAdapter(decoder, saved, strength)
