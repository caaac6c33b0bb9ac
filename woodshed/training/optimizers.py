"""The four optimizers, and their rules.

All decay weights decoupled from the gradient: w shrinks by weight_decay x rate x w, outside the moments (Loshchilov and
Hutter 2019, https://arxiv.org/abs/1711.05101). Each keeps its whole state in `state_dict()`, plain enough for
`torch.load(weights_only=True)`, and continues from it to the last bit.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from woodshed.errors import UserError
from woodshed.settings.schema import OptimizerType

ParameterGroups = list[dict[str, Any]]

_PACKAGES = {"adamw8bit": ("bitsandbytes", "8bit"), "prodigy": ("prodigyopt", "prodigy")}
"""Optional packages: module to import, and the extra of ours that installs it."""


def require_optimizer(optimizer_type: OptimizerType) -> None:
    """Check that the package of an optimizer is installed, without importing it.

    Raises:
        UserError: with the line that installs it.
    """
    if optimizer_type not in _PACKAGES:
        return
    package, extra = _PACKAGES[optimizer_type]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"The optimizer {optimizer_type} needs the package {package}, which is not installed. "
            f'Install it with: pip install "woodshed[{extra}]", or choose --optimizer-type adamw.'
        )


def build_optimizer(
    optimizer_type: OptimizerType,
    parameters: Iterable[Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    undecayed: Iterable[Parameter] = (),
    captured_on: torch.device | None = None,
) -> torch.optim.Optimizer:
    """Build an optimizer over float32 parameters.

    Args:
        optimizer_type: which of the four.
        parameters: all that are trained.
        learning_rate: the peak rate; 1.0 for prodigy, which finds its own.
        weight_decay: in [0, 1].
        warmup_steps: optimizer steps in which the rate rises; prodigy guards its estimate against them.
        undecayed: those of `parameters` that must not shrink towards zero, because zero is not where they start: the
            base model's biases, the norms of a weight decomposition (`Adapter.undecayed`).
        captured_on: the device whose graphs will hold the step, see `update`; for `can_be_captured` only.

    Raises:
        UserError: when its package is missing.
    """
    require_optimizer(optimizer_type)
    groups = _group_by_decay(list(parameters), {id(parameter) for parameter in undecayed}, weight_decay)
    match optimizer_type:
        case "adamw":
            if captured_on is None:
                return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
            rate = torch.tensor(learning_rate, device=captured_on)
            return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=True)
        case "adamw8bit":
            return _adamw8bit(groups, learning_rate)
        case "adafactor":
            return _adafactor(groups, learning_rate)
        case "prodigy":
            return _prodigy(groups, learning_rate, is_warming_up=warmup_steps > 0)


def _group_by_decay(parameters: Sequence[Parameter], undecayed: set[int], weight_decay: float) -> ParameterGroups:
    """Split the parameters into at most two groups, in their given order."""
    groups = [
        {"params": [p for p in parameters if id(p) not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in undecayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw8bit(groups: ParameterGroups, learning_rate: float) -> torch.optim.Optimizer:
    """Keep both moments in 8 bits; tensors under 4,096 elements keep theirs in float32."""
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=learning_rate)
    return optimizer


def _adafactor(groups: ParameterGroups, learning_rate: float) -> torch.optim.Optimizer:
    """Follow the given rate; no first moment, and the second as one row and one column per matrix.

    With `scale_parameter` a step would be as small as the parameter, so that a LoRA's B, which starts at zero, would
    hardly move. torch's own Adafactor always does that.
    """
    from transformers.optimization import Adafactor

    optimizer: torch.optim.Optimizer = Adafactor(
        groups, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return optimizer


def _prodigy(groups: ParameterGroups, learning_rate: float, *, is_warming_up: bool) -> torch.optim.Optimizer:
    """Estimate the rate d while training; the step is d x rate.

    Source: betas, bias correction and safeguard are the author's advice for diffusion models,
    https://github.com/konstmish/prodigy.
    """
    from prodigyopt import Prodigy

    # The constructor's own weight_decay would print; the groups bring theirs.
    optimizer: torch.optim.Optimizer = Prodigy(
        groups, lr=learning_rate, betas=(0.9, 0.99), use_bias_correction=True, safeguard_warmup=is_warming_up
    )
    return optimizer


def can_be_captured(optimizer_type: OptimizerType) -> bool:
    """Tell whether an optimizer's step does the same whatever it meets, so that a CUDA graph can hold it."""
    return optimizer_type == "adamw"


def restore_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `state_dict()` gave on whatever machine, and keep how this one computes.

    Raises:
        ValueError: when it is the state of other parameters.
    """
    names = ("lr", "capturable")
    own = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept.items())


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Let the next step use this rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(learning_rate)  # a captured step reads it from where it is
        else:
            group["lr"] = learning_rate


def effective_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the rate that the next step uses: the scheduled one, for prodigy times its present estimate d."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group["d"] if "d" in group else group["lr"])
