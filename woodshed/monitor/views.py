"""Connects a run's events with everything that shows or stores them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from woodshed.console import NobodyReadsError, Terminal
from woodshed.errors import UserError
from woodshed.monitor.journal import Journal
from woodshed.monitor.run_log import RunLog
from woodshed.monitor.tensorboard import TensorBoard
from woodshed.monitor.terminal import TrainingView
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Event, Finished, Started

View = Callable[[Event], None]


def watch(
    events: Iterable[Event],
    settings: TrainSettings,
    terminal: Terminal,
    *,
    show: View | None = None,
    origins: Mapping[str, str] | None = None,
    ask_to_stop: Callable[[], None] = lambda: None,
) -> Finished:
    """Show and store a run's events until it ends.

    Args:
        events: of the run.
        settings: of the run.
        terminal: where it is shown.
        show: shows it in another way than usual.
        origins: where the settings came from.
        ask_to_stop: called when the disk takes no records any more, so that the state is saved as long as it can be.

    Returns:
        The last event.

    Raises:
        UserError: when records could not be written; the state is saved.
    """
    last: Event | None = None
    failures: list[str] = []

    def fail(error: OSError) -> None:
        failures.append(f"{error.strerror or error} ({error.filename or settings.output_dir})")
        ask_to_stop()

    with ExitStack() as stack:
        views: list[View] = [show or stack.enter_context(TrainingView(terminal))]
        for event in events:
            if isinstance(event, Started):  # only now is the output folder known to be ours
                journal = Journal(settings.output_dir / "events.jsonl")
                curves = TensorBoard(curves_folder(settings, is_new=event.first_step == 0))
                log = RunLog(settings, origins or {})
                views += [stack.enter_context(Guarded(record, fail)) for record in (journal, curves, log)]
            for view in views:
                try:
                    view(event)
                except NobodyReadsError:
                    # Stop as Ctrl-C does, saving: going on for hours unseen is not what `| head` asks for, and
                    # whoever wants it has `nohup` or `> file`.
                    terminal.lose_reader("Nobody reads the output any more, so the run stops and saves its state.")
                    ask_to_stop()
            last = event
    assert isinstance(last, Finished), "a run that ends without an error says so"
    if failures:
        raise UserError(
            f"The records of the run could not be written: {'; '.join(failures)}. The adapter is in {last.adapter}."
            f"{' Make room, and go on with --resume-from latest.' if last.was_interrupted else ''}"
        )
    return last


class Record(Protocol):
    """A view that writes files."""

    def __enter__(self) -> Self: ...

    def __call__(self, event: Event) -> None:
        """Write one event."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Guarded:
    """A record that gets nothing more once the disk has refused it.

    Args:
        record: not yet entered.
        fail: told of the first refusal.
    """

    def __init__(self, record: Record, fail: Callable[[OSError], None]) -> None:
        self._record, self._fail = record, fail
        self._is_open = self._was_opened = False

    def __enter__(self) -> Self:
        self._is_open = True
        self._try(self._record.__enter__)
        self._was_opened = self._is_open
        return self

    def __call__(self, event: Event) -> None:
        """Write one event."""
        self._try(lambda: self._record(event))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._was_opened:
            return
        try:
            self._record.__exit__(kind, error, trace)
        except OSError as refusal:
            if self._is_open:  # what was refused before is refused again on closing
                self._fail(refusal)

    def _try(self, write: Callable[[], object]) -> None:
        if not self._is_open:
            return
        try:
            write()
        except OSError as error:
            self._is_open = False
            self._fail(error)


def curves_folder(settings: TrainSettings, *, is_new: bool) -> Path:
    """Return where a run's curves go: beside it, or into `log_dir`.

    TensorBoard takes the files of one folder for one run. A new run therefore gets a folder of its own inside a
    `log_dir` that already holds curves, called like its output directory, and finds it again when it resumes.
    """
    if settings.log_dir is None:
        return settings.output_dir / "runs"
    own = settings.log_dir / settings.output_dir.absolute().name
    is_taken = any(settings.log_dir.glob("events.out.tfevents.*"))
    return own if own.is_dir() or (is_new and is_taken) else settings.log_dir
