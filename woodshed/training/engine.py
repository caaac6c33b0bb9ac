"""What makes a micro-step fast: compiled blocks, attention without masks, and one captured graph per length.

Up to a minute or two of music a step is bound by the processor, which launches ten thousand kernels for it. Compiling
the blocks halves their number and fuses what lies between the matrix products; capturing the step in a CUDA graph
launches all of them at once. Neither changes what is computed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from woodshed.adapters.dropout import hash_dropout
from woodshed.models.blocks import BlockRunner
from woodshed.models.sights import by_blocks, by_compiler, by_spans
from woodshed.training.lengths import by_length
from woodshed.training.micro_step import Inputs, forward_backward
from woodshed.training.techniques import Techniques

if TYPE_CHECKING:
    from woodshed.training.run import Run

SIGHTS = {"compiled": by_compiler, "flash": by_spans, "blocks": by_blocks}
MOST_GRAPHS = 48  # some 15 MiB each

Key = tuple[int, int, int]


class Engine:
    """Runs the micro-steps of a run.

    Args:
        run: whose decoder and adapter compute.
        techniques: which of them are used.
    """

    def __init__(self, run: "Run", techniques: Techniques) -> None:
        self._run = run
        self._techniques = techniques
        self._blocks = BlockRunner(techniques.recompute, is_compiled=techniques.compile)
        needs_hash = techniques.compile or techniques.cuda_graphs
        self._seed = hash_dropout(run.decoder, run.device) if needs_hash else None
        self._graphs = _Graphs(run) if techniques.cuda_graphs else None

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients must stay at their addresses, zeroed instead of freed."""
        return self._graphs is not None

    def micro_step(self, inputs: Inputs) -> Tensor:
        """Add the gradients of a batch's songs to those of the step; return their (B,) losses.

        Args:
            inputs: of B songs, on the CPU.
        """
        if self._seed is None:
            torch.manual_seed(inputs.seed)
        else:
            self._seed.fill_(inputs.seed % 2**32 - 2**31)
        parts = self._split(inputs)
        with self._in_charge():
            losses = torch.cat([self._compute(part.to(self._run.device)) for part in parts])
        if len(parts) == 1:
            return losses
        places = torch.tensor([row for part in parts for row in part.rows])
        return losses[places.argsort().to(losses.device)]

    def _split(self, inputs: Inputs) -> list[Inputs]:
        """Return the parts of a batch that are computed one after the other."""
        if self._graphs is None and not self._techniques.compile:
            return [inputs]
        return by_length(inputs, self._run.decoder.patch_size)

    def _compute(self, inputs: Inputs) -> Tensor:
        return forward_backward(self._run, inputs) if self._graphs is None else self._graphs(inputs)

    @contextmanager
    def _in_charge(self) -> Iterator[None]:
        """Let the decoder compute with the techniques; for all else it stays as it is."""
        decoder = self._run.decoder
        before = decoder.run_block, decoder.sight_of
        decoder.run_block, decoder.sight_of = self._blocks, SIGHTS[self._techniques.attention]
        try:
            yield
        finally:
            decoder.run_block, decoder.sight_of = before


@dataclass(frozen=True)
class _Graph:
    """A captured micro-step, and where it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    losses: Tensor

    def replay(self, inputs: Inputs) -> Tensor:
        places = self.inputs.tensors()
        for name, value in inputs.tensors().items():
            places[name].copy_(value, non_blocking=True)
        self.graph.replay()
        return self.losses.clone()


class _Graphs:
    """Captured micro-steps by the shape of their inputs, in one shared pool; the least used ones are given up."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._stream = torch.cuda.Stream(run.device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Inputs) -> Tensor:
        batch, frames = inputs.latents.shape[:2]
        key = (batch, frames, inputs.conditions.shape[1])
        if key not in self._graphs:
            self._graphs[key] = self._capture(inputs)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(inputs)

    def _capture(self, inputs: Inputs) -> _Graph:
        """Run a micro-step that counts nothing, so that kernels are made and chosen, then capture it."""
        for parameter in self._run.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        places = inputs.copy()
        places.weight.zero_()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            forward_backward(self._run, places)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            losses = forward_backward(self._run, places)
        return _Graph(graph, places, losses)
