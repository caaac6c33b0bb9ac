"""Connects a run's events with everything that shows or stores them."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from woodshed.console import Terminal
from woodshed.monitor.journal import Journal
from woodshed.monitor.tensorboard import TensorBoard
from woodshed.monitor.terminal import TrainingView
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Event, Finished, Started


def watch(events: Iterable[Event], settings: TrainSettings, terminal: Terminal) -> Finished:
    """Show and store a run's events until it ends.

    Returns:
        The last event.
    """
    last: Event | None = None
    with ExitStack() as stack:
        views: list[Callable[[Event], None]] = [stack.enter_context(TrainingView(terminal))]
        for event in events:
            if isinstance(event, Started):  # only now is the output folder known to be ours
                views.append(stack.enter_context(Journal(settings.output_dir / "events.jsonl")))
                views.append(stack.enter_context(TensorBoard(settings.log_dir or settings.output_dir / "runs")))
            for view in views:
                view(event)
            last = event
    assert isinstance(last, Finished), "a run that ends without an error says so"
    return last
