"""Frozen linear layers in fewer bits than they compute in, for bases that would not fit otherwise.

Only the layers inside the decoder's blocks are held so; they are nearly all of it. The full weight exists while a layer
is computed and never longer: the backward pass makes it again instead of keeping it, which an operator of our own tells
the compiler too. An adapter's own weights stay float32.

Shapes: weights (out, in). How many bits a number takes, scales included, is `BITS`.
"""

import importlib.util
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from woodshed.errors import UserError

BITS = {"bf16": 16.0, "int8": 8.0, "fp8": 8.0, "nf4": 4.5}
BLOCK = 64  # numbers of an nf4 weight that share a scale
INT8_LARGEST = 127
FP8 = torch.float8_e4m3fn


class Packed(NamedTuple):
    """A weight in few bits."""

    codes: Tensor
    scales: Tensor  # of rows, (out, 1) in the precision of the computation; of blocks in float32 for nf4


def require_base_precision(kind: str) -> None:
    """Check that the package for a base precision is there, without importing it.

    Raises:
        UserError: with the line that installs it.
    """
    if kind == "nf4" and not has_nf4():
        raise UserError(
            "--base-precision nf4 needs the package bitsandbytes, which is not installed. "
            'Install it with: pip install "woodshed[8bit]", or choose --base-precision int8.'
        )


def has_nf4() -> bool:
    """Tell whether the package that packs four bits is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def pack(weight: Tensor, kind: str) -> Packed:
    """Round a weight to few bits.

    Args:
        weight: (out, in), in the precision of the computation, on the device where it shall stay.
        kind: `int8` and `fp8` (e4m3) keep a scale per row, so that the row's largest number is met exactly; `nf4` keeps
            one per 64 numbers (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314); `bf16` rounds and needs none.
    """
    if kind == "bf16":
        return Packed(weight.bfloat16(), weight.new_ones(1))
    if kind == "nf4":
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
        return Packed(codes, state.absmax.float())
    largest = INT8_LARGEST if kind == "int8" else torch.finfo(FP8).max
    # Rounded to the precision that it is multiplied in; what then lies beyond the largest code is cut.
    scales = (weight.float().abs().amax(dim=1, keepdim=True) / largest).to(weight.dtype)
    scales = torch.where(scales > 0, scales, 1)
    numbers = (weight.float() / scales.float()).clamp(-largest, largest)
    return Packed(numbers.round().to(torch.int8) if kind == "int8" else numbers.to(FP8), scales)


def unpack(packed: Packed, kind: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the weight that was packed, (out, in)."""
    codes, scales = packed
    if kind == "int8":
        return codes * scales.to(dtype)  # one kernel: an integer takes the type of what it is multiplied with
    if kind == "fp8":
        return codes.to(dtype).mul_(scales.to(dtype))
    if kind == "bf16":
        return codes.to(dtype)
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state = QuantState(scales, shape=torch.Size(shape), blocksize=BLOCK, quant_type="nf4", dtype=dtype)
    weight: Tensor = dequantize_4bit(codes, state)
    return weight


@torch.library.custom_op("woodshed::frozen_linear", mutates_args=())
def _frozen_linear(x: Tensor, codes: Tensor, scales: Tensor, kind: str, rows: int) -> Tensor:
    """Multiply (..., in) by a packed weight: (..., out)."""
    return F.linear(x, unpack(Packed(codes, scales), kind, (rows, x.shape[-1]), x.dtype))


@_frozen_linear.register_fake
def _(x: Tensor, codes: Tensor, scales: Tensor, kind: str, rows: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-1], rows)


@torch.library.custom_op("woodshed::frozen_linear_backward", mutates_args=())
def _frozen_linear_backward(gradient: Tensor, codes: Tensor, scales: Tensor, kind: str, columns: int) -> Tensor:
    """Multiply (..., out) by a packed weight's transpose: (..., in)."""
    return gradient @ unpack(Packed(codes, scales), kind, (gradient.shape[-1], columns), gradient.dtype)


@_frozen_linear_backward.register_fake
def _(gradient: Tensor, codes: Tensor, scales: Tensor, kind: str, columns: int) -> Tensor:  # noqa: ARG001
    return gradient.new_empty(*gradient.shape[:-1], columns)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, codes, scales, ctx.kind, _ = inputs
    ctx.columns = x.shape[-1]
    ctx.save_for_backward(codes, scales)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _frozen_linear_backward(gradient, *ctx.saved_tensors, ctx.kind, ctx.columns), None, None, None, None


_frozen_linear.register_autograd(_gradient, setup_context=_remember)


class FrozenLinear(nn.Linear):
    """A linear layer whose weight does not train and is held in few bits.

    Args:
        weight: as `pack` takes it.
        bias: (out,) or None; may train.
        kind: a key of `BITS`.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kind: str) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.kind = kind
        self.dtype = weight.dtype
        packed = pack(weight, kind)
        self.register_buffer("codes", packed.codes, persistent=False)
        self.register_buffer("scales", packed.scales, persistent=False)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override] # for those who ask what the layer computes with
        """The full weight as it is computed with, made anew: (out, in)."""
        return unpack(Packed(self.codes, self.scales), self.kind, (self.out_features, self.in_features), self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Do what a linear layer does, autocast included, which knows nothing of operators of others."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        output: Tensor = _frozen_linear(x, self.codes, self.scales, self.kind, self.out_features)
        return output if self.bias is None else output + self.bias.to(output.dtype)
