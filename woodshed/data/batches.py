"""From a dataset to a stream of batches: the order of an epoch, workers, pinned memory, and songs that are kept."""

import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Sampler

from woodshed.data.crops import crop, crop_frames
from woodshed.data.dataset import Batch, Sample, SongDataset, collate
from woodshed.data.kept import KeptSongs
from woodshed.errors import DataError

MEMORY_LIMIT = 4 * 2**30  # bytes of songs that `auto` keeps in RAM: small beside the 16 GB of a modest machine


def epoch_order(seed: int, epoch: int, songs: int) -> list[int]:
    """Return the order in which an epoch visits the songs: a permutation that depends on seed and epoch only."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(songs, generator=generator).tolist()


Place = tuple[int, int]  # an epoch, and a song's place in the dataset
Keep = Literal["auto", "card", "yes", "no"]
Deal = tuple[int, int, int]  # this process, of how many, and the batches of a step, which are dealt in turn


class _EpochBatches(Sampler[list[Place]]):
    """The batches of one epoch, from a given one on; set before each pass."""

    def __init__(self, songs: int, batch_size: int, seed: int, deal: Deal) -> None:
        self._songs, self._batch_size, self._seed = songs, batch_size, seed
        self._deal = deal
        self.epoch, self.start_batch = 1, 0

    def __iter__(self) -> Iterator[list[Place]]:
        order = epoch_order(self._seed, self.epoch, self._songs)
        rank, size, group = self._deal
        for start in range(self.start_batch * self._batch_size, self._songs, self._batch_size):
            if start // self._batch_size % group % size != rank:
                continue
            yield [(self.epoch, index) for index in order[start : start + self._batch_size]]


class BatchLoader:
    """Yields the batches of any epoch, from any position, always the same for the same seed.

    Args:
        dataset: the songs.
        batch_size: songs per batch; an epoch's last batch may hold fewer.
        seed: decides the order.
        num_workers: processes that read ahead; always 0 on Windows, where starting them costs more than it gains.
        pin_memory: page-locked batches, which copy to a GPU without waiting; only where there is one.
        prefetch_factor: batches that each worker reads ahead.
        persistent_workers: keep the workers between epochs.
        keep_in_memory: read each song once and hold it, in RAM or on the card; `auto` does so in RAM, up to 4 GiB. Then
            no workers run.
        device: where batches go. Those of songs on the card are made there, all others on the CPU.
        crop_seconds: take a random window of this length of longer songs, another one each epoch; 0 takes them whole.
        deal: which of the batches are read here.
    """

    def __init__(
        self,
        dataset: SongDataset,
        *,
        batch_size: int,
        seed: int,
        num_workers: int,
        pin_memory: bool,
        prefetch_factor: int,
        persistent_workers: bool,
        keep_in_memory: Keep,
        device: torch.device,
        crop_seconds: float = 0,
        deal: Deal = (0, 1, 1),
    ) -> None:
        self._kept = _kept_songs(dataset, keep_in_memory, device)
        self.is_resident = self._kept is not None
        self.num_workers = 0 if self.is_resident or sys.platform == "win32" else num_workers
        self._batches = _EpochBatches(len(dataset), batch_size, seed, deal)
        songs: Any = _Reader(dataset, self._kept, window=crop_frames(crop_seconds), seed=seed)
        worker_options: dict[str, Any] = {}
        if self.num_workers:
            worker_options = {"prefetch_factor": prefetch_factor, "persistent_workers": persistent_workers}
        with _workers_as_asked():
            self._loader: DataLoader[Batch | _Failure] = DataLoader(
                songs,
                batch_sampler=self._batches,
                num_workers=self.num_workers,
                collate_fn=_collate_or_report,
                pin_memory=pin_memory and device.type == "cuda",
                worker_init_fn=_leave_interrupts_to_the_run,
                generator=torch.Generator(),  # its own: reading draws nothing from the stream that training uses
                **worker_options,
            )

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches, leaving out the first `start_batch` without reading them.

        Raises:
            DataError: when a song cannot be read.
        """
        self._batches.epoch, self._batches.start_batch = epoch, start_batch
        with _workers_as_asked():
            stream = iter(self._loader)
        try:
            for batch in stream:
                if isinstance(batch, _Failure):
                    raise DataError(*batch.problems)
                yield batch
        finally:
            if self._loader._iterator is None:  # these workers do not persist
                _stop_workers(stream)

    def make_room(self) -> bool:
        """Give back a card's memory that songs take, for good; return whether there was any."""
        return self._kept is not None and self._kept.give_back()

    def notices(self) -> list[str]:
        """Return what was not said yet: that songs had to give way."""
        return [] if self._kept is None else self._kept.notices()

    def close(self) -> None:
        """Stop persistent workers."""
        _stop_workers(self._loader._iterator)
        self._loader._iterator = None


def _kept_songs(dataset: SongDataset, keep: Keep, device: torch.device) -> KeptSongs | None:
    ram = torch.device("cpu")
    fits_ram = keep == "yes" or (keep != "no" and dataset.weight_up_to(MEMORY_LIMIT) is not None)
    if keep == "card":
        return KeptSongs(device, ram if fits_ram else None)
    return KeptSongs(ram, ram) if fits_ram else None


def _leave_interrupts_to_the_run(_worker: int) -> None:
    """Let a worker ignore Ctrl-C, which reaches it too: the run saves, and stops its workers when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop_workers(stream: Any) -> None:
    """End the processes behind a stream of batches, now and not when the memory is cleaned up.

    One that fails while it is being stopped, in the middle of handing over a batch that nobody wants, has not failed.
    """
    if not hasattr(stream, "_shutdown_workers"):
        return
    try:
        stream._shutdown_workers()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise


@contextmanager
def _workers_as_asked() -> Iterator[None]:
    """Silence PyTorch's advice to take fewer workers than the user asked for; they mostly wait for the disk."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


@dataclass(frozen=True)
class _Failure:
    """A song that could not be read: carried out of the worker as a value, since an exception would lose its words."""

    problems: tuple[str, ...]


class _Reader:
    """Reads songs for the data loader, once only if they are kept, and takes a window of each."""

    def __init__(self, dataset: SongDataset, kept: KeptSongs | None, *, window: int, seed: int) -> None:
        self._dataset = dataset
        self._kept = kept
        self._window, self._seed = window, seed

    def __getitem__(self, place: Place) -> Sample | _Failure:
        epoch, index = place
        try:
            sample = self._read(index)
        except DataError as error:
            return _Failure(error.problems)
        return crop(sample, self._window, seed=self._seed, epoch=epoch)

    def _read(self, index: int) -> Sample:
        if self._kept is None:
            return self._dataset[index]
        return self._kept.get(index) or self._kept.add(index, self._dataset[index])


def _collate_or_report(samples: Sequence[Sample | _Failure]) -> Batch | _Failure:
    problems = [problem for item in samples if isinstance(item, _Failure) for problem in item.problems]
    if problems:
        return _Failure(tuple(problems))
    return collate([item for item in samples if isinstance(item, Sample)])
