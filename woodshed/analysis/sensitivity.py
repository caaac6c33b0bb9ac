"""From gradient norms to a ranking: what a module's score means, how stable it is, and what follows from it.

The score of a module with weight W (out, in) is the mean over the batches of |dL/dW| x sqrt(out / in), where |.| is the
Frobenius norm.

Why: a LoRA adds B A with B = 0 at first, so the gradient of B is dL/dW A^T, whose norm is |dL/dW| times a constant over
sqrt(in), A being drawn with a variance of 1 / (3 in). An optimizer of Adam's kind moves every number of B by the
learning rate whatever the size of its gradient, which lowers the loss by the learning rate times the sum of the sizes:
sqrt(out x rank) times that norm. Learning rate, rank and strength are the same for all modules, so what remains is the
score: to first order, by how much one step of an adapter on this module alone would lower the loss. Gains of modules
that are trained together add up to first order, so a layer's score is the sum over its modules.
"""

import math
from collections.abc import Mapping, Sequence

from woodshed.adapters.ranking import Entry
from woodshed.adapters.targets import Shapes
from woodshed.settings.schema import AttentionType, Granularity
from woodshed.training.from_estimate import STABLE

FORMULA = "mean over batches of |dL/dW| x sqrt(out / in): the first-order gain of one adapter step on this module"
BLOCKS = ("self_attn", "cross_attn", "mlp")
ENOUGH = 0.5  # of the whole response: what `auto` takes
CLEARLY = 2 / 3  # of the attention's response in one kind of attention: then the other kind hardly matters
MOST = 0.8  # of the chosen response: the projections that are named


def candidate_modules(shapes: Shapes) -> list[str]:
    """Return the projections of attention and MLP in all layers, in the order of the model."""
    return [name for name in shapes if name.split(".")[0] == "layers" and name.split(".")[2] in BLOCKS]


def module_score(norms: Sequence[float], shape: tuple[int, int]) -> float:
    """Return a module's score from its gradient norms; see above."""
    out, into = shape
    return math.fsum(norms) / len(norms) * math.sqrt(out / into)


def rank_modules(norms: Mapping[str, Sequence[float]], shapes: Shapes, granularity: Granularity) -> list[Entry]:
    """Return modules, or layers, with their scores, the strongest first.

    Args:
        norms: of each module's gradient in every batch, at least two.
        shapes: (out, in) of each module.
        granularity: what an entry stands for.
    """
    groups: dict[str, list[str]] = {}
    for module in norms:
        name = module if granularity == "module" else ".".join(module.split(".")[:2])
        groups.setdefault(name, []).append(module)

    def score(modules: Sequence[str], part: slice) -> float:
        return math.fsum(module_score(norms[module][part], shapes[module]) for module in modules)

    entries = [
        Entry(
            name=name,
            modules=tuple(modules),
            score=score(modules, slice(None)),
            halves=(score(modules, slice(0, None, 2)), score(modules, slice(1, None, 2))),
        )
        for name, modules in groups.items()
    ]
    return sorted(entries, key=lambda entry: -entry.score)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's correlation: 1 the same order, 0 chance, -1 reversed; None where one side is all equal."""
    a, b = (_ranks(values) for values in (first, second))
    middle = (len(a) - 1) / 2
    products = [
        math.fsum((x - middle) * (y - middle) for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b))
    ]
    return products[0] / math.sqrt(products[1] * products[2]) if products[1] and products[2] else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Return each value's place in the order from 0 on; equal values share the mean of their places."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]


def enough_entries(entries: Sequence[Entry]) -> int:
    """Return how many of the strongest entries hold half of the whole response."""
    total, held = math.fsum(entry.score for entry in entries), 0.0
    for count, entry in enumerate(entries, 1):
        held += entry.score
        if held >= ENOUGH * total:
            return count
    return len(entries)


def recommend(
    entries: Sequence[Entry], module_scores: Mapping[str, float], *, top_k: int, correlation: float | None, batches: int
) -> list[str]:
    """Return what follows from a ranking, in plain sentences.

    Args:
        entries: the strongest first.
        module_scores: of every module, whatever the entries stand for.
        top_k: how many entries are recommended.
        correlation: of the two halves.
        batches: that were measured.
    """
    total = math.fsum(module_scores.values())
    if not total:
        return ["Nothing responds: every gradient is zero, so this dataset has nothing to teach this model."]
    chosen = {module: module_scores[module] for entry in entries[:top_k] for module in entry.modules}
    said = [
        _attention_sentence(module_scores),
        _projection_sentence(chosen),
        _layer_sentence(chosen, math.fsum(chosen.values()) / total),
    ]
    if correlation is None or correlation < STABLE:
        how = "not at all" if correlation is None else f"by {correlation:.2f} only (1 = the same, 0 = chance)"
        said.append(f"Two halves of the batches rank alike {how}: use --estimate-batches {4 * batches}.")
    return said


def recommended_attention(module_scores: Mapping[str, float]) -> tuple[AttentionType, float]:
    """Return which attention responds, and the share of self attention in the whole attention's response."""
    own, cross = (
        math.fsum(score for module, score in module_scores.items() if module.split(".")[2] == block)
        for block in ("self_attn", "cross_attn")
    )
    share = own / (own + cross) if own + cross else 0.5
    if share >= CLEARLY:
        return "self", share
    return ("cross", share) if share <= 1 - CLEARLY else ("both", share)


def _attention_sentence(module_scores: Mapping[str, float]) -> str:
    word, share = recommended_attention(module_scores)
    return f"Attention type: {word} (self {share:.0%}, cross {1 - share:.0%} of the attention's response)."


def _projection_sentence(chosen: Mapping[str, float]) -> str:
    by_projection: dict[str, float] = {}
    for module, score in chosen.items():
        short = module.rsplit(".", 1)[1]
        by_projection[short] = by_projection.get(short, 0.0) + score
    total, held, named = math.fsum(by_projection.values()), 0.0, []
    for short, score in sorted(by_projection.items(), key=lambda item: -item[1]):
        if held < MOST * total:
            named.append(short)
            held += score
    share = held / total if total else 1.0
    return f"Projections: {' '.join(named)} ({share:.0%} of what the recommended modules hold)."


def _layer_sentence(chosen: Mapping[str, float], share: float) -> str:
    layers = sorted({int(module.split(".")[1]) for module in chosen})
    return (
        f"Layers: {' '.join(map(str, layers))}; the {len(chosen)} recommended modules hold {share:.0%} of the whole "
        "response."
    )


def correlation_of(entries: Sequence[Entry]) -> float | None:
    """Return how alike the two halves of the batches rank the entries."""
    return rank_correlation([entry.halves[0] for entry in entries], [entry.halves[1] for entry in entries])
