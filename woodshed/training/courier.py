"""Songs on their way to a card: copied beside the computation, and there before they are asked for.

Copies and the few operations that make a batch run on a stream of their own. Who computes waits for an event that lies
in the past, as long as songs are made faster than they are used.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from woodshed.data.dataset import Batch
from woodshed.training.engine import Engine
from woodshed.training.micro_step import Songs, inputs_of
from woodshed.training.randomness import DrawRules, derive_seed, draw_for_songs


class Courier:
    """Brings tensors to a CUDA card; for other devices everything stays as it is until it is used.

    Args:
        device: where they go.
        pins: whether copies pass through page-locked memory, which they leave without anybody waiting.
    """

    def __init__(self, device: torch.device, *, pins: bool) -> None:
        self._device, self._pins = device, pins
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let this thread work on the card beside the computation."""
        with torch.cuda.stream(self._stream):  # None changes nothing
            yield

    def bring(self, value: Tensor) -> Tensor:
        """Return a tensor on the card."""
        if self._stream is None or value.device.type == "cuda":
            return value
        return (value.pin_memory() if self._pins else value).to(self._device, non_blocking=True)

    def bring_songs(self, batch: Batch) -> Batch:
        """Return a batch on the card, but for its lengths, which are read on the way."""
        latents, context, conditions = map(self.bring, (batch.latents, batch.context, batch.conditions))
        return replace(batch, latents=latents, context=context, conditions=conditions)

    def arrival(self) -> torch.cuda.Event | None:
        """Return what tells when everything so far is there."""
        return None if self._stream is None else self._stream.record_event()


def prepare(
    batches: Iterable[Batch], epoch: int, seed: int, rules: DrawRules, engine: Engine, courier: Courier
) -> Generator[Songs, None, None]:
    """Make the draws of an epoch's batches, bring them to the card, and split them as the engine wants.

    Args:
        batches: of songs in RAM or on the card.
        epoch: counts from 1.
        seed: of the run.
        rules: its distributions.
        engine: what computes them.
        courier: what brings them.
    """
    stream = iter(batches)
    while True:
        with courier.at_work():  # also while they are read: songs may be kept on the card
            batch = next(stream, None)
            songs = None if batch is None else _prepared(batch, epoch, seed, rules, engine, courier)
        if songs is None:
            return
        yield songs


def _prepared(batch: Batch, epoch: int, seed: int, rules: DrawRules, engine: Engine, courier: Courier) -> Songs:
    draws = draw_for_songs(rules, seed, epoch, batch)
    inputs = inputs_of(courier.bring_songs(batch), replace(draws, noise=courier.bring(draws.noise)))
    parts = tuple(part.map(courier.bring) for part in engine.split(inputs))
    dropout_seed = derive_seed(seed, epoch, "adapter dropout", *batch.names)
    return Songs(batch.names, batch.frames, dropout_seed, parts, courier.arrival())
