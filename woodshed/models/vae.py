"""The VAE as it is computed with: its weights folded, and an encoder that is fast on CUDA.

At 48,000 samples a second the encoder is bound by memory: between two convolutions lie a bias, a residual sum and an
activation of eight small operations, each of which would read and write hundreds of megabytes. `FusedEncoder` lets the
compiler make one kernel of them, for tiles of any length, and keeps channels last, as convolutions in 16 bits want.

Letters: B tiles, L samples or what the strides left of them, N = B x L, C channels.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from diffusers.models.autoencoders.autoencoder_oobleck import (
    OobleckEncoder,
    OobleckEncoderBlock,
    OobleckResidualUnit,
    Snake1d,
)
from torch import Tensor, nn
from torch.nn.utils import remove_weight_norm

MOST_VARIANTS = 64  # of a compiled function: numbers of channels x precisions


def fold_weight_norm(vae: AutoencoderOobleck) -> None:
    """Put every convolution's weight in the place of its direction and length, from which it is made in each call."""
    for module in vae.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
            module.weight.requires_grad_(requires_grad=False)


@torch.no_grad()
def fuse_encoder(vae: AutoencoderOobleck) -> str | None:
    """Let a VAE encode through `FusedEncoder`; return why it cannot, after which it encodes as before."""
    usual = vae.encoder
    if not _can_be_fused(usual):
        return "it is made of other layers"
    try:
        vae.encoder = FusedEncoder(usual)
        vae.encoder(torch.zeros(1, vae.config.audio_channels, 2 * vae.hop_length, device=vae.device, dtype=vae.dtype))
    except RuntimeError as error:  # the compiler's and CUDA's own errors are all of this kind
        vae.encoder = usual
        return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    return None


def _can_be_fused(encoder: nn.Module) -> bool:
    """Tell whether every layer is there; the units of a linear VAE, which add nothing, are left out."""
    return isinstance(encoder, OobleckEncoder) and not any(isinstance(part, nn.Identity) for part in encoder.modules())


class FusedEncoder(nn.Module):
    """Computes what an encoder does, with tiles that may end before their room does.

    Args:
        encoder: whose weights are folded; it stays as it is.
    """

    def __init__(self, encoder: OobleckEncoder) -> None:
        super().__init__()
        self.first = _Convolution(encoder.conv1)
        self.blocks = cast(Iterable[_Block], nn.ModuleList(_Block(block) for block in encoder.block))
        self.activation = _Snake(encoder.snake1)
        self.last = _Convolution(encoder.conv2)

    def forward(self, sound: Tensor, lengths: list[int] | None = None) -> Tensor:
        """Return what the VAE's distribution is made of, (B, 2 x latent channels, frames).

        Args:
            sound: (B, channels, L).
            lengths: how much of each tile is sound; behind it everything counts as zero in every layer, as if the tile
                ended there. All of it unless given.
        """
        ends = torch.tensor(lengths or [sound.shape[-1]] * len(sound))
        hidden, bias = self.first(sound.transpose(1, 2).contiguous()), self.first.bias
        # One name for what goes on, because the largest tensors must go as soon as they are used.
        for block in self.blocks:
            valid = _valid(ends, hidden)
            stream, hidden = block.first.enter(hidden, bias, valid)
            for unit, following in zip(block.units, block.following, strict=True):
                hidden = unit.first(hidden)
                hidden = unit.between(hidden, unit.first.bias, valid)
                hidden = unit.second(hidden)
                stream, hidden = following.join(hidden, unit.second.bias, valid, stream)
            del stream
            hidden = block.down(hidden)
            bias, ends = block.down.bias, block.down.length_of(ends)
        hidden = self.activation(hidden, bias, _valid(ends, hidden))
        made: Tensor = self.last(hidden) + self.last.bias
        return made.transpose(1, 2)


