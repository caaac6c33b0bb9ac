"""What every stage shares: a learning rate, a log, and steps that a GPU repeats without being told each kernel anew."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

EAGER_STEPS = 3
"""How many steps a GPU takes kernel by kernel, to make and choose them, before it records one."""


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


def learning_rate(progress: float, peak: float, *, warmup: float = 0.03) -> float:
    """Return a rate that rises to its peak and falls to a hundredth of it along a cosine."""
    if progress < warmup:
        return peak * (0.01 + 0.99 * progress / warmup)
    along = (progress - warmup) / (1 - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along)))


class Trainer:
    """Does the same step again and again, and keeps a moving average of what it trains.

    On a GPU a step is recorded once and then replayed whole: a model of this size would wait for its launches.

    Args:
        compute_loss: of tensors that stay in place and are filled anew for each step.
        parameters: trained.
        averaged: of which a moving average is kept.
    """

    def __init__(
        self,
        compute_loss: Callable[[], Tensor],
        parameters: list[nn.Parameter],
        averaged: nn.Module,
        *,
        peak: float,
        weight_decay: float,
        decay: float = 0.999,
    ) -> None:
        self._compute_loss, self._parameters, self._peak, self._decay = compute_loss, parameters, peak, decay
        self._is_on_gpu = parameters[0].is_cuda
        rate = torch.tensor(peak, device=parameters[0].device) if self._is_on_gpu else peak
        self._optimizer = torch.optim.AdamW(
            parameters,
            lr=rate,
            betas=(0.9, 0.98),
            weight_decay=weight_decay,
            foreach=True,
            capturable=self._is_on_gpu,
        )
        self._live = list(averaged.state_dict().values())
        self._average = [value.clone() for value in self._live]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss = torch.zeros(())

    def step(self, number: int, progress: float) -> Tensor:
        """Do a step; return its loss, (). Reading it waits for the GPU."""
        self._set_rate(learning_rate(progress, self._peak))
        if self._is_on_gpu and self._graph is None and number >= EAGER_STEPS:
            self._record()
        if self._graph is None:
            self._do()
        else:
            self._graph.replay()
        torch._foreach_lerp_(self._average, self._live, 1 - min(self._decay, (1 + number) / (10 + number)))
        return self._loss

    def _do(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._compute_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self._optimizer.step()
        self._loss = loss.detach()

    def _record(self) -> None:
        """Record a step on the stream in use; nothing is computed yet."""
        self._graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            self._do()

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if self._is_on_gpu:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @contextmanager
    def averages(self) -> Iterator[None]:
        """Put the moving averages into the modules for a while."""
        with torch.no_grad():
            live = [value.clone() for value in self._live]
            torch._foreach_copy_(self._live, self._average)
            yield
            torch._foreach_copy_(self._live, live)

    def use_average(self) -> None:
        """Put the moving averages into the modules for good."""
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._average)


def run(
    name: str,
    trainer: Trainer,
    fill: Callable[[int], None],
    steps: int,
    log: Log,
    measure: Callable[[], float] | None = None,
) -> None:
    """Take the steps of a stage and leave the averages in its modules.

    Args:
        name: of the stage, in the log.
        trainer: takes the steps.
        fill: the tensors that the loss of a step depends on.
        steps: how many.
        log: hears of the loss, a moving mean, eighty times.
        measure: a loss on songs that are not trained on, of the averages, that is logged beside it.
    """
    often = max(steps // 80, 1)
    device = trainer._parameters[0].device
    recent = torch.zeros((), device=device)
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        for step in range(steps):
            fill(step)
            recent = torch.lerp(recent, trainer.step(step, step / steps), 0.02 if step > 50 else 0.5)
            if (step + 1) % often == 0:
                with trainer.averages():
                    more = {} if measure is None else {"held_out": measure()}
                log(name, step=step + 1, loss=recent.item(), **more)
        trainer.use_average()
        if device.type == "cuda":
            torch.cuda.synchronize()
