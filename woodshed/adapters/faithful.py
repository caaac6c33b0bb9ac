"""A LoRA as it was trained: own rank, factor and alpha, for those who train on with PEFT."""

from dataclasses import replace
from typing import Any

from woodshed.adapters.adapter import Recipe
from woodshed.adapters.changes import Change, LowRank
from woodshed.adapters.content import Content
from woodshed.adapters.ranks import size_of
from woodshed.settings.ranks import read_rank_pattern


def as_trained(content: Content) -> Content:
    """Take the scale that the recipe names out of the second factor, and the zeros that fill up a rank off both.

    A file that keeps its scale apart is left as it is.
    """
    changes: dict[str, Change] = {}
    for module, change in content.changes.items():
        if isinstance(change, LowRank) and change.scale == 1:
            unfilled = change.unfilled()
            change = unfilled if unfilled.rank else change
            scale = _trained_scale(module, content.recipe)
            change = replace(change, b=change.b / scale, scale=scale)
        changes[module] = change
    return replace(content, changes=changes)


def _trained_scale(module: str, recipe: Recipe) -> float:
    """Return alpha / rank of a module as the recipe's settings have it; 1 where it says nothing usable."""
    settings: Any = recipe.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    rank, alpha, table = (settings.get(name) for name in ("rank", "alpha", "rank_pattern"))
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not (rank > 0 and 0 < alpha < 1e6):
        return 1.0
    words = [word for word in table if isinstance(word, str)] if isinstance(table, list) else []
    own_rank, own_alpha = size_of(module, rank, alpha, read_rank_pattern(words))
    return own_alpha / own_rank
