"""Preprocessing in the terminal."""

import time
from collections.abc import Iterable

from woodshed.console import Terminal
from woodshed.data.events import EncodeEvent, Finished, Found, Notice, SongDone, SongFailed
from woodshed.monitor.progress import duration, progress_bar, time_left

STEPS = {"audio": "audio to latents", "text": "text to states", "conditions": "states to conditions"}


def watch_encoding(events: Iterable[EncodeEvent], terminal: Terminal) -> int:
    """Show the events of preprocessing until it ends.

    Returns:
        The exit code: 0 when every song is there, 1 when any failed.
    """
    view = _EncodingView(terminal)
    failed = 0
    try:
        for event in events:
            view.show(event)
            if isinstance(event, Finished):
                failed = event.failed
    finally:
        view.stop()
    return 1 if failed else 0


class _EncodingView:
    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._bar = progress_bar(terminal) if terminal.is_live else None
        self._step = ""
        self._began = 0.0
        self._music = 0.0  # seconds of audio that went through the present step

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: EncodeEvent) -> None:
        match event:
            case Found():
                new = event.songs - event.unchanged
                unchanged = f", {event.unchanged} unchanged" if event.unchanged else ""
                self._terminal.say(
                    f"{event.songs} songs: {new} to encode{unchanged}; {event.device}, {event.precision}."
                )
            case Notice():
                self._terminal.hint(event.text)
            case SongFailed():
                self._terminal.problem(event.problem)
            case SongDone():
                self._advance(event)
            case Finished():
                self.stop()
                self._finish(event)

    def _advance(self, event: SongDone) -> None:
        if event.step != self._step:
            self._step, self._began, self._music = event.step, time.monotonic(), 0.0
            if self._bar is not None:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._task = self._bar.add_task(STEPS[event.step], total=event.total, status="")
                self._bar.start()
        self._music += event.audio_seconds
        elapsed = time.monotonic() - self._began
        left = time_left(event.done, event.total, elapsed)
        if self._bar is not None:
            rate = f"{self._music / elapsed:.0f} s of music a second  " if elapsed and event.step == "audio" else ""
            self._bar.update(self._task, completed=event.done, status=f"{rate}{left} left")
        else:
            self._terminal.say(f"{STEPS[event.step]} {event.done}/{event.total}  {event.name}  {left} left")

    def _finish(self, event: Finished) -> None:
        music = f" ({duration(event.audio_seconds)} of music)" if event.audio_seconds else ""
        unchanged = f", {event.unchanged} unchanged" if event.unchanged else ""
        failed = f", {event.failed} failed" if event.failed else ""
        self._terminal.say(f"{event.encoded} songs encoded{music} in {duration(event.seconds)}{unchanged}{failed}.")
        self._terminal.say(f"The dataset is in {event.folder}")
