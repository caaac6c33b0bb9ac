"""Made-up runs, and terminals of any width whose screen can be read."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest
from rich.console import Console
from tensorboard.summary.writer import event_file_writer

from woodshed.console import Terminal
from woodshed.training.events import EpochDone, Event, Finished, Saved, Started, StepDone

STEPS_PER_EPOCH = 3


@pytest.fixture(autouse=True)
def first_event_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start TensorBoard's count of event files anew.

    It reads files in the order of their names, which end in second, process and count: 10 would come before 9 where
    a test writes two within a second. A run and its resume are two processes.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Iterator[Event]]:
    """The events of a run whose loss in step n is 10 / n and whose steps take half a second."""

    def events(epochs: int = 4, first_step: int = 0, log_every: int = 2, heavy_every: int = 5) -> Iterator[Event]:
        total = epochs * STEPS_PER_EPOCH
        first_epoch = first_step // STEPS_PER_EPOCH + 1
        facts = (192, 22_020_096, epochs, STEPS_PER_EPOCH, total, first_epoch, first_step)
        yield Started(tmp_path / "out", "acestep-v15-base", "cuda:0 (NVIDIA H200)", "bf16", 6, *facts)
        for step in range(first_step + 1, total + 1):
            epoch = (step - 1) // STEPS_PER_EPOCH + 1
            heavy = {"layers.0.self_attn.q_proj": 0.5 / step, "layers.1.cross_attn.v_proj": 0.25}
            norms = heavy if step % heavy_every == 0 else None
            yield StepDone(step, epoch, 10 / step, 1e-4 * step, 0.1 * step, 2, 12.5, 0.5, step % log_every == 0, norms)
            if step % STEPS_PER_EPOCH == 0:
                yield EpochDone(epoch, 100 / epoch, 1.5)
        yield Saved(tmp_path / "out" / "final", "final", epochs, total)
        yield Finished(tmp_path / "out" / "final", epochs, total, (total - first_step) * 0.5, 3 * 2**30)

    return events


class Screen:
    """A terminal of a given width that remembers what was drawn, and shows it as a person would see it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.terminal = Terminal()
        self.file = io.StringIO()
        # Recorded in UTF-8 and colour whatever the machine that runs the tests has.
        options = {"width": width, "height": 30, "color_system": "standard", "legacy_windows": False}
        self.terminal.out = Console(file=self.file, force_terminal=True, highlight=False, _environ={}, **options)
        self.terminal.err = self.terminal.out

    def lines(self) -> list[str]:
        """What stands on the screen now."""
        screen = pyte.Screen(self.width, 60)
        screen.set_mode(pyte.modes.LNM)  # a new line starts at its left, as a terminal's driver does
        pyte.Stream(screen).feed(self.file.getvalue())
        return [line.rstrip() for line in screen.display if line.strip()]


@pytest.fixture
def screen_of() -> Callable[[int], Screen]:
    return Screen
