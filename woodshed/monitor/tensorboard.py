"""Curves for TensorBoard: loss, learning rate, gradient norms."""

from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from woodshed.training.events import EpochDone, Event, Saved, Started, StepDone


class TensorBoard:
    """Writes scalars as often as the run says, by `log_every` and `log_heavy_every`.

    Args:
        folder: created when the run starts; a resumed run continues its curves from where it resumes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, event: Event) -> None:
        """Write what an event measured."""
        if isinstance(event, Started):
            # Points that a crashed run drew beyond its last checkpoint are dropped.
            self._writer = SummaryWriter(str(self._folder), purge_step=event.first_step + 1)
        elif isinstance(event, StepDone):
            self._step = event.step
            self._write_step(event)
        elif isinstance(event, EpochDone):
            self._scalar("train/epoch_loss", event.loss, self._step)
        elif isinstance(event, Saved) and self._writer is not None:
            self._writer.flush()  # a resume from here cannot draw again what was before

    def _write_step(self, event: StepDone) -> None:
        if event.is_logged:
            self._scalar("train/loss", event.loss, event.step)
            self._scalar("train/learning_rate", event.learning_rate, event.step)
            self._scalar("train/grad_norm", event.grad_norm, event.step)
        for module, norm in (event.module_grad_norms or {}).items():
            self._scalar(f"gradients/{module}", norm, event.step)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        assert self._writer is not None, "a run starts before it steps"
        self._writer.add_scalar(tag, value, step)
