"""What happens when a loss or a gradient is no number any more."""

import math
from collections.abc import Sequence

import torch

from woodshed.errors import ElsewhereError, UserError
from woodshed.training.run import Run
from woodshed.training.team import Part

SMALLEST_LOSS_SCALE = 1.0  # below it, float16 gradients overflow although nothing is scaled up any more


class NonFiniteLossError(UserError):
    """The loss or its gradient is no number any more; the adapter still holds the last good step."""


def refuse_non_finite(run: Run, own_names: Sequence[str], part: Part, losses: list[float], norm: float) -> None:
    """Stop when the loss is no number, before the adapter is touched; float16 may overflow and is rescaled first.

    Args:
        run: before its step.
        own_names: of the songs that this process computed.
        part: where they belong in the step.
        losses: of all songs of the step.
        norm: of the gradient.

    Raises:
        NonFiniteLossError: in the leader, naming songs; in the others an ElsewhereError.
    """
    is_float16 = run.scaler.is_enabled()
    if is_float16 and run.scaler.get_scale() > SMALLEST_LOSS_SCALE:
        return
    if all(map(math.isfinite, (*losses, norm))):
        return
    names = run.team.gather_names(part, own_names)
    bad = [name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
    what = f"The loss of {', '.join(bad)}" if bad else f"The gradient of {', '.join(names)}"
    said = f"{what} is not a finite number in step {run.position.step + 1}."
    kind = NonFiniteLossError if run.team.leads else ElsewhereError
    raise kind(f"{said} {_finite_loss_advice(run.preflight.dtype)}")


def _finite_loss_advice(dtype: torch.dtype) -> str:
    """Return what to try against a loss that is no number in this precision."""
    if dtype == torch.float16:
        return "float16 is too narrow here: use --precision bf16, or fp32."
    wider = "" if dtype == torch.float32 else ", or use --precision fp32"
    return f"Lower --learning-rate. If it came in the first steps, encode that song again{wider}."
