"""The VAE's activation in one GPU kernel forwards and one backwards, instead of five and more.

The VAE is all memory traffic: this is what makes its training short. Without Triton, or on a CPU, nothing changes.

Letters: B excerpts, K channels, S samples. The activation is x + sin(a x) ** 2 / b with a and b of each channel, kept as
logarithms.
"""

from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_oobleck
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK = 2048

if triton is not None:

    @triton.jit
    def _forward_kernel(x_at, alpha_at, beta_at, y_at, channels, samples, BLOCK: tl.constexpr):  # noqa: N803
        row = tl.program_id(0).to(tl.int64)
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = place < samples
        a = tl.exp(tl.load(alpha_at + row % channels))
        b = tl.exp(tl.load(beta_at + row % channels))
        x = tl.load(x_at + row * samples + place, mask=inside, other=0.0)
        wave = tl.sin(a * x)
        tl.store(y_at + row * samples + place, x + wave * wave / b, mask=inside)

    @triton.jit
    def _backward_kernel(x_at, alpha_at, beta_at, g_at, dx_at, sums_at, channels, samples, BLOCK: tl.constexpr):  # noqa: N803
        row = tl.program_id(0).to(tl.int64)
        part = tl.program_id(1)
        place = part * BLOCK + tl.arange(0, BLOCK)
        inside = place < samples
        a = tl.exp(tl.load(alpha_at + row % channels))
        b = tl.exp(tl.load(beta_at + row % channels))
        x = tl.load(x_at + row * samples + place, mask=inside, other=0.0)
        g = tl.load(g_at + row * samples + place, mask=inside, other=0.0)
        wave = tl.sin(a * x)
        slope = 2.0 * a * wave * tl.cos(a * x) / b
        tl.store(dx_at + row * samples + place, g * (1.0 + slope), mask=inside)
        to = sums_at + (row * tl.num_programs(1) + part) * 2
        tl.store(to, tl.sum(g * slope * x))
        tl.store(to + 1, -tl.sum(g * wave * wave / b))


class Snake(torch.autograd.Function):
    """The activation with its derivatives by x and by both logarithms."""

    @staticmethod
    def forward(context: Any, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Compute (B, K, S) from (B, K, S) and two of (1, K, 1)."""
        x = x.contiguous()
        context.save_for_backward(x, alpha, beta)
        y = torch.empty_like(x)
        rows, samples = x.shape[0] * x.shape[1], x.shape[2]
        _forward_kernel[(rows, triton.cdiv(samples, BLOCK))](x, alpha, beta, y, x.shape[1], samples, BLOCK=BLOCK)
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of the three inputs."""
        x, alpha, beta = context.saved_tensors
        rows, samples = x.shape[0] * x.shape[1], x.shape[2]
        parts = triton.cdiv(samples, BLOCK)
        dx, sums = torch.empty_like(x), x.new_empty(x.shape[0], x.shape[1], parts, 2)
        _backward_kernel[(rows, parts)](
            x, alpha, beta, gradient.contiguous(), dx, sums, x.shape[1], samples, BLOCK=BLOCK
        )
        by_channel = sums.sum(dim=(0, 2))
        return dx, by_channel[:, 0].reshape(alpha.shape), by_channel[:, 1].reshape(beta.shape)


def use_fast_snake() -> None:
    """Let every VAE of this process use the kernels on a GPU."""
    usual = autoencoder_oobleck.Snake1d.forward

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if triton is None or not hidden_states.is_cuda:
            return usual(self, hidden_states)
        return Snake.apply(hidden_states, self.alpha, self.beta)

    autoencoder_oobleck.Snake1d.forward = forward
