"""What the settings of a LoKr come to on linear layers: shapes, scale, size, and which settings do nothing there.

Source: shape rules of lycoris-lora 4.1.3.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lycoris.functional.general import factorization

from woodshed.adapters.targets import Shapes


@dataclass(frozen=True)
class LokrSettings:
    """The switches of the algorithm, as the settings reference names them."""

    linear_dim: int
    linear_alpha: float
    factor: int = -1
    decompose_both: bool = False
    use_tucker: bool = False
    use_scalar: bool = False
    weight_decompose: bool = False


@dataclass(frozen=True)
class LokrShape:
    """What the settings come to on a linear layer of one size."""

    w1: tuple[int, int]
    w2: tuple[int, int]
    is_w1_whole: bool
    is_w2_whole: bool
    scale: float
    num_parameters: int

    @classmethod
    def of(cls, out_features: int, in_features: int, settings: LokrSettings) -> "LokrShape":
        """Apply LyCORIS's rules to a layer."""
        (rows1, rows2), (columns1, columns2) = (
            factorization(size, settings.factor) for size in (out_features, in_features)
        )
        dim = settings.linear_dim
        is_w1_whole = not (settings.decompose_both and dim < max(rows1, columns1) / 2)
        is_w2_whole = dim >= max(rows2, columns2) / 2
        return cls(
            w1=(rows1, columns1),
            w2=(rows2, columns2),
            is_w1_whole=is_w1_whole,
            is_w2_whole=is_w2_whole,
            scale=1.0 if is_w1_whole and is_w2_whole else settings.linear_alpha / dim,
            num_parameters=(rows1 * columns1 if is_w1_whole else dim * (rows1 + columns1))
            + (rows2 * columns2 if is_w2_whole else dim * (rows2 + columns2))
            + settings.use_scalar
            + settings.weight_decompose * out_features,
        )

    def __str__(self) -> str:
        """Return one line for the review before a run."""
        w1, w2 = (
            f"{name} {rows}x{columns} {'whole' if is_whole else 'low-rank'}"
            for name, (rows, columns), is_whole in (
                ("w1", self.w1, self.is_w1_whole),
                ("w2", self.w2, self.is_w2_whole),
            )
        )
        return f"{w1}, {w2}, scale {self.scale:g}, {self.num_parameters:,} parameters"


@dataclass(frozen=True)
class LokrDescription:
    """What a LoKr will be, known without the model."""

    shapes: Mapping[str, LokrShape]  # by module
    inert: Mapping[str, str]  # settings without effect here, each with the reason

    @property
    def num_parameters(self) -> int:
        """How many numbers will be trained."""
        return sum(shape.num_parameters for shape in self.shapes.values())

    def lines(self) -> list[str]:
        """Return one line for each kind of layer."""
        return [f"{count} x {shape}" for shape, count in Counter(self.shapes.values()).items()]


def describe_lokr(shapes: Shapes, settings: LokrSettings) -> LokrDescription:
    """Work out effective shapes, scale and size on the target layers, and which settings do nothing."""
    found = {name: LokrShape.of(*shape, settings) for name, shape in shapes.items()}
    largest_w1 = max(max(shape.w1) for shape in found.values())
    inert = {
        "lokr_use_tucker": "Tucker decomposition exists for convolutions only, and every adapted layer is linear",
    }
    if settings.linear_dim >= largest_w1 / 2:
        inert["lokr_decompose_both"] = (
            f"the first factor is at most {largest_w1} wide and stays whole unless lokr_linear_dim is below "
            f"{largest_w1 / 2:g}"
        )
    if all(shape.is_w1_whole and shape.is_w2_whole for shape in found.values()):
        largest_w2 = max(max(shape.w2) for shape in found.values())
        inert["lokr_linear_dim"] = (
            f"both factors are whole matrices; the second becomes low-rank when this is below {largest_w2 / 2:g}, "
            "or with a smaller lokr_factor"
        )
        inert["lokr_linear_alpha"] = "both factors are whole matrices, and then the scale is always 1"
    return LokrDescription(found, inert)
