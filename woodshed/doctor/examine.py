"""All of the doctor's looks, in the order in which things depend on each other."""

from collections.abc import Iterator

from woodshed.doctor.files import look_at_checkpoints, look_at_dataset
from woodshed.doctor.finding import Finding
from woodshed.doctor.machine import look_at_machine, look_at_packages
from woodshed.doctor.run import look_at_run
from woodshed.settings.schema import DoctorSettings, TrainSettings


def examine(settings: DoctorSettings, run: TrainSettings | None = None) -> Iterator[Finding]:
    """Look at everything that was named, and say how it is.

    Args:
        settings: what to look at.
        run: the training that is planned, where enough is known of it; its dataset is then checked with it.

    Yields:
        A finding after the other, as they are made.
    """
    yield from look_at_machine(settings)
    yield from look_at_packages()
    yield from look_at_checkpoints(settings)
    if settings.dataset_dir is not None:
        yield from look_at_dataset(settings.dataset_dir)
    if run is not None:
        yield from look_at_run(run)
