"""Ctrl-C, SIGTERM and SIGHUP as a polite request: finish the step, save, stop. A second Ctrl-C stops at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

from woodshed.console import Terminal

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Stopper:
    """A context in which the first interrupt sets a flag instead of raising.

    Outside the main thread signals cannot be caught, so there the flag simply stays down. Ctrl-C reaches data workers
    too, which inherit the handler: there it does nothing, because the run stops them when it ends.

    Args:
        terminal: where it is said that the run will stop.
        is_launched: a launcher started this process with others, and hands Ctrl-C on to those that heard it already; it
            decides itself when to wait no longer.
        is_quiet: another of them speaks.
    """

    def __init__(self, terminal: Terminal, *, is_launched: bool = False, is_quiet: bool = False) -> None:
        self._terminal = terminal
        self._is_launched, self._is_quiet = is_launched, is_quiet
        self._was_asked = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def is_asked(self) -> bool:
        """Whether somebody asked to stop."""
        return self._was_asked

    def __enter__(self) -> Self:
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                continue  # as nohup wants it
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread
                break
        return self

    def ask(self) -> None:
        """Ask to stop, for a reason of one's own."""
        self._was_asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is given
        if os.getpid() != self._process:
            return
        if number == getattr(signal, "SIGHUP", None):
            self._terminal.hush()  # writing to a closed terminal would end the run before it has saved
        if self._was_asked and self._is_launched:
            return
        if self._was_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._was_asked = True
        if self._is_quiet:
            return
        self._terminal.problem("Stopping after this step; the state will be saved. Press Ctrl-C again to stop at once.")
