"""What every stage shares: learning rates, a log, an end in time, and steps that a GPU repeats without being told."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


class Log:
    """Writes a line of JSON for every so many steps, and says the same on the terminal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started_at = time.monotonic()
        path.write_text("", encoding="utf-8")

    def __call__(self, stage: str, **facts: float | str) -> None:
        """Write facts about a stage, rounded, with the seconds since the beginning."""
        rounded = {name: float(f"{fact:.5g}") if isinstance(fact, float) else fact for name, fact in facts.items()}
        line = {"stage": stage, "seconds": round(time.monotonic() - self._started_at, 1), **rounded}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)  # noqa: T201 - a script


def steps_in_time(steps: int, seconds: float) -> Iterator[tuple[int, float]]:
    """Yield each step and how far the stage is, in [0, 1): in steps or in time, whichever is further."""
    started_at = time.monotonic()
    for step in range(steps):
        spent = (time.monotonic() - started_at) / seconds
        if spent >= 1:
            return
        yield step, max(step / steps, spent)


def learning_rate(progress: float, peak: float, *, warmup: float = 0.03) -> float:
    """Return a rate that rises to its peak and falls to a hundredth of it along a cosine."""
    if progress < warmup:
        return peak * (0.01 + 0.99 * progress / warmup)
    along = (progress - warmup) / (1 - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along)))


class Trainer:
    """Does the same step again and again, and keeps a moving average of what it trains.

    Args:
        compute_loss: from tensors that stay in place and are filled anew for each step; returns what is minimised
            and what else is to be known, (n,).
        parameters: trained.
        averaged: modules of which a moving average is kept.
    """

    def __init__(
        self,
        compute_loss: Callable[[], tuple[Tensor, Tensor]],
        parameters: list[nn.Parameter],
        averaged: list[nn.Module],
        *,
        peak: float,
        betas: tuple[float, float],
        weight_decay: float,
        decay: float = 0.998,
    ) -> None:
        self._compute_loss, self._parameters, self._peak, self._decay = compute_loss, parameters, peak, decay
        self._optimizer = torch.optim.AdamW(parameters, lr=peak, betas=betas, weight_decay=weight_decay, foreach=True)
        self._live = [value for module in averaged for value in module.state_dict().values()]
        self.average = [value.clone() for value in self._live]
        self._result = torch.zeros(1)

    def step(self, number: int, progress: float) -> Tensor:
        """Do a step; return what `compute_loss` wants known. Reading it waits for the GPU."""
        self._set_rate(learning_rate(progress, self._peak))
        self._do()
        decay = min(self._decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(self.average, self._live, 1 - decay)
        return self._result

    def _do(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss, self._result = self._compute_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self._optimizer.step()
        self._result = self._result.detach()

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def use_average(self) -> None:
        """Put the moving averages into the modules."""
        with torch.no_grad():
            torch._foreach_copy_(self._live, self.average)
