"""Start a new run from an adapter's weights, made here or by another trainer: the same effect, to be trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from woodshed.adapters.adapter import Adapter, quote_some
from woodshed.adapters.changes import Change, Hadamard, LowRank, Norms, Rotation
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.saved import SavedAdapter
from woodshed.adapters.targets import Shapes
from woodshed.adapters.verification import Expected, compare
from woodshed.errors import AdapterError
from woodshed.settings.rules import FAMILY_NAMES
from woodshed.settings.schema import TrainSettings

Values = dict[str, Tensor]
_KINDS: dict[str, type[Change]] = {
    "lora": LowRank,
    "dora": LowRank,
    "lokr": Kronecker,
    "loha": Hadamard,
    "oft": Rotation,
}


def check_start(saved: SavedAdapter, targets: Shapes, settings: TrainSettings) -> list[str]:
    """Look whether a run can start from an adapter, without the model; return what the user should know.

    Raises:
        AdapterError: with everything that does not fit.
    """
    kind, name = _KINDS[settings.adapter_type], FAMILY_NAMES[settings.adapter_type]
    problems = []
    if saved.family is not kind:
        problems.append(f"{saved.path} is no {name}, so that a {name} cannot start from it; choose its --adapter-type.")
    has_norms = settings.adapter_type == "dora" or (settings.adapter_type == "lokr" and settings.lokr_weight_decompose)
    if saved.has_norms and not has_norms:
        problems.append(f"{saved.path} is weight-decomposed (DoRA), and this run is not: its norms would be lost.")
    if saved.bias_names:
        problems.append(
            f"{saved.path} holds {len(saved.bias_names)} trained biases, which a new run cannot start with."
        )
    surplus = [module for module in saved.modules if module not in targets]
    if surplus:
        problems.append(f"{saved.path} adapts {quote_some(surplus)}, which are no targets of this run: add them.")
    bent = [module for module in saved.modules if module in targets and not saved.changes[module].fits(targets[module])]
    if bent:
        problems.append(f"{saved.path} is for another model: the shapes differ in {quote_some(bent)}.")
    if problems:
        raise AdapterError(*problems)
    fresh = len(targets) - len(saved.modules)
    said = [f"The weights of {saved.path} are where this run starts; optimizer and schedule begin anew."]
    return said + ([f"{fresh} of {len(targets)} modules are not in it and start untrained."] if fresh else [])


def start_from(adapter: Adapter, saved: SavedAdapter) -> None:
    """Give a new adapter the effect of a saved one, and prove it.

    Raises:
        AdapterError: when a tensor does not fit, or the effect is another.
    """
    values = {name: parameter.detach().cpu() for name, parameter in adapter.trainable_parameters().items()}
    problems = []
    for module, change in saved.changes.items():
        prefix = f"{module}."
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        live = adapter.change(module)
        try:
            values |= {prefix + part: value for part, value in _start(own, live, change, adapter, module).items()}
        except AdapterError as error:
            problems += [f"{saved.path} cannot be started from: {module} {problem}" for problem in error.problems]
    if problems:
        rest = [f"So it is in {len(problems) - 3} more modules."] if len(problems) > 3 else []
        raise AdapterError(*problems[:3], *rest)
    adapter.load_parameters(values)
    compare(saved, _expected(adapter, saved))


def _start(own: Values, live: Change, change: Change, adapter: Adapter, module: str) -> Values:
    """Return the tensors of one module."""
    if "lora_magnitude_vector" in own or "dora_scale" in own:
        change = _with_norms(change, adapter.base_weight(module))
    if isinstance(change, LowRank) and isinstance(live, LowRank):
        return _start_lora(own, live, change)
    if isinstance(change, Kronecker) and isinstance(live, Kronecker):
        return _start_lokr(own, live, change)
    if isinstance(change, Hadamard) and isinstance(live, Hadamard):
        return _start_loha(own, live, change)
    assert isinstance(change, Rotation)
    assert isinstance(live, Rotation)
    if change.terms != live.terms:
        raise AdapterError("has another series for its rotations than PEFT's usual one.")
    return _fitting(own, {"oft_R.weight": change.skew})


def _with_norms(change: Change, weight: Tensor) -> Change:
    """Return the same change as a decomposed one, with the norms that it has."""
    if change.norms is not None and not change.norms.are_over_base:
        return change
    weight = weight.double()
    return replace(change, norms=Norms((weight + change.delta(weight)).norm(dim=1).float()))


def _start_lora(own: Values, live: LowRank, change: LowRank) -> Values:
    """Fill the first rows; further ranks keep their random A and a B of zero, so that they can learn."""
    free = live.rank - change.rank
    if free < 0:
        raise AdapterError(f"has rank {change.rank}, more than the {live.rank} of this run; raise --rank.")
    a = torch.cat([change.a, own["lora_A.weight"][change.rank :]])
    values = {"lora_A.weight": a, "lora_B.weight": F.pad(change.b * (change.scale / live.scale), (0, free))}
    if change.norms is not None and "lora_magnitude_vector" in own:
        values["lora_magnitude_vector"] = change.norms.values
    return _fitting(own, values)


def _start_lokr(own: Values, live: Kronecker, change: Kronecker) -> Values:
    strength = change.scale / live.scale
    values = {
        name: value * strength if name in ("lokr_w1", "lokr_w1_a") else value for name, value in change.parts().items()
    }
    if "scalar" in own:
        values["scalar"] = torch.ones(())
    if change.norms is not None and "dora_scale" in own:
        values["dora_scale"] = change.norms.values[:, None]
    return _fitting(own, values)


def _start_loha(own: Values, live: Hadamard, change: Hadamard) -> Values:
    values = {f"hada_{part}": getattr(change, part) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
    values["hada_w1_a"] = values["hada_w1_a"] * (change.scale / live.scale)
    return _fitting(own, values)


def _fitting(own: Values, values: Values) -> Values:
    """Return the values if they are the tensors of the run.

    Raises:
        AdapterError: saying what is stored and what the settings come to.
    """
    stored, wanted = _shapes(values), _shapes(own)
    if stored != wanted:
        raise AdapterError(f"holds {_written(stored)}, where these settings come to {_written(wanted)}.")
    return values


def _shapes(values: Values) -> dict[str, Sequence[int]]:
    return {name: tuple(value.shape) for name, value in sorted(values.items())}


def _written(shapes: dict[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}".rstrip() for name, shape in shapes.items())


def _expected(adapter: Adapter, saved: SavedAdapter) -> Iterator[Expected]:
    for module, change in saved.changes.items():
        weight = adapter.base_weight(module).double()
        yield Expected(
            module, weight, change.delta(weight), adapter.effective_delta(module).double(), has_rounding=True
        )
