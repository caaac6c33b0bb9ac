"""woodshed.log: what somebody needs who is asked why a run did what it did.

Every start adds versions, hardware and all settings with where each came from, so that the file is the history of a
run that was resumed; then a line for each thing that happens but steps. Nothing of the environment is written.
"""

import os
import platform
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

import torch

from woodshed import __version__
from woodshed.console import printable
from woodshed.models.memory import GIB, device_memory
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import EpochDone, Event, Finished, Notice, SampleMade, Saved, Started, Validated

NAME = "woodshed.log"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "lycoris-lora", "safetensors", "bitsandbytes", "prodigyopt")


class RunLog:
    """Appends to the log of a run, each line flushed at once.

    Args:
        settings: of the run.
        origins: where each value came from.
    """

    def __init__(self, settings: TrainSettings, origins: Mapping[str, str]) -> None:
        self._settings, self._origins = settings, origins

    def __enter__(self) -> Self:
        self._file = (self._settings.output_dir / NAME).open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is not None:
                self._write(f"ended by {type(error).__name__}: {error}")

    def __call__(self, event: Event) -> None:
        """Write what happened."""
        for line in self._start(event) if isinstance(event, Started) else _lines(event):
            self._write(line)

    def _start(self, event: Started) -> Iterator[str]:
        again = f"resumes at epoch {event.first_epoch}, after step {event.first_step}" if event.first_step else "starts"
        yield f"run {event.run} {again} in {event.output_dir.absolute()}"
        yield f"model {event.model}, {event.songs} songs, {event.modules} modules, {event.trainable_parameters} trained"
        yield ", ".join([f"woodshed {__version__}", f"Python {platform.python_version()}", *_versions()])
        yield _machine(event.device)
        for name, value in self._settings.model_dump(mode="json").items():
            yield f"setting {name} = {value!r} ({self._origins.get(name, 'given')})"

    def _write(self, text: str) -> None:
        moment = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        self._file.write(f"{moment} {printable(' '.join(text.splitlines()))}\n")
        self._file.flush()


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"no {package}"
    yield f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"


def _machine(device: str) -> str:
    memory = device_memory(torch.device("cpu"))
    parts = [platform.platform(), f"{os.cpu_count()} processors", f"computing on {device}"]
    parts += [f"{memory / GIB:.1f} GiB of memory"] if memory else []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        parts.append(f"cuda:{index} {card.name}, {card.total_memory / GIB:.1f} GiB")
    return ", ".join(parts)


def _lines(event: Event) -> Iterator[str]:
    match event:
        case Notice():
            yield event.text
        case EpochDone():
            yield f"epoch {event.epoch} done in {event.seconds:.1f} s, mean loss {event.loss:.6f}"
        case Validated():
            yield f"epoch {event.epoch} held-out loss {event.loss:.6f}, {event.change:+.6f}, gap {event.gap:+.6f}"
        case SampleMade():
            yield f"sample {event.path}"
        case Saved():
            yield f"saved {event.kind} {event.path} after step {event.step}"
        case Finished():
            how = "interrupted" if event.was_interrupted else "finished"
            peak = "" if event.peak_memory_bytes is None else f", peak {event.peak_memory_bytes / GIB:.2f} GiB"
            yield f"{how} after {event.steps} steps, {event.seconds:.1f} s{peak}"
