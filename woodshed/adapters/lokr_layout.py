"""One factor and one rank for all modules of a LoKr: what players build its layers from, before they load tensors."""

from collections.abc import Callable, Iterable, Mapping

from woodshed.adapters.kronecker import Kronecker

Factorize = Callable[[int, int], tuple[int, int]]
"""A player's rule: from the side of a weight and the factor to the sides of the two factors."""


def common_factor(
    changes: Mapping[str, Kronecker], factorize: Factorize, candidates: Iterable[int] | None = None
) -> int | None:
    """Return a factor from which a player's rule makes all shapes; None where there is none.

    Args:
        changes: by module.
        factorize: the rule.
        candidates: the factors to try, in this order; None for -1 and every left side there is.
    """
    splits = [split for change in changes.values() for split in change.splits]
    tried = usual_factors(changes) if candidates is None else candidates
    return next((f for f in tried if all(factorize(left * right, f) == (left, right) for left, right in splits)), None)


def usual_factors(changes: Mapping[str, Kronecker]) -> list[int]:
    """Return the factors that may have made these shapes: the automatic one, and every left side."""
    return [-1, *sorted({left for change in changes.values() for left, _ in change.splits})]


def common_rank(changes: Mapping[str, Kronecker], preferred: int | None = None) -> int | None:
    """Return a rank at which players make the second factor low-rank where it is, and whole where it is; or None.

    Args:
        changes: by module.
        preferred: to be taken where the shapes leave a choice, if it is one.
    """
    dims = {change.dim for change in changes.values() if change.dim}
    largest = max(right for change in changes.values() for _, right in change.splits)
    tried = dims or ([largest // 2 + 1] if preferred is None else [preferred, largest // 2 + 1])
    fits = (rank for rank in tried if all(is_built(change, rank) for change in changes.values()))
    return next(fits, None) if len(dims) < 2 else None


def is_built(change: Kronecker, rank: int) -> bool:
    """Tell whether players make these factors at a rank: low-rank when that is less than half of the larger side."""
    return (change.dim is not None) == (rank < max(right for _, right in change.splits) / 2)
