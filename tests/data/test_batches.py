"""The same batches for the same seed, from any position, whoever reads them."""

import multiprocessing
import os
import pickle
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from woodshed.data import batches
from woodshed.data.batches import BatchLoader, epoch_order
from woodshed.data.dataset import Batch, Demands, Sample, SongDataset
from woodshed.errors import DataError

LENGTHS = {"a": (5, 3), "b": (9, 4), "c": (5, 3), "d": (7, 6), "e": (6, 2), "f": (5, 5), "g": (8, 3)}


@pytest.fixture
def dataset(write_sample) -> SongDataset:
    """Seven songs of different lengths."""
    files = [write_sample(name, frames=frames, tokens=tokens) for name, (frames, tokens) in LENGTHS.items()]
    return SongDataset(files, Demands(16, 32, "f00"), custom_tag="", notices=())


class Signed(SongDataset):
    """Songs that tell by which process they were read, and leave a mark for every reading."""

    def __getitem__(self, index: int) -> Sample:
        marks = self.files[0].parent.parent / "marks"
        marks.mkdir(exist_ok=True)
        (marks / str(time.monotonic_ns())).touch()
        return replace(super().__getitem__(index), name=f"{os.getpid()} {self.names[index]}")


@pytest.fixture
def signed(dataset) -> Signed:
    return Signed(dataset.files, dataset.demands, custom_tag="", notices=())


@pytest.fixture
def load():
    """Build loaders with plain settings, and close them afterwards."""
    made: list[BatchLoader] = []

    def build(dataset: SongDataset, **changes) -> BatchLoader:
        settings = {
            "batch_size": 2,
            "seed": 42,
            "num_workers": 0,
            "pin_memory": False,
            "prefetch_factor": 2,
            "persistent_workers": False,
            "keep_in_memory": "no",
            "device": torch.device("cpu"),
        }
        made.append(BatchLoader(dataset, **settings | changes))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def names_of(stream) -> list[tuple[str, ...]]:
    return [batch.names for batch in stream]


def readers_of(stream) -> set[int]:
    return {int(name.split()[0]) for batch in stream for name in batch.names}


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert names_of(one) == names_of(other)
    for mine, theirs in zip(one, other, strict=True):
        for name, tensor in mine._tensors().items():
            assert torch.equal(tensor, getattr(theirs, name))


def test_an_order_visits_every_song_once():
    for songs in (1, 2, 7, 100):
        assert sorted(epoch_order(42, 3, songs)) == list(range(songs))


def test_an_order_depends_on_seed_and_epoch_and_on_nothing_else():
    first = epoch_order(42, 1, 50)
    torch.manual_seed(0)
    assert epoch_order(42, 1, 50) == first
    others = [epoch_order(42, 2, 50), epoch_order(43, 1, 50), epoch_order(41, 1 << 20, 50), epoch_order(0, 42, 50)]
    assert all(other != first for other in others)
    assert epoch_order(2**32 - 1, 10**6, 5) != []


def test_an_epoch_follows_its_order_and_its_last_batch_holds_the_rest(dataset, load):
    order = [dataset.names[index] for index in epoch_order(42, 5, 7)]
    assert names_of(load(dataset, batch_size=3).epoch(5)) == [tuple(order[:3]), tuple(order[3:6]), tuple(order[6:])]


def test_the_seed_changes_the_order_and_the_batch_size_does_not(dataset, load):
    one_by_one = [name for (name,) in names_of(load(dataset, batch_size=1).epoch(1))]
    in_threes = [name for names in names_of(load(dataset, batch_size=3).epoch(1)) for name in names]
    assert in_threes == one_by_one
    assert names_of(load(dataset, batch_size=1, seed=43).epoch(1)) != names_of(load(dataset, batch_size=1).epoch(1))


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("keep", ["yes", "no"])
def test_an_epoch_can_begin_at_any_batch(dataset, load, start, keep):
    loader = load(dataset, keep_in_memory=keep)
    whole = list(loader.epoch(2))
    assert_same(list(loader.epoch(2, start)), whole[start:])


