"""How songs reach the training."""

import multiprocessing
import time

import pytest
import torch

from woodshed.data import batches
from woodshed.errors import DataError
from woodshed.training.preflight import check as preflight


def workers():
    return {process.pid for process in multiprocessing.active_children()}


def test_num_workers_is_the_number_of_processes_that_read(bench):
    for count in (0, 2):
        loader = bench.loader(num_workers=count)
        before = workers()
        passing = loader.epoch(1)
        next(passing)
        assert len(workers() - before) == count
        passing.close()
        loader.close()


def test_pin_memory_is_asked_of_the_loader_for_cuda_and_named_inert_elsewhere(bench):
    for wanted in (True, False):  # a real card's test is in benchmarks/cuda_settings.py
        run = bench.load()
        options = vars(run.settings) | {"pin_memory": wanted}
        names = ("batch_size", "seed", "num_workers", "pin_memory", "prefetch_factor", "persistent_workers")
        loader = batches.BatchLoader(
            run.preflight.dataset,
            keep_in_memory="no",
            device=torch.device("cuda"),
            **{name: options[name] for name in names},
        )
        assert loader._loader.pin_memory == wanted
    for device in ("cpu", "auto"):  # what auto comes to here is known by now
        bench.patch.setattr(torch.cuda, "is_available", lambda: False)
        assert "CUDA" in preflight(bench.settings(device=device)).inert["pin_memory"]


def test_prefetch_factor_is_how_many_batches_a_worker_reads_ahead(bench):
    """A worker reads that many batches ahead, and one more for the batch that was taken."""
    for seed in range(4, 12):
        bench.write_song(f"s{seed}", 8, seed)
    read = batches.SongDataset.__getitem__
    for ahead in (1, 4):
        log = bench.root / f"read-{ahead}"
        log.mkdir()

        def noted(dataset, index, log=log):
            (log / str(index)).touch()
            return read(dataset, index)

        bench.patch.setattr(batches.SongDataset, "__getitem__", noted)
        loader = bench.loader(prefetch_factor=ahead)
        passing = loader.epoch(1)
        next(passing)
        until = time.monotonic() + 10
        while len(list(log.iterdir())) < ahead + 1 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.2)  # and no more than that
        assert len(list(log.iterdir())) == ahead + 1
        passing.close()
        loader.close()


def test_persistent_workers_outlive_an_epoch(bench):
    for kept in (True, False):
        loader = bench.loader(persistent_workers=kept)
        seen = [workers() for epoch in (1, 2) for _ in loader.epoch(epoch)]
        assert bool(seen[0] & seen[-1]) == kept
        loader.close()


def test_keep_in_memory_reads_each_song_once(bench):
    for word in ("yes", "no", "auto"):
        loader = bench.loader(keep_in_memory=word)
        list(loader.epoch(1))
        hidden = bench.songs.rename(bench.root / "hidden")
        if word == "no":
            with pytest.raises(DataError):
                list(loader.epoch(2))
        else:  # auto keeps small datasets; then no worker runs, which is said
            assert len(list(loader.epoch(2))) == 4
            assert not workers()
        hidden.rename(bench.songs)
        loader.close()
    assert "kept in memory" in preflight(bench.settings(num_workers=2)).inert["num_workers"]
    bench.patch.setattr("woodshed.training.memory_plan.MEMORY_LIMIT", 100)
    assert "num_workers" not in preflight(bench.settings(num_workers=2)).inert
