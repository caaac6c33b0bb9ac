"""The mean of a run's best epochs, kept only where it is measured to be better than each of them.

What is averaged are the trained tensors, as the optimizer knows them. For a LoRA that is not the mean of the weight
differences: mean(B) mean(A) lacks the covariance of B and A over the epochs. Between epochs of one run, which share
their start and most of their way, that is small (docs/decisions/0006), and the result keeps family, rank and file
format; the exact mean of k LoRA would have k times their rank, and one of DoRA, LoHa or OFT no format at all. Whether
it holds in this run is not taken on trust: the average is measured as every epoch was, on the same draws.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from woodshed.adapters.files import save_adapter
from woodshed.errors import UserError
from woodshed.storage import save_tensors, whole_file
from woodshed.training.events import Event, Notice, Saved
from woodshed.training.run import Run
from woodshed.training.validation import Validation, mean_difference

AVERAGE = "average"
"""The folder of the averaged adapter."""
PARTS = "best-epochs"
"""The folder of what is averaged."""


class Averaging:
    """Keeps the trained tensors of a run's best epochs beside it, and averages them at the end.

    Args:
        run: with songs held out.
        validation: of the run; its memory knows which epochs are kept.
    """

    def __init__(self, run: Run, validation: Validation) -> None:
        self._run, self._validation = run, validation
        self._folder = run.settings.output_dir / PARTS
        self._measured_step = run.position.step

    def begin(self) -> Iterator[Event]:
        """Forget what a run that is continued has lost."""
        memory = self._validation.memory
        lost = [epoch for epoch, _ in memory.kept if not self._path(epoch).is_file()]
        memory.kept = [(epoch, loss) for epoch, loss in memory.kept if epoch not in lost]
        for epoch in lost:
            yield Notice(f"Epoch {epoch} takes no part in the average: {self._path(epoch)} is gone.")

    def take(self, epoch: int, loss: float) -> Iterator[Event]:
        """Keep an epoch that was just measured, if it is among the best and the disk has room for it."""
        run, memory = self._run, self._validation.memory
        if run.saver.saved_step >= self._measured_step:  # else the newest checkpoint may still need what fell out since
            self._drop_others()
        self._measured_step = run.position.step
        ranked = sorted([*memory.kept, (epoch, loss)], key=lambda known: (known[1], known[0]))
        memory.kept = ranked[: run.settings.average_best]
        if (epoch, loss) in memory.kept:
            parameters = run.adapter.trainable_parameters()
            values = {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
            try:
                with whole_file(self._path(epoch)) as building:
                    save_tensors(building, values, {"format": "pt"})
            except OSError as error:
                memory.kept.remove((epoch, loss))
                yield Notice(f"Epoch {epoch} takes no part in the average: it cannot be written ({error}).")

    def finish(self) -> Iterator[Event]:
        """Average what is kept, measure it, and save it if it is better than the best epoch."""
        memory, run = self._validation.memory, self._run
        self._drop_others()
        epochs = sorted(epoch for epoch, _ in memory.kept)
        if len(epochs) < 2:
            yield Notice("No average is made: fewer than two epochs were measured (--validate-every-n-epochs).")
            return
        last = {name: value.detach().clone() for name, value in run.adapter.trainable_parameters().items()}
        try:
            yield from self._try(epochs)
        except (RuntimeError, OSError, UserError) as error:
            yield Notice(f"No average is kept, and the run ends as without it: {str(error).splitlines()[0]}")
        finally:
            run.adapter.load_parameters(last)

    def _try(self, epochs: Sequence[int]) -> Iterator[Event]:
        memory, run = self._validation.memory, self._run
        run.adapter.load_parameters(mean_of([self._path(epoch) for epoch in epochs]))
        losses = self._validation.held_out_losses()
        change, error = mean_difference(losses, memory.best_losses)
        words = f"The average of epochs {', '.join(map(str, epochs))} has a held-out loss of {_mean(losses):.4f}"
        if change < 0:
            folder = run.settings.output_dir / AVERAGE
            save_adapter(run.adapter, folder, {**run.recipe(), "averaged_epochs": list(epochs)})
            yield Saved(folder, AVERAGE, run.epochs_done, run.position.step)
            yield Notice(f"{words}, {-change:.4f} (+- {error:.4f}) below that of epoch {memory.best_epoch}.")
        else:
            best = f"{memory.best_epoch} ({memory.best_loss:.4f})"
            yield Notice(f"{words}, not lower than that of epoch {best}, so it is not kept.")

    def _drop_others(self) -> None:
        """Delete what is not among the best any more."""
        kept = {self._path(epoch) for epoch, _ in self._validation.memory.kept}
        for path in set(self._folder.glob("epoch-*.safetensors")) - kept:
            path.unlink()

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch}.safetensors"


def mean_of(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of each tensor over files that hold the same ones, reading one file at a time."""
    sums: dict[str, Tensor] = {}
    for path in paths:
        for name, value in load_file(path).items():
            assert value.is_floating_point(), f"{name} is trained, so it is no whole number"
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double()
    return {name: (value / len(paths)).float() for name, value in sums.items()}


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)
