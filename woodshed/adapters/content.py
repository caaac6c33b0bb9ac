"""What an adapter is, apart from any file: the changes to weights and biases, and the recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from woodshed.adapters.adapter import Recipe
from woodshed.adapters.changes import Change


@dataclass(frozen=True)
class Content:
    """Everything that a format may store."""

    changes: Mapping[str, Change]  # by original module name
    recipe: Recipe = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)  # trained biases of the base model, by original name
    bias_differences: Mapping[str, Tensor] = field(default_factory=dict)  # or how far they are from it
    lokr_config: Mapping[str, Any] = field(default_factory=dict)  # what a LoKr was trained with, or its file says so

    @property
    def modules(self) -> list[str]:
        """The adapted modules, by original name."""
        return list(self.changes)

    @property
    def bias_names(self) -> list[str]:
        """The trained biases, by original name."""
        return [*self.biases, *self.bias_differences]

    @property
    def family(self) -> type[Change]:
        """The one kind of change; `Change` itself where there are several."""
        kinds = {type(change) for change in self.changes.values()}
        return kinds.pop() if len(kinds) == 1 else Change

    @property
    def has_norms(self) -> bool:
        """Whether a weight is decomposed (DoRA)."""
        return any(change.norms is not None for change in self.changes.values())

    def shape(self, module: str) -> tuple[int, int]:
        """Return (out, in) of the weight that a module fits; out is 0 where any number fits."""
        return self.changes[module].shape

    def delta(self, module: str, weight: Tensor) -> Tensor:
        """Return the weight difference (out, in) in the precision of the base weight."""
        return self.changes[module].delta(weight)

    def bias(self, name: str, base: Tensor) -> Tensor:
        """Return a trained bias, given that of the base model."""
        if name in self.biases:
            return self.biases[name].to(base)
        return base + self.bias_differences[name].to(base)
