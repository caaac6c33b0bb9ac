"""Connects a run's events with everything that shows or stores them."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from woodshed.console import Terminal
from woodshed.monitor.journal import Journal
from woodshed.monitor.tensorboard import TensorBoard
from woodshed.monitor.terminal import TrainingView
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Event, Finished, Started

View = Callable[[Event], None]


def watch(
    events: Iterable[Event], settings: TrainSettings, terminal: Terminal, *, show: View | None = None
) -> Finished:
    """Show and store a run's events until it ends.

    Args:
        events: of the run.
        settings: of the run.
        terminal: where it is shown.
        show: shows it in another way than usual.

    Returns:
        The last event.
    """
    last: Event | None = None
    with ExitStack() as stack:
        views: list[View] = [show or stack.enter_context(TrainingView(terminal))]
        for event in events:
            if isinstance(event, Started):  # only now is the output folder known to be ours
                views.append(stack.enter_context(Journal(settings.output_dir / "events.jsonl")))
                views.append(stack.enter_context(TensorBoard(curves_folder(settings, is_new=event.first_step == 0))))
            for view in views:
                view(event)
            last = event
    assert isinstance(last, Finished), "a run that ends without an error says so"
    return last


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