def _valid(ends: Tensor, hidden: Tensor) -> Tensor:
    """Return (B, L, 1), what lies before the ends."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    return (places < _to(ends, hidden.device)[:, None])[..., None]


def _to(ends: Tensor, device: torch.device) -> Tensor:
    return ends.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ends


class _Convolution(nn.Module):
    """A convolution over (B, L, C) without its bias, which the next kernel adds."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        # A Conv1d would make its input contiguous, channels first; as an image of one row it takes what it gets.
        weight = layer.weight.detach()[:, :, None].contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        assert layer.bias is not None
        self.register_buffer("bias", layer.bias.detach(), persistent=False)
        self.kernel, self.stride = layer.kernel_size[0], layer.stride[0]
        self.padding, self.dilation = int(layer.padding[0]), layer.dilation[0]

    def forward(self, heard: Tensor) -> Tensor:
        if self.kernel == 1:
            return F.linear(heard, self.weight[:, :, 0, 0])
        image = heard[:, None].permute(0, 3, 1, 2)
        made = F.conv2d(image, self.weight, None, (1, self.stride), (0, self.padding), (1, self.dilation))
        return made.permute(0, 2, 3, 1)[:, 0]

    def length_of(self, ends: Tensor) -> Tensor:
        """Return how long the output of so long an input is."""
        reach = self.dilation * (self.kernel - 1) + 1
        return ((ends + 2 * self.padding - reach) // self.stride + 1).clamp(min=0)


class _Snake(nn.Module):
    """The activation x + sin(a x)^2 / b, together with what stands before it."""

    frequency: Tensor
    depth: Tensor

    def __init__(self, snake: Snake1d) -> None:
        super().__init__()
        alpha, beta = snake.alpha.detach().float().flatten(), snake.beta.detach().float().flatten()
        self.register_buffer("frequency", alpha.exp(), persistent=False)
        self.register_buffer("depth", (beta.exp() + 1e-9).reciprocal(), persistent=False)

    def forward(self, hidden: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
        return self._run(_activated, hidden, bias, valid)[0]

    def enter(self, hidden: Tensor, bias: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stream that begins, and what is heard of it."""
        stream, heard = self._run(_entered, hidden, bias, valid)
        return stream, heard

    def join(self, hidden: Tensor, bias: Tensor, valid: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stream with something added, and what is heard of it."""
        stream, heard = self._run(_joined, hidden, bias, valid, stream)
        return stream, heard

    def _run(
        self, function: Callable[..., tuple[Tensor, ...]], hidden: Tensor, bias: Tensor, valid: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        rows = [tensor.flatten(0, 1) for tensor in (hidden, valid, *more)]
        for tensor in rows:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        made = _compiled(function)(bias, self.frequency, self.depth, *rows)
        return tuple(tensor.unflatten(0, hidden.shape[:2]) for tensor in made)


class _Unit(nn.Module):
    """A residual unit, without the activation before it."""

    def __init__(self, unit: OobleckResidualUnit) -> None:
        super().__init__()
        self.first, self.second = _Convolution(unit.conv1), _Convolution(unit.conv2)
        self.between = _Snake(unit.snake2)


class _Block(nn.Module):
    """Three residual units and a convolution that leaves one of so many samples."""

    def __init__(self, block: OobleckEncoderBlock) -> None:
        super().__init__()
        units = (block.res_unit1, block.res_unit2, block.res_unit3)
        self.first = _Snake(units[0].snake1)
        self.units = cast(Iterable[_Unit], nn.ModuleList(_Unit(unit) for unit in units))
        self.following = cast(
            Iterable[_Snake], nn.ModuleList(_Snake(snake) for snake in (units[1].snake1, units[2].snake1, block.snake1))
        )
        self.down = _Convolution(block.conv1)


# Each is one kernel, computed in float32. Arguments: bias, frequency and depth (C,), hidden (N, C), valid (N, 1).
def _activated(bias: Tensor, frequency: Tensor, depth: Tensor, hidden: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    return (_snake(hidden.float() + bias.float(), frequency, depth, valid).to(hidden.dtype),)


def _entered(bias: Tensor, frequency: Tensor, depth: Tensor, hidden: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    stream = hidden.float() + bias.float()
    return stream.to(hidden.dtype), _snake(stream, frequency, depth, valid).to(hidden.dtype)


def _joined(
    bias: Tensor, frequency: Tensor, depth: Tensor, hidden: Tensor, valid: Tensor, stream: Tensor
) -> tuple[Tensor, ...]:
    stream = stream.float() + hidden.float() + bias.float()
    return stream.to(hidden.dtype), _snake(stream, frequency, depth, valid).to(hidden.dtype)


def _snake(x: Tensor, frequency: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, x + depth * (frequency * x).sin().square(), 0)


@cache
def _compiled(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VARIANTS)
    compiled: Any = torch.compile(function, fullgraph=True)
    return compiled  # type: ignore[no-any-return]
