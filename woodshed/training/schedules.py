"""The five learning-rate schedules, as closed forms of the number of finished optimizer steps.

There is no scheduler object and hence no scheduler state: a resumed run asks the same function. Let s be the number of
optimizer steps already done, W the warm-up, N the length of the run and D = N - W. Step s + 1 uses the peak rate times

    constant                                  1, at every step: no ramp hides in it
    every other schedule, s < W               0.1 + 0.9 s / W
    constant_with_warmup, s >= W              1
    linear, s >= W                            1 - (s - W) / D
    cosine, s >= W                            (1 + cos(pi (s - W) / D)) / 2
    cosine_restarts, s >= W                   the same over each quarter of D, starting again at 1

So step 1 uses 10 % and step W + 1 uses 100 %. The falling schedules aim at 0, which the step after the last would use;
so no step is spent at rate 0.

Source: the cosine is Loshchilov and Hutter 2017, equation 5 with a minimum of 0, https://arxiv.org/abs/1608.03983, in
the convention of torch's CosineAnnealingLR and LinearLR(start_factor=0.1).
"""

import math

from woodshed.settings.schema import SchedulerType

WARMUP_START = 0.1
RESTART_CYCLES = 4
"""Each cycle of cosine_restarts is a quarter of the run: short enough to leave a minimum, long enough to settle."""


def learning_rate_factor(step: int, *, scheduler_type: SchedulerType, warmup_steps: int, total_steps: int) -> float:
    """Return what the peak learning rate is multiplied by.

    Args:
        step: optimizer steps already done, in [0, total_steps); 0 before the first.
        scheduler_type: the shape of the curve.
        warmup_steps: length of the ramp; 0 for none. One that outlasts the run never reaches the peak.
        total_steps: length of the whole run, over all epochs and resumes.

    Returns:
        In (0, 1].
    """
    assert 0 <= step < total_steps, f"step {step} is not in a run of {total_steps} steps"
    if scheduler_type == "constant":
        return 1.0
    if step < warmup_steps:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    done, length = step - warmup_steps, total_steps - warmup_steps
    match scheduler_type:
        case "constant_with_warmup":
            return 1.0
        case "linear":
            return 1 - done / length
        case "cosine":
            return _half_cosine(done / length)
        case "cosine_restarts":
            # Whole numbers: with floats a restart may land on 0.999... of the old cycle, rate 0 instead of 1.
            return _half_cosine((done * RESTART_CYCLES) % length / length)


def _half_cosine(progress: float) -> float:
    """Fall from 1 to 0 while progress goes from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2
