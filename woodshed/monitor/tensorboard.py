"""Curves and sounds for TensorBoard: loss, learning rate, gradient norms, validation, samples."""

from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from woodshed.data.audio import SAMPLE_RATE, decode
from woodshed.errors import DataError
from woodshed.training.events import EpochDone, Event, SampleMade, Saved, Started, StepDone, Validated


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
        elif isinstance(event, Validated):
            self._write_validation(event)
        elif isinstance(event, SampleMade):
            self._write_sample(event)
        elif isinstance(event, Saved) and self._writer is not None:
            self._writer.flush()  # a resume from here cannot draw again what was before

    def _write_step(self, event: StepDone) -> None:
        if event.is_logged:
            self._scalar("train/loss", event.loss, event.step)
            self._scalar("train/learning_rate", event.learning_rate, event.step)
            self._scalar("train/grad_norm", event.grad_norm, event.step)
        for module, norm in (event.module_grad_norms or {}).items():
            self._scalar(f"gradients/{module}", norm, event.step)

    def _write_validation(self, event: Validated) -> None:
        for tag in ("loss", "change", "error", "train_loss", "train_change", "gap"):
            self._scalar(f"validation/{tag}", getattr(event, tag), event.step)

    def _write_sample(self, event: SampleMade) -> None:
        """Write a sound, mixed to one channel, which is all that TensorBoard's player shows."""
        assert self._writer is not None, "a run starts before it is heard"
        try:
            sound = decode(event.path)
        except DataError:  # somebody took the file away meanwhile; there is nothing to show
            return
        tag = f"samples/{event.number}"
        self._writer.add_audio(tag, sound.mean(dim=0, keepdim=True), event.step, sample_rate=SAMPLE_RATE)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        assert self._writer is not None, "a run starts before it steps"
        self._writer.add_scalar(tag, value, step)
