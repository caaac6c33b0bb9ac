"""From the tensors of a file to what they change: each module's tensors make one formula."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from woodshed.adapters.changes import Change, Difference, Hadamard, LowRank, Norms, Rotation
from woodshed.adapters.kronecker import Factor, Kronecker
from woodshed.adapters.peft_config import PeftConfig

Parts = Mapping[str, Tensor]
"""The tensors of one module by the name of their part."""


class UnfitPartsError(Exception):
    """The tensors of a module do not make a formula."""


def assemble(module: str, parts: Parts, config: PeftConfig | None, *, norms_over_base: bool = False) -> Change:
    """Return what the tensors of a module change.

    Args:
        module: its original name.
        parts: all of its tensors but biases.
        config: of a PEFT folder, or of diffusers; None for a file in which alpha stands beside the factors.
        norms_over_base: whether norms were written for today's ComfyUI.

    Raises:
        UnfitPartsError: when tensors are missing, surplus or do not fit together.
    """
    rest = dict(parts)
    norms = [rest.pop(name) for name in ("magnitude", "dora_scale") if name in rest]
    alpha = rest.pop("alpha", None)
    family, build = next((found for names, found in _FORMULAS.items() if names & rest.keys()), ("", None))
    if build is None or len(norms) > 1 or (config is not None and config.family != family):
        raise UnfitPartsError
    if alpha is not None and (config is not None or alpha.numel() != 1):
        raise UnfitPartsError
    change = build(module, rest, None if alpha is None else alpha.item(), config)
    if not norms:
        return change
    rows = change.shape[0]
    if norms[0].shape not in ((rows,), (rows, 1)) or isinstance(change, Rotation | Difference):
        raise UnfitPartsError
    return replace(change, norms=Norms(norms[0].reshape(rows), norms_over_base))


def _low_rank(module: str, parts: Parts, alpha: float | None, config: PeftConfig | None) -> Change:
    _need(parts, "lora_A", "lora_B")
    a, b = parts["lora_A"], parts["lora_B"]
    _need_product(b, a)
    return LowRank(a, b, _scale(module, a.shape[0], alpha, config))


def _hadamard(module: str, parts: Parts, alpha: float | None, config: PeftConfig | None) -> Change:
    _need(parts, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    w1_a, w1_b, w2_a, w2_b = (parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    _need_product(w1_a, w1_b)
    _need_product(w2_a, w2_b)
    if w1_a.shape != w2_a.shape or w1_b.shape != w2_b.shape:
        raise UnfitPartsError
    return Hadamard(w1_a, w1_b, w2_a, w2_b, _scale(module, w1_a.shape[1], alpha, config))


def _kronecker(module: str, parts: Parts, alpha: float | None, config: PeftConfig | None) -> Change:
    """Scale by alpha over the rank of the second factor, else of the first.

    Where both are whole LyCORIS and its kin have no scale, while PEFT still divides alpha by its configured rank.
    """
    w1, w2 = (_factor(parts, name) for name in ("lokr_w1", "lokr_w2"))
    if len(w1) + len(w2) != len(parts):
        raise UnfitPartsError
    low_rank = next((factor for factor in (w2, w1) if len(factor) == 2), None)
    if low_rank is not None:
        scale = _scale(module, low_rank[1].shape[0], alpha, config)
    else:
        scale = 1.0 if config is None else config.scale_of(module, config.rank_of(module))
    return Kronecker(w1, w2, scale)


def _factor(parts: Parts, name: str) -> Factor:
    whole, a, b = (parts.get(name + end) for end in ("", "_a", "_b"))
    if whole is not None and a is None and b is None and whole.dim() == 2 and whole.numel():
        return (whole,)
    if whole is not None or a is None or b is None:
        raise UnfitPartsError
    _need_product(a, b)
    return a, b


def _rotation(_module: str, parts: Parts, alpha: float | None, config: PeftConfig | None) -> Change:
    _need(parts, "oft_R")
    skew = parts["oft_R"]
    if config is None or alpha is not None or skew.dim() != 2 or not skew.numel():
        raise UnfitPartsError
    change = Rotation(skew, terms=config.terms)
    if change.block_size * (change.block_size - 1) != 2 * skew.shape[1]:
        raise UnfitPartsError
    return change


def _difference(_module: str, parts: Parts, alpha: float | None, _config: PeftConfig | None) -> Change:
    _need(parts, "diff")
    if alpha is not None or parts["diff"].dim() != 2 or not parts["diff"].numel():
        raise UnfitPartsError
    return Difference(parts["diff"])


_Build = Callable[[str, Parts, float | None, PeftConfig | None], Change]
_FORMULAS: dict[frozenset[str], tuple[str, _Build]] = {
    frozenset({"lora_A", "lora_B"}): ("LORA", _low_rank),
    frozenset(f"lokr_w{number}{end}" for number in "12" for end in ("", "_a", "_b")): ("LOKR", _kronecker),
    frozenset(f"hada_w{number}_{end}" for number in "12" for end in "ab"): ("LOHA", _hadamard),
    frozenset({"oft_R"}): ("OFT", _rotation),
    frozenset({"diff"}): ("", _difference),
}
"""By the parts that make it: which PEFT family a formula belongs to, and how it is built."""


def _scale(module: str, rank: int, alpha: float | None, config: PeftConfig | None) -> float:
    if config is not None:
        return config.scale_of(module, rank)
    return 1.0 if alpha is None else alpha / rank


def _need(parts: Parts, *names: str) -> None:
    if set(parts) != set(names):
        raise UnfitPartsError


def _need_product(left: Tensor, right: Tensor) -> None:
    """Stop unless two tensors are matrices that can be multiplied."""
    if not (left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]) or not (left.numel() and right.numel()):
        raise UnfitPartsError
