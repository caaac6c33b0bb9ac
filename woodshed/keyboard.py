"""The keyboard while a job runs and nobody is asked: what is typed then is not shown, and not taken for an answer."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from woodshed.console import Terminal


@contextmanager
def unseen_keys(terminal: Terminal) -> Iterator[None]:
    """Keep the terminal from echoing what is typed into a view that redraws itself; Ctrl-C works as ever.

    A Windows console echoes only what somebody reads, so there is nothing to do.
    """
    if sys.platform == "win32" or not terminal.is_live or not _is_in_front():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~(termios.ECHO | termios.ECHONL)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        if _is_in_front():
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def forget_keys() -> None:
    """Drop what was typed into a terminal and not read yet; what comes through a pipe stays, it was meant."""
    if not _is_keyboard():
        return
    if sys.platform == "win32":
        import msvcrt

        while msvcrt.kbhit():
            msvcrt.getwch()
    elif _is_in_front():
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _is_keyboard() -> bool:
    """Tell whether standard input is a terminal; programs without a console have no standard input at all."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _is_in_front() -> bool:
    """Tell whether the terminal is ours: a job in the background that touches it would be stopped by the system."""
    if not _is_keyboard():
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # no controlling terminal
        return False
