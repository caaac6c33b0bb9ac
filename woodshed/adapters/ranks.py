"""Rank and alpha of each module, from one for all and a table of exceptions: `cross_attn=32 layers.0.=8:4`."""

from collections.abc import Iterable, Mapping

from woodshed.errors import AdapterError
from woodshed.settings.ranks import RankRule, read_rank_pattern


def size_of(module: str, rank: int, alpha: float, rules: Iterable[RankRule]) -> tuple[int, float]:
    """Return rank and alpha of a module; the last rule whose words are part of its name wins.

    A rule without an alpha of its own keeps the strength alpha / rank of all.
    """
    own_rank, own_alpha = rank, alpha
    for rule in rules:
        if rule.words in module:
            own_rank = rule.rank
            own_alpha = alpha * rule.rank / rank if rule.alpha is None else rule.alpha
    return own_rank, own_alpha


def module_ranks(
    modules: Iterable[str], rank: int, alpha: float, pattern: Iterable[str]
) -> Mapping[str, tuple[int, float]]:
    """Return rank and alpha of every module.

    Raises:
        AdapterError: when a rule concerns none of them.
    """
    names, rules = list(modules), read_rank_pattern(pattern)
    idle = [rule.words for rule in rules if not any(rule.words in name for name in names)]
    if idle:
        raise AdapterError(f"rank_pattern names {', '.join(idle)}, and no adapted layer has that in its name.")
    return {name: size_of(name, rank, alpha, rules) for name in names}


def filling_notices(ranks: Iterable[int]) -> tuple[str, ...]:
    """Say that a PEFT folder of several ranks is filled up to one."""
    sizes = sorted(set(ranks))
    if len(sizes) < 2:
        return ()
    return (
        f"The modules have ranks {', '.join(map(str, sizes))}; in a PEFT folder zeros fill them up to {sizes[-1]}, "
        "because not every player reads a table of ranks. Nothing else changes.",
    )
