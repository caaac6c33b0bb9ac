"""A training run in the terminal: a live block where the terminal can, plain lines where it cannot."""

import math
from types import TracebackType
from typing import Self

from rich.text import Text

from woodshed.console import Terminal
from woodshed.monitor.curve import LossCurve
from woodshed.monitor.progress import LiveBlock, Smoothed, duration, pace
from woodshed.training.events import (
    EpochDone,
    Event,
    Finished,
    Notice,
    SampleMade,
    Saved,
    Started,
    StepDone,
    Validated,
)

CURVE_WIDTH = 40
CURVE_TITLE = "loss so far "


class TrainingView:
    """Shows the events of a run as they come.

    The loss it shows is smoothed: one step's loss is mostly the luck of its noise level.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._block = LiveBlock(terminal) if terminal.is_live else None
        self._has_curve = not terminal.out.options.ascii_only
        self._loss = Smoothed()
        self._seconds = Smoothed()  # a step takes
        self._curve = LossCurve()
        self._epoch_losses: list[float] = []
        self._trained = self._waited = 0.0  # seconds of all steps, and of them those without songs
        self._epochs = self._total = self._first = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._block is not None:
            self._block.stop()

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
                self._epoch(event)
            case Validated():
                self._terminal.say(
                    f"epoch {event.epoch}: held-out loss {event.loss:.4f}{' (best)' if event.is_best else ''}, "
                    f"{event.change:+.4f} +- {event.error:.4f} against the base model; "
                    f"training songs {event.train_change:+.4f}, gap {event.gap:+.4f} ({duration(event.seconds)})"
                )
            case SampleMade():
                self._terminal.say(f"sample {event.path}")
            case Saved():
                self._terminal.say(f"saved {event.path}")
            case Finished():
                self._finish(event)

    def _start(self, event: Started) -> None:
        self._epochs, self._total, self._first = event.epochs, event.total_steps, event.first_step
        self._terminal.say(f"Training {event.model} on {event.songs} song{'s' if event.songs > 1 else ''}")
        for what, text in {
            "device": f"{event.device}, {event.precision}",
            "adapter": f"{event.modules} modules, {event.trainable_parameters:,} trainable parameters",
            "length": f"{event.epochs} epochs x {event.steps_per_epoch} steps = {event.total_steps:,} optimizer steps",
            "output": str(event.output_dir),
        }.items():
            self._terminal.say(f"  {what:<7}  {text}")
        if event.first_step:
            self._terminal.say(f"Resuming at epoch {event.first_epoch}, after step {event.first_step}.")

    def _step(self, event: StepDone) -> None:
        for kept, value in ((self._loss, event.loss), (self._seconds, event.seconds)):
            kept.add(value)
        self._trained += event.seconds
        self._waited += event.waited
        if math.isfinite(event.loss):
            self._curve.add(event.loss)
        speed = pace(self._seconds.value, "step")
        left = duration(self._seconds.value * (self._total - event.step))
        if self._block is not None:
            self._block.show(
                f"epoch {event.epoch}/{self._epochs}",
                event.step,
                self._total,
                f"step {event.step:,}/{self._total:,}",
                self._numbers(loss=f"{self._loss.value:.4f}", left=left, speed=speed, rate=event.learning_rate),
                self._drawn_curve(),
            )
        elif event.is_logged:
            self._terminal.say(
                f"step {event.step}/{self._total}  epoch {event.epoch}  "
                f"loss {event.loss:.4f} (smoothed {self._loss.value:.4f})  lr {event.learning_rate:.2e}  "
                f"norm {event.grad_norm:.3f}  {speed}  {left} left"
            )

    def _numbers(self, *, loss: str, left: str, speed: str, rate: float) -> Text:
        """Return the line below the bar, what matters most first."""
        return Text.assemble(("loss ", "dim"), (loss, "bold"), f"  {left} left  {speed}", (f"  lr {rate:.1e}", "dim"))

    def _drawn_curve(self) -> Text:
        width = min(CURVE_WIDTH, self._terminal.out.width - len(CURVE_TITLE))
        curve = self._curve.draw(width) if self._has_curve and width > 0 else ""
        return Text.assemble((CURVE_TITLE, "dim"), curve) if curve else Text()

    def _epoch(self, event: EpochDone) -> None:
        self._epoch_losses.append(event.loss)
        if self._block is None:
            took = duration(event.seconds)
            self._terminal.say(f"epoch {event.epoch}/{self._epochs} done in {took}, mean loss {event.loss:.4f}")

    def _finish(self, event: Finished) -> None:
        if self._block is not None:
            self._block.stop()
        memory = "" if event.peak_memory_bytes is None else f", peak memory {event.peak_memory_bytes / 2**30:.2f} GiB"
        in_all = f", {event.steps} in all" if self._first else ""
        self._terminal.say(f"{event.steps - self._first} steps in {duration(event.seconds)}{in_all}{memory}.")
        if self._waited:
            self._terminal.say(f"{self._waited / self._trained:.1%} of the steps' time was spent waiting for songs.")
        if len(self._epoch_losses) > 1:
            first, *_, last = self._epoch_losses
            self._terminal.say(f"The mean loss of an epoch went from {first:.4f} to {last:.4f}.")
        if not event.was_interrupted:
            self._terminal.say(f"The adapter is in {event.adapter}")
