"""Preprocessing in the terminal."""

import time
from collections.abc import Iterable

from woodshed.console import Terminal, printable
from woodshed.data.events import EncodeEvent, Finished, Found, Looked, Notice, SongDone, SongFailed
from woodshed.monitor.progress import LiveBlock, duration, pace, time_left

STEPS = {"audio": "audio to latents", "text": "text to states", "conditions": "states to conditions"}
LINES_A_STEP = 100  # at most, where every song would be a line
PATIENCE = 5.0  # seconds until reading the songs is worth a line, and from one line to the next


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
        self._block = LiveBlock(terminal) if terminal.is_live else None
        self._step = ""
        self._began = self._spoke = 0.0
        self._before = 0  # songs that were through when the step's clock started
        self._music = 0.0  # seconds of audio that went through the present step since it began

    def stop(self) -> None:
        if self._block is not None:
            self._block.stop()

    def show(self, event: EncodeEvent) -> None:
        match event:
            case Looked():
                self._look(event)
            case Found():
                new = event.songs - event.unchanged
                part = f" in part {event.shard}" if event.shard else ""
                unchanged = f", {event.unchanged} unchanged" if event.unchanged else ""
                self._terminal.say(
                    f"{event.songs} songs{part}: {new} to encode{unchanged}; {event.device}, {event.precision}."
                )
            case Notice():
                self._terminal.hint(printable(event.text))
            case SongFailed():
                self._terminal.problem(printable(event.problem))
            case SongDone():
                self._advance(event)
            case Finished():
                self.stop()
                self._finish(event)

    def _look(self, event: Looked) -> None:
        """Show how far the reading of the songs has come; where it takes no time, nothing."""
        now = time.monotonic()
        if event.done == 1:
            self._began = self._spoke = now
        elapsed = now - self._began
        speed = f"{event.bytes_done / 1e6 / elapsed:,.0f} MB/s" if elapsed else ""
        left = f"{time_left(event.bytes_done, event.bytes_total, elapsed)} left"
        if self._block is not None:
            self._block.show("reading songs", event.done, event.total, f"{event.done:,}/{event.total:,}", speed, left)
        elif now - self._spoke >= PATIENCE:
            self._spoke = now
            self._terminal.say(f"reading songs {event.done}/{event.total}  {speed}  {left}")

    def _advance(self, event: SongDone) -> None:
        """Show a song that went through a step; the clock of a step starts with its first song, once all is loaded."""
        now = time.monotonic()
        if event.step != self._step:
            self._step, self._began, self._music, self._before = event.step, now, 0.0, event.done
        else:
            self._music += event.audio_seconds
        status = self._status(event, now - self._began)
        if self._block is not None:
            count = f"{event.done:,}/{event.total:,}"
            self._block.show(STEPS[event.step], event.done, event.total, count, status, printable(event.name))
        elif _is_worth_a_line(event.done, event.total):
            parts = (f"{STEPS[event.step]} {event.done}/{event.total}", printable(event.name), status)
            self._terminal.say("  ".join(part for part in parts if part))

    def _status(self, event: SongDone, elapsed: float) -> str:
        """Return speed and time left, nothing after the first song of a step."""
        done = event.done - self._before
        if not done or not elapsed:
            return ""
        music = f"{self._music / elapsed:.0f} s of music a second"
        speed = music if event.step == "audio" else pace(elapsed / done, "song")
        return f"{speed}  {time_left(done, event.total - self._before, elapsed)} left"

    def _finish(self, event: Finished) -> None:
        music = f" ({duration(event.audio_seconds)} of music)" if event.audio_seconds else ""
        unchanged = f", {event.unchanged} unchanged" if event.unchanged else ""
        failed = f", {event.failed} failed" if event.failed else ""
        self._terminal.say(f"{event.encoded} songs encoded{music} in {duration(event.seconds)}{unchanged}{failed}.")
        if event.waited is not None:
            self._terminal.say(
                f"The device waited {100 * event.waited:.0f} % of the time for songs, the disk and the processor."
            )
        if event.peaks:
            peaks = ", ".join(f"{STEPS[step]} {size / 2**30:.2f} GiB" for step, size in event.peaks.items())
            self._terminal.say(f"Most of its memory that was taken: {peaks}.")
        if event.shard:
            self._terminal.say(f"Part {event.shard} is in {event.folder}")
            self._terminal.say("When all parts are there: woodshed dataset merge, with the folders that they are in.")
        else:
            self._terminal.say(f"The dataset is in {event.folder}")


def _is_worth_a_line(done: int, total: int) -> bool:
    """Tell whether this song moves the count by another hundredth."""
    return total <= LINES_A_STEP or done * LINES_A_STEP // total > (done - 1) * LINES_A_STEP // total
