"""A training run in the terminal: a live line where the terminal can, plain lines where it cannot."""

import time
from types import TracebackType
from typing import Self

from woodshed.console import Terminal
from woodshed.monitor.progress import duration, progress_bar, time_left
from woodshed.training.events import EpochDone, Event, Finished, Notice, Saved, Started, StepDone

SMOOTHING = 0.95  # of the shown loss: one step's loss is mostly the luck of its noise level


class TrainingView:
    """Shows the events of a run as they come."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._bar = progress_bar(terminal) if terminal.is_live else None
        self._loss: float | None = None
        self._total = 0
        self._first = 0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started():
                self._start(event)
            case Notice():
                self._terminal.hint(event.text)
            case StepDone():
                self._step(event)
            case EpochDone():
                if self._bar is None:
                    took = duration(event.seconds)
                    self._terminal.say(f"epoch {event.epoch} done in {took}, mean loss {event.loss:.4f}")
            case Saved():
                self._terminal.say(f"saved {event.path}")
            case Finished():
                self._finish(event)

    def _start(self, event: Started) -> None:
        say = self._terminal.say
        say(f"Training {event.model} on {event.device} in {event.precision}: {event.songs} songs.")
        say(f"{event.modules} modules, {event.trainable_parameters:,} trainable parameters.")
        say(f"{event.epochs} epochs x {event.steps_per_epoch} steps = {event.total_steps} optimizer steps.")
        if event.first_step:
            say(f"Resuming at epoch {event.first_epoch}, after step {event.first_step}.")
        self._total, self._first, self._began = event.total_steps, event.first_step, time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task("step", total=event.total_steps, completed=event.first_step, status="")
            self._bar.start()

    def _step(self, event: StepDone) -> None:
        old = event.loss if self._loss is None else self._loss
        self._loss = SMOOTHING * old + (1 - SMOOTHING) * event.loss
        elapsed = time.monotonic() - self._began
        done = event.step - self._first
        rate = done / elapsed if elapsed else 0.0
        left = time_left(done, self._total - self._first, elapsed)
        if self._bar is not None:
            pace = f"{left} left  {rate:.2f} steps/s"
            status = f"epoch {event.epoch}  loss {self._loss:.4f}  {pace}  lr {event.learning_rate:.2e}"
            self._bar.update(self._task, completed=event.step, status=status)
        elif event.is_logged:
            self._terminal.say(
                f"step {event.step}/{self._total}  epoch {event.epoch}  "
                f"loss {event.loss:.4f} (smoothed {self._loss:.4f})  lr {event.learning_rate:.2e}  "
                f"norm {event.grad_norm:.3f}  {rate:.2f} steps/s  {left} left"
            )

    def _finish(self, event: Finished) -> None:
        if self._bar is not None:
            self._bar.stop()
        memory = "" if event.peak_memory_bytes is None else f", peak memory {event.peak_memory_bytes / 2**30:.2f} GiB"
        self._terminal.say(f"{event.steps} steps, {event.epochs} epochs in {duration(event.seconds)}{memory}.")
        if not event.was_interrupted:
            self._terminal.say(f"The adapter is in {event.adapter}")
