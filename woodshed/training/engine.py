"""What makes a micro-step fast: compiled blocks, attention without masks, and one captured graph per length.

Up to a minute or two of music a step is bound by the processor, which launches ten thousand kernels for it. Compiling
the blocks halves their number and fuses what lies between the matrix products; capturing the step in a CUDA graph
launches all of them at once. Neither changes what is computed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from woodshed.adapters.dropout import hash_dropout
from woodshed.models.blocks import BlockRunner
from woodshed.models.devices import repeatable
from woodshed.models.sights import by_blocks, by_compiler, by_spans
from woodshed.training.lengths import by_length
from woodshed.training.micro_step import Inputs, Model, Songs, forward_backward
from woodshed.training.techniques import Techniques

SIGHTS = {"compiled": by_compiler, "flash": by_spans, "blocks": by_blocks}
MOST_GRAPHS = 48  # some 15 MiB each

Key = tuple[int, int, int]


class Engine:
    """Computes the micro-steps of a run.

    Args:
        model: with an adapter, whose dropout is replaced where a technique needs it.
        techniques: which of them are used.
    """

    def __init__(self, model: Model, techniques: Techniques) -> None:
        self._model = model
        needs_hash = techniques.compile or techniques.cuda_graphs
        self._seed = hash_dropout(model.decoder, model.device) if needs_hash else None
        self._is_rehearsed = not needs_hash
        self._use(techniques)

    def _use(self, techniques: Techniques) -> None:
        self._techniques = techniques
        self._blocks = BlockRunner(techniques.recompute, is_compiled=techniques.compile)
        self._graphs = _Graphs(self._model) if techniques.cuda_graphs else None

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients must stay at their addresses, zeroed instead of freed."""
        return self._graphs is not None

    def split(self, inputs: Inputs) -> list[Inputs]:
        """Return the parts of a batch that are computed one after the other."""
        if self._graphs is None and not self._techniques.compile:
            return [inputs]
        return by_length(inputs, self._model.decoder.patch_size)

    def micro_step(self, songs: Songs, weight: Tensor) -> Tensor:
        """Add the gradients of a batch's songs to those of the step; return their (B,) losses.

        Args:
            songs: B of them.
            weight: () what a song's loss counts in the gradient.
        """
        if self._seed is None:
            torch.manual_seed(songs.seed)
        else:
            self._seed.fill_(songs.seed % 2**32 - 2**31)
        compute = partial(forward_backward, self._model) if self._graphs is None else self._graphs
        with self._in_charge():
            losses = torch.cat([compute(part.to(self._model.device), weight) for part in songs.arrived()])
        places = torch.tensor([row for part in songs.parts for row in part.rows])
        return losses if len(songs.parts) == 1 else losses[places.argsort().to(losses.device)]

    @repeatable()
    def rehearse(self, songs: Songs) -> list[str]:
        """Take a micro-step that counts nothing, before the first that does; return a line for each thing that failed.

        A technique that does not work on this machine is given up.
        """
        said: list[str] = []
        while not self._is_rehearsed:
            try:
                self.micro_step(songs, torch.zeros((), device=self._model.device))
                self._is_rehearsed = True
            except torch.OutOfMemoryError:
                if self._techniques.recompute == "all":
                    raise
                said.append("The first step does not fit into memory, so every block is computed again from here on.")
                self._use(replace(self._techniques, recompute="all"))
                torch.cuda.empty_cache()
            except RuntimeError as error:  # the compiler's and CUDA's own errors are all of this kind
                lesser, failed = self._techniques.lesser(self._model.device, self._model.dtype)
                if lesser is None:
                    raise
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                said.append(f"{failed} does not work on this machine, so it is left out: {reason[:200]}")
                self._use(lesser)
            self._clear_gradients()
        return said

    def _clear_gradients(self) -> None:
        """Forget the gradients; those that a captured graph adds to stay at their addresses."""
        for parameter in self._model.parameters:
            if not self.keeps_gradients:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @contextmanager
    def _in_charge(self) -> Iterator[None]:
        """Let the decoder compute with the techniques; for all else it stays as it is."""
        decoder = self._model.decoder
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
    weight: Tensor
    losses: Tensor

    def replay(self, inputs: Inputs, weight: Tensor) -> Tensor:
        """Return the losses of other inputs of the same shape."""
        places = self.inputs.tensors()
        for name, value in inputs.tensors().items():
            places[name].copy_(value, non_blocking=True)
        self.weight.copy_(weight, non_blocking=True)
        self.graph.replay()
        return self.losses.clone()


class _Graphs:
    """Captured micro-steps by the shape of their inputs, in one shared pool; the least used ones are given up."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._stream = torch.cuda.Stream(model.device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Inputs, weight: Tensor) -> Tensor:
        """Do what `forward_backward` does."""
        batch, frames = inputs.latents.shape[:2]
        key = (batch, frames, inputs.conditions.shape[1])
        if key not in self._graphs:
            self._graphs[key] = self._capture(inputs)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(inputs, weight)

    def _capture(self, inputs: Inputs) -> _Graph:
        """Run a micro-step that counts nothing, so that kernels are made and chosen, then capture it."""
        for parameter in self._model.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        places, weight = inputs.map(Tensor.clone), torch.zeros((), device=self._model.device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            forward_backward(self._model, places, weight)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (songs that are prepared, NCCL's watch) may use the card meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            losses = forward_backward(self._model, places, weight)
        return _Graph(graph, places, weight, losses)
