"""Writes checkpoints while training goes on.

Training waits only until its state is copied; a thread writes the copy, one checkpoint after the other. `Saved` is said
when a folder is on the disk, never before, and whatever ends a run waits for the folder that is being written.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from woodshed.training.checkpoint import BEST, keep_newest, write_pointers
from woodshed.training.events import Saved
from woodshed.training.resume_point import Position
from woodshed.training.snapshot import Snapshot


class Saver:
    """The one writer of a run's checkpoints; a context that lets nothing be left half written.

    Args:
        output: folder of the run.
        identity: of the run.
        keep_last: how many checkpoints of the row stay; 0 for all.
        step: up to which a checkpoint holds everything already.
    """

    def __init__(self, output: Path, identity: str, *, keep_last: int, step: int) -> None:
        self._output, self._identity, self._keep_last = output, identity, keep_last
        self.saved_step = step
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._jobs: deque[tuple[Future[None], Saved]] = deque()
        self._written: list[Saved] = []
        self._held: tuple[Position, Snapshot] | None = None
        self._is_proven = False  # whether an adapter of the run was written, read back and compared

    def begin(self, saved: Saved, position: Position, take: Callable[[], Snapshot]) -> None:
        """Copy the state and let it be written; wait first for what is written of another moment.

        So there is never more than one copy of the state, however slow the disk.

        Args:
            saved: what will be said once it is done; a checkpoint of its path, `BEST` or in the row.
            position: of the run; at the same one, its state is the same.
            take: copies the state.

        Raises:
            UserError, OSError: what went wrong with an earlier one.
        """
        if self._held is None or self._held[0] != position:
            self._collect(is_patient=True)
            snapshot = take()
            self._held = (snapshot.position, snapshot)
        self._jobs.append((self._writer.submit(self._write, saved.path, self._held[1]), saved))

    def done(self) -> Iterator[Saved]:
        """Yield what has reached the disk and was not said yet, without waiting.

        Raises:
            UserError, OSError: what went wrong with one.
        """
        self._collect(is_patient=False)
        written, self._written = self._written, []
        yield from written

    def finish(self) -> Iterator[Saved]:
        """Wait for everything, and yield what was not said yet.

        Raises:
            UserError, OSError: what went wrong with one.
        """
        self._collect(is_patient=True)
        yield from self.done()

    def _collect(self, *, is_patient: bool) -> None:
        while self._jobs and (is_patient or self._jobs[0][0].done()):
            job, saved = self._jobs.popleft()
            job.result()
            self._written.append(saved)
            if saved.path.name != BEST:
                self.saved_step = saved.step
        if not self._jobs:
            self._held = None

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        """Write a checkpoint, then drop those that make room for it; runs in the thread."""
        snapshot.write(folder, is_proven=self._is_proven)
        self._is_proven = True
        if folder.name != BEST:
            keep_newest(self._output, self._keep_last)
        write_pointers(self._output, self._identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()
