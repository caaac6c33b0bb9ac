"""The size of the gradients of frozen weights, without ever keeping them."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter


class GradientNorms:
    """Measures the gradient of each of some weights during a backward pass, and frees it at once.

    PyTorch hands over a weight's gradient when it is complete; its norm is taken and the gradient dropped before the
    next one comes. All gradients of the 2B model together would need as much memory as its weights.

    Args:
        weights: by any name; each takes part in the loss once. They require gradients until `close`.
    """

    def __init__(self, weights: Mapping[str, Parameter]) -> None:
        self._weights = dict(weights)
        self._norms: dict[str, Tensor] = {}
        for weight in self._weights.values():
            weight.requires_grad_(True)
        self._hooks = [
            weight.register_post_accumulate_grad_hook(partial(self._take, name)) for name, weight in weights.items()
        ]

    def _take(self, name: str, weight: Tensor) -> None:
        assert weight.grad is not None, "the hook comes with a gradient"
        assert name not in self._norms, f"{name} takes part in the loss twice"
        self._norms[name] = torch.linalg.vector_norm(weight.grad, dtype=torch.float32)
        weight.grad = None

    def collect(self) -> dict[str, float]:
        """Return the norms of the backward pass that just ended, zero where no gradient came, and forget them."""
        zero = torch.zeros(())
        norms = torch.stack([self._norms.get(name, zero).cpu() for name in self._weights]).tolist()
        self._norms.clear()
        return dict(zip(self._weights, norms, strict=True))

    def close(self) -> None:
        """Leave the weights frozen, as they were."""
        for hook in self._hooks:
            hook.remove()
        for weight in self._weights.values():
            weight.requires_grad_(False)