def test_skipped_batches_are_not_read(dataset, load):
    first, second = (dataset.files[index] for index in epoch_order(42, 1, 7)[:2])
    first.unlink()
    second.write_bytes(b"broken")
    assert len(list(load(dataset).epoch(1, 1))) == 3
    with pytest.raises(DataError):
        list(load(dataset).epoch(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_workers": 2},
        {"num_workers": 3, "prefetch_factor": 1, "persistent_workers": True},
        {"keep_in_memory": "yes"},
        {"keep_in_memory": "auto", "num_workers": 2},
        {"pin_memory": True},
    ],
)
def test_no_setting_of_the_loading_changes_the_batches(dataset, load, settings):
    plain, loader = load(dataset), load(dataset, **settings)
    for epoch in (1, 2):
        assert_same(list(loader.epoch(epoch)), list(plain.epoch(epoch)))
    assert_same(list(loader.epoch(2, 2)), list(plain.epoch(2, 2)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_an_epoch_left_in_the_middle_leaves_nothing_behind_for_the_next(dataset, load, workers, persistent):
    loader = load(dataset, batch_size=1, num_workers=workers, persistent_workers=persistent)
    for _ in range(2):
        stream = loader.epoch(1)
        next(stream)
        stream.close()
    assert_same(list(loader.epoch(2)), list(load(dataset, batch_size=1).epoch(2)))


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}, {"keep_in_memory": "yes"}])
def test_reading_draws_nothing_from_the_stream_of_random_numbers_that_training_uses(dataset, load, settings):
    before = torch.get_rng_state()
    loader = load(dataset, **settings)
    for epoch in (1, 2):
        list(loader.epoch(epoch))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("error")
def test_workers_are_as_many_as_asked_without_a_word_and_none_is_this_process(signed, load, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0}, raising=False)
    loader = load(signed, batch_size=1, num_workers=3)
    readers = readers_of(loader.epoch(1))
    assert len(readers) == loader.num_workers == 3
    assert os.getpid() not in readers
    assert readers_of(load(signed, num_workers=0).epoch(1)) == {os.getpid()}


def test_on_windows_there_are_no_workers_whatever_is_asked(signed, load, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    loader = load(signed, num_workers=4, persistent_workers=True)
    assert loader.num_workers == 0
    assert readers_of(loader.epoch(1)) == {os.getpid()}


def test_songs_that_are_kept_in_memory_need_no_workers(signed, load):
    loader = load(signed, num_workers=4, persistent_workers=True, keep_in_memory="yes")
    assert (loader.is_resident, loader.num_workers) == (True, 0)
    assert readers_of(loader.epoch(1)) == {os.getpid()}


def test_persistent_workers_stay_between_epochs_and_others_do_not(signed, load):
    staying = load(signed, num_workers=2, persistent_workers=True)
    assert readers_of(staying.epoch(1)) == readers_of(staying.epoch(2))
    leaving = load(signed, num_workers=2, persistent_workers=False)
    assert not readers_of(leaving.epoch(1)) & readers_of(leaving.epoch(2))


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="there are no workers")
def test_closing_ends_the_workers_and_may_be_repeated(signed, load):
    loader = load(signed, num_workers=2, persistent_workers=True)
    workers = readers_of(loader.epoch(1))
    assert all(is_running(worker) for worker in workers)
    loader.close()
    loader.close()
    assert not any(is_running(worker) for worker in workers)
    assert len(list(loader.epoch(2))) == 4


def test_a_worker_that_fails_while_it_is_being_stopped_ends_no_run():
    class Stream:
        def __init__(self, words):
            self.words = words

        def _shutdown_workers(self):
            raise RuntimeError(self.words)

    batches._stop_workers(Stream("DataLoader worker (pid 7) exited unexpectedly with exit code 1."))
    with pytest.raises(RuntimeError, match="another reason"):
        batches._stop_workers(Stream("another reason"))


def test_workers_that_do_not_persist_end_with_their_epoch_also_while_an_error_is_still_held(dataset, load):
    dataset.files[0].unlink()
    with pytest.raises(DataError) as refusal:
        list(load(dataset, batch_size=7, num_workers=2).epoch(1))
    assert multiprocessing.active_children() == []
    assert refusal.value.problems


