"""Making music in the terminal."""

import time
from collections.abc import Iterable

from woodshed.console import Terminal
from woodshed.monitor.progress import LiveBlock, duration, time_left
from woodshed.sampling.events import Finished, GenerateEvent, Notice, Sampled, Started, Written


def watch_generation(events: Iterable[GenerateEvent], terminal: Terminal) -> None:
    """Show the events of `generate` until it ends."""
    view = _GenerationView(terminal)
    try:
        for event in events:
            view.show(event)
    finally:
        view.stop()


class _GenerationView:
    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._block = LiveBlock(terminal) if terminal.is_live else None
        self._versions = 1
        self._began = time.monotonic()

    def stop(self) -> None:
        if self._block is not None:
            self._block.stop()

    def show(self, event: GenerateEvent) -> None:
        match event:
            case Started():
                self._versions = event.versions
                count = f", {event.versions} versions" if event.versions > 1 else ""
                self._terminal.say(
                    f"{event.audio_seconds:g} s of music from {event.model} on {event.device} "
                    f"in {event.precision}{count}."
                )
            case Notice():
                self._terminal.hint(event.text)
            case Sampled():
                self._advance(event)
            case Written():
                self._terminal.say(f"{event.version}: {event.path}")
            case Finished():
                self.stop()
                self._finish(event)

    def _advance(self, event: Sampled) -> None:
        if event.step == 1:
            self._began = time.monotonic()
        if self._block is None:
            if event.step == event.steps:
                self._terminal.say(f"{event.version}: {event.steps} steps done")
            return
        left = time_left(event.step - 1, event.steps - 1, time.monotonic() - self._began)
        of = f"version {event.number} of {self._versions}  " if self._versions > 1 else ""
        self._block.show(event.version, event.step, event.steps, f"{event.step}/{event.steps}", f"{of}{left} left")

    def _finish(self, event: Finished) -> None:
        memory = "" if event.peak_memory_bytes is None else f", peak memory {event.peak_memory_bytes / 2**30:.2f} GiB"
        files = f"{len(event.files)} files" if len(event.files) > 1 else "1 file"
        self._terminal.say(f"{files} in {duration(event.seconds)}{memory}.")
