"""Start a new run from an adapter's weights, made here or by another trainer: the same effect, to be trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from woodshed.adapters.adapter import Adapter, quote_some
from woodshed.adapters.changes import Change, Hadamard, LowRank, Norms, Rotation
from woodshed.adapters.comfyui_format import with_norms_over
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.ranks import size_of
from woodshed.adapters.saved import SavedAdapter
from woodshed.adapters.targets import Shapes
from woodshed.adapters.verification import Expected, compare
from woodshed.errors import AdapterError
from woodshed.settings.ranks import read_rank_pattern
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
    problems += _lost_biases(saved, targets, settings) + _ranks_without_room(saved, settings)
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


def _lost_biases(saved: SavedAdapter, targets: Shapes, settings: TrainSettings) -> list[str]:
    """Say which trained biases of a file a run would leave as they are in the base model."""
    if settings.adapter_type in ("loha", "oft"):
        lost, advice = saved.bias_names, f"a {FAMILY_NAMES[settings.adapter_type]} trains none, so they would be lost"
    else:
        trained = {"all": saved.bias_names, "lora_only": [f"{name}.bias" for name in targets], "none": []}
        lost = [name for name in saved.bias_names if name not in trained[settings.bias]]
        advice = "this run would leave them as in the base model: add --bias all"
    return [f"{saved.path} holds trained biases such as {lost[0]}, and {advice}."] if lost else []


def _ranks_without_room(saved: SavedAdapter, settings: TrainSettings) -> list[str]:
    """Say which modules have a larger rank in the file than in the run."""
    if settings.adapter_type not in ("lora", "dora", "loha"):
        return []
    rules = read_rank_pattern(settings.rank_pattern)
    ranks = {
        module: change.unfilled().rank
        for module, change in saved.changes.items()
        if isinstance(change, LowRank | Hadamard)
    }
    small = [name for name, rank in ranks.items() if rank > size_of(name, settings.rank, settings.alpha, rules)[0]]
    if not small:
        return []
    rank = max(ranks[name] for name in small)
    return [f"{saved.path} has rank {rank} in {quote_some(small)}, more than this run; raise --rank to {rank}."]


def start_from(adapter: Adapter, saved: SavedAdapter) -> None:
    """Give a new adapter the effect of a saved one, and prove it.

    Raises:
        AdapterError: when a tensor does not fit, or the effect is another.
    """
    values = {name: parameter.detach().cpu() for name, parameter in adapter.trainable_parameters().items()}
    problems = []
    for module, change in saved.changes.items():
        prefix = f"{module}."
        own = {
            name.removeprefix(prefix): value
            for name, value in values.items()
            if name.startswith(prefix) and name not in adapter.biases.parameters
        }
        live = adapter.change(module)
        try:
            values |= {prefix + part: value for part, value in _start(own, live, change, adapter, module).items()}
        except AdapterError as error:
            problems += [f"{saved.path} cannot be started from: {module} {problem}" for problem in error.problems]
    if problems:
        rest = [f"So it is in {len(problems) - 3} more modules."] if len(problems) > 3 else []
        raise AdapterError(*problems[:3], *rest)
    values |= {name: saved.bias(name, adapter.biases.base[name].cpu()) for name in _known_biases(adapter, saved)}
    adapter.load_parameters(values)
    compare(saved, _expected(adapter, saved))


def _known_biases(adapter: Adapter, saved: SavedAdapter) -> list[str]:
    """Return the trained biases of a file.

    Raises:
        AdapterError: naming those that the adapter does not train.
    """
    unknown = [name for name in saved.bias_names if name not in adapter.biases.parameters]
    if unknown:
        raise AdapterError(f"{saved.path} is for another model: this run trains no {quote_some(unknown)}.")
    return saved.bias_names


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
    if change.norms is not None:
        return with_norms_over(change, weight, base=False) if change.norms.are_over_base else change
    weight = weight.double()
    return replace(change, norms=Norms((weight + change.delta(weight)).norm(dim=1).float()))


def _start_lora(own: Values, live: LowRank, change: LowRank) -> Values:
    """Fill the first rows; further ranks keep their random A and a B of zero, so that they can learn."""
    change = change.unfilled()
    assert change.rank <= live.rank, "check_start has looked"
    a, b = _widened(change.a, change.b * (change.scale / live.scale), own["lora_A.weight"])
    values = {"lora_A.weight": a, "lora_B.weight": b}
    if change.norms is not None and "lora_magnitude_vector" in own:
        values["lora_magnitude_vector"] = change.norms.values
    return _fitting(own, values)


def _start_lokr(own: Values, live: Kronecker, change: Kronecker) -> Values:
    """Fill the first ranks of the factors that are products; the other factors have to be those of the run."""
    strength = change.scale / live.scale
    values = {
        name: value * strength if name in ("lokr_w1", "lokr_w1_a") else value for name, value in change.parts().items()
    }
    for name in ("lokr_w1", "lokr_w2"):
        right, left = f"{name}_b", f"{name}_a"
        if right in values and right in own and len(values[right]) < len(own[right]):
            values[left], values[right] = _widened_left(values[left], values[right], own[left])
    if "scalar" in own:
        values["scalar"] = torch.ones(())
    if change.norms is not None and "dora_scale" in own:
        values["dora_scale"] = change.norms.values[:, None]
    return _fitting(own, values)


def _start_loha(own: Values, live: Hadamard, change: Hadamard) -> Values:
    """Fill the first ranks; in each product one factor of the further ones is zero and the other random."""
    change = change.unfilled()
    assert change.rank <= live.rank, "check_start has looked"
    w1_b, w1_a = _widened(change.w1_b, change.w1_a * (change.scale / live.scale), own["hada_w1_b"])
    w2_a, w2_b = _widened_left(change.w2_a, change.w2_b, own["hada_w2_a"])
    return _fitting(own, {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b})


def _widened(right: Tensor, left: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
    """Fill up a right factor (r, n) with the rows of a random one, and its left factor (m, r) with columns of zero."""
    rank = len(right)
    return torch.cat([right, random[rank:]]), F.pad(left, (0, len(random) - rank))


def _widened_left(left: Tensor, right: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
    """Fill up a left factor (m, r) with the columns of a random one, and its right factor (r, n) with rows of zero."""
    one, other = _widened(left.T, right.T, random.T)
    return one.T.contiguous(), other.T.contiguous()


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
    found = adapter.biases.differences()
    for name in saved.bias_names:
        base = adapter.biases.base[name].cpu().double()
        yield Expected(name, base, saved.bias(name, base) - base, found[name].double(), has_rounding=True)