def wait_for_marks(folder: Path, count: int) -> int:
    """Wait until so many songs were read, and a moment more for those that should not be; return how many were."""
    deadline = time.monotonic() + 20
    while (not folder.is_dir() or len(list(folder.iterdir())) < count) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    return len(list(folder.iterdir()))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_worker_reads_as_many_batches_ahead_as_asked(signed, load, tmp_path, prefetch):
    stream = load(signed, batch_size=1, num_workers=1, prefetch_factor=prefetch).epoch(1)
    next(stream)
    assert wait_for_marks(tmp_path / "marks", 1 + prefetch) == 1 + prefetch
    stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_song_comes_out_of_a_worker_with_its_words(dataset, load, workers):
    broken, gone = dataset.files[1], dataset.files[4]
    broken.write_bytes(b"no tensors")
    gone.unlink()
    with pytest.raises(DataError) as refusal:
        list(load(dataset, batch_size=7, num_workers=workers).epoch(1))
    assert sorted(refusal.value.problems) == [
        f"There is no file {gone}.",
        "b.pt is no file of tensors, or only a part of one. Preprocess that song again.",
    ]


def test_batches_before_a_broken_song_are_still_given(dataset, load):
    order = epoch_order(42, 1, 7)
    dataset.files[order[2]].unlink()
    stream = load(dataset).epoch(1)
    assert len(next(stream).names) == 2
    with pytest.raises(DataError, match="There is no file"):
        next(stream)


def test_songs_that_are_kept_in_memory_are_read_once_and_others_every_time(signed, load, tmp_path):
    kept = load(signed, keep_in_memory="yes")
    for epoch in (1, 2, 3):
        assert len(list(kept.epoch(epoch))) == 4
    assert len(list((tmp_path / "marks").iterdir())) == 7
    read = load(signed, keep_in_memory="no")
    for epoch in (1, 2):
        list(read.epoch(epoch))
    assert len(list((tmp_path / "marks").iterdir())) == 7 + 14


def test_songs_in_memory_need_their_files_no_more(dataset, load):
    loader = load(dataset, keep_in_memory="yes")
    before = list(loader.epoch(2))
    for file in dataset.files:
        file.unlink()
    assert_same(list(loader.epoch(2)), before)


def test_auto_keeps_songs_in_memory_up_to_a_limit(dataset, load, monkeypatch):
    size = sum(path.stat().st_size for path in dataset.files)
    for limit, expected in ((size, True), (size - 1, False)):
        monkeypatch.setattr(batches, "MEMORY_LIMIT", limit)
        loader = load(dataset, keep_in_memory="auto", num_workers=1)
        assert (loader.is_resident, loader.num_workers) == (expected, 0 if expected else 1)


def test_large_songs_are_not_measured_when_nobody_asks(dataset, load, monkeypatch):
    monkeypatch.setattr(SongDataset, "weight_up_to", lambda *_: pytest.fail("one look at each file is slow"))
    assert load(dataset, keep_in_memory="yes").is_resident
    assert not load(dataset, keep_in_memory="no").is_resident


@pytest.mark.parametrize(
    ("asked", "device", "expected"), [(True, "cuda", True), (False, "cuda", False), (True, "cpu", False)]
)
def test_memory_is_pinned_only_where_it_is_asked_for_and_there_is_a_gpu(dataset, load, asked, device, expected):
    assert load(dataset, pin_memory=asked, device=torch.device(device))._loader.pin_memory is expected


def test_what_reads_the_songs_can_be_sent_to_a_new_process(dataset, load):
    reader = pickle.loads(pickle.dumps(load(dataset)._loader.dataset))
    assert reader[1, 0].name == "a"


class Interruptible(SongDataset):
    """Songs that tell how the process that reads them answers Ctrl-C."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), name=str(signal.getsignal(signal.SIGINT)))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no workers on Windows")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_leave_ctrl_c_to_the_run_however_they_are_started(dataset, load, start):
    songs = Interruptible(dataset.files, dataset.demands, custom_tag="", notices=())
    loader = load(songs, num_workers=1)
    loader._loader.multiprocessing_context = start
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background may begin without one
    try:
        assert names_of(loader.epoch(1))[0] == (str(signal.SIG_IGN),) * 2
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
