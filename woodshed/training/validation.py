"""Did it learn, or learn by heart? The loss on held-out songs, and beside it on as many songs that do train.

Every measurement takes the same noise and the same noise levels, the middles of eight equally likely parts of what
training draws from, with every condition present and dropout off. What is left to differ is the adapter, so changes
far smaller than the scatter of the training loss mean something. Songs are measured one at a time, so that nothing
depends on the batch size.

The alarm: the held-out loss lies above its lowest by more than twice the standard error of that difference, taken
draw by draw, in two validations in a row, while the training songs' loss went on falling since then.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from woodshed.data.dataset import Batch, SongDataset, collate
from woodshed.models.devices import repeatable
from woodshed.training.bypass import listening, without_adapter
from woodshed.training.events import Validated
from woodshed.training.flow import flow_matching_loss, mix_with_noise
from woodshed.training.holdout import by_lot
from woodshed.training.randomness import derive_seed
from woodshed.training.run import Run
from woodshed.training.timesteps import TURBO_TIMESTEPS, timestep_quantiles

LEVELS = 8
CLEARLY = 2.0  # standard errors
IN_A_ROW = 2  # validations


@dataclass
class Memory:
    """What earlier validations found; travels with every checkpoint."""

    last_epoch: int = 0
    best_epoch: int = 0  # 0 before the first validation
    best_losses: list[float] = field(default_factory=list)  # of each held-out song at each level
    best_train_loss: float = 0.0
    since_best: int = 0  # validations
    rises: int = 0  # clear ones in a row
    is_alarmed: bool = False  # about this best epoch
    kept: list[tuple[int, float]] = field(default_factory=list)  # epochs to be averaged, with their held-out loss

    @property
    def best_loss(self) -> float:
        """The lowest held-out loss so far."""
        return statistics.fmean(self.best_losses) if self.best_losses else math.inf


class Validation:
    """Measures a run's adapter on songs that it does not train on.

    Args:
        run: with songs held out.
        known: what `state` returned when the checkpoint was written that the run continues from.
    """

    def __init__(self, run: Run, known: dict[str, Any]) -> None:
        held_out, training = run.preflight.held_out, run.preflight.dataset
        assert held_out is not None, "something is held out"
        chosen = set(by_lot(training.names, run.settings.seed)[: len(held_out)])
        self._run = run
        self._held_out = [(held_out, index) for index in range(len(held_out))]
        self._training = [(training, index) for index, name in enumerate(training.names) if name in chosen]
        self._base: tuple[list[float], list[float]] | None = None
        self.memory = Memory(**known)

    def state(self) -> dict[str, Any]:
        """Return what a resume must know, as JSON values."""
        return asdict(self.memory)

    def is_due(self, epoch: int) -> bool:
        """Tell whether an epoch that is finished has still to be measured; the last one always is."""
        settings = self._run.settings
        is_last = epoch == settings.epochs
        return epoch > self.memory.last_epoch and (is_last or epoch % settings.validate_every_n_epochs == 0)

    @property
    def should_end(self) -> bool:
        """Whether the run has not improved for as long as the user wants to wait."""
        patience = self._run.settings.early_stop
        return 0 < patience <= self.memory.since_best

    def held_out_losses(self) -> list[float]:
        """Measure the adapter as it is on the held-out songs: each song at each level."""
        with listening(self._run.decoder), repeatable():
            return self._losses(self._held_out)

    def measure(self, epoch: int) -> tuple[Validated, list[str]]:
        """Measure the adapter as it is after an epoch; return what was found, and what the user should know of it."""
        started_at = time.monotonic()
        run = self._run
        with listening(run.decoder), repeatable():
            if self._base is None:
                with without_adapter(run.decoder, run.adapter):
                    self._base = self._losses(self._held_out), self._losses(self._training)
            held, train = self._losses(self._held_out), self._losses(self._training)
        change, error = mean_difference(held, self._base[0])
        train_change, train_error = mean_difference(train, self._base[1])
        is_best, said = remember(self.memory, epoch, held, statistics.fmean(train))
        return Validated(
            epoch=epoch,
            step=run.position.step,
            songs=len(self._held_out),
            loss=statistics.fmean(held),
            change=change,
            error=error,
            train_loss=statistics.fmean(train),
            train_change=train_change,
            train_error=train_error,
            gap=change - train_change,
            is_best=is_best,
            seconds=time.monotonic() - started_at,
        ), said

    def _losses(self, songs: Sequence[tuple[SongDataset, int]]) -> list[float]:
        """Return the loss of each song at each level."""
        levels, losses = self._levels(), []
        for dataset, index in songs:
            song = collate([dataset[index]]).to(self._run.device, torch.float32)
            losses += [self._loss(song, t, k) for k, t in enumerate(levels)]
        values: list[float] = torch.cat(losses).tolist()
        return values

    def _levels(self) -> Tensor:
        rules = self._run.draw_rules
        if rules.mode == "vanilla":
            return torch.tensor(TURBO_TIMESTEPS)
        return timestep_quantiles(LEVELS, mu=rules.timestep_mu, sigma=rules.timestep_sigma)

    def _loss(self, song: Batch, t: Tensor, level: int) -> Tensor:
        """Return the (1,) loss of a song at a noise level, with the noise that this song always has there."""
        run = self._run
        generator = torch.Generator().manual_seed(derive_seed("validation", *song.names, level))
        noise = torch.randn(song.latents.shape, generator=generator).to(run.device)
        at = t[None].to(run.device)
        with run.autocast():
            velocity = run.decoder(
                mix_with_noise(song.latents, noise, at),
                timestep=at,
                timestep_r=at,
                encoder_hidden_states=song.conditions,
                context_latents=song.context,
            ).sample
        return flow_matching_loss(velocity, song.latents, noise, None)


def mean_difference(these: Sequence[float], those: Sequence[float]) -> tuple[float, float]:
    """Return the mean of these - those, draw by draw, and its standard error over all draws."""
    differences = [a - b for a, b in zip(these, those, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return statistics.fmean(differences), error


def remember(memory: Memory, epoch: int, held: Sequence[float], train_loss: float) -> tuple[bool, list[str]]:
    """Take a measurement into account; return whether it is the best so far, and what to say of it.

    Args:
        memory: changed in place.
        epoch: that was measured.
        held: the loss of each held-out song at each level.
        train_loss: the mean loss of the training songs.
    """
    memory.last_epoch = epoch
    if len(memory.best_losses) != len(held) or statistics.fmean(held) < memory.best_loss:
        memory.best_epoch, memory.best_losses, memory.best_train_loss = epoch, list(held), train_loss
        memory.since_best, memory.rises, memory.is_alarmed = 0, 0, False
        return True, []
    memory.since_best += 1
    rise, error = mean_difference(held, memory.best_losses)
    is_by_heart = rise > CLEARLY * error and train_loss < memory.best_train_loss
    memory.rises = memory.rises + 1 if is_by_heart else 0
    if memory.rises < IN_A_ROW or memory.is_alarmed:
        return False, []
    memory.is_alarmed = True
    return False, [
        f"The adapter learns its songs by heart: since epoch {memory.best_epoch} the loss of held-out songs rose by "
        f"{rise:.2g} (+- {error:.1g}) while that of training songs fell by {memory.best_train_loss - train_loss:.2g}. "
        f"Epoch {memory.best_epoch} is the best so far; --keep-best keeps it, --early-stop ends a run in time."
    ]
