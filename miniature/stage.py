"""What every stage shares: learning rates, a log, an end in time, and steps that a GPU repeats without being told."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


BEFORE_RECORDING = 3
"""Steps that a GPU does as usual, so that all memory is there."""


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
    """Does the same step again and again; on CUDA as one recorded graph, so that small kernels cost no launches.

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
        self._on_gpu = parameters[0].is_cuda
        rate = torch.tensor(peak, device=parameters[0].device) if self._on_gpu else peak
        self._optimizer = torch.optim.AdamW(
            parameters, lr=rate, betas=betas, weight_decay=weight_decay, capturable=self._on_gpu, foreach=True
        )
        self._live = [value for module in averaged for value in module.state_dict().values()]
        self.average = [value.clone() for value in self._live]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result = torch.zeros(1)
        self._cannot_record = False

    def step(self, number: int, progress: float) -> Tensor:
        """Do a step; return what `compute_loss` wants known. Reading it waits for the GPU."""
        self._set_rate(learning_rate(progress, self._peak))
        if not self._on_gpu:
            self._do()
        elif number < BEFORE_RECORDING:
            self._aside(self._do)
        elif self._cannot_record:
            self._do()
        else:
            if self._graph is None:
                try:
                    self._graph = self._record()
                except RuntimeError as error:
                    print("NO GRAPH", str(error)[:600], flush=True)
                    self._cannot_record = True
                    torch.cuda.synchronize()
                    self._do()
                    return self._result
            self._graph.replay()
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

    def _aside(self, work: Callable[[], None]) -> None:
        """Do what comes before a recording on a stream of its own, as recordings need it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._do()
        return graph

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def use_average(self) -> None:
        """Put the moving averages into the modules."""
        with torch.no_grad():
            torch._foreach_copy_(self._live, self.average)
