"""Windows of songs: the same frames of everything that has frames, another window each epoch, the same one again."""

import pytest
import torch

from woodshed.data.batches import BatchLoader
from woodshed.data.crops import crop, crop_frames
from woodshed.data.dataset import Demands, Sample, SongDataset


@pytest.fixture
def song() -> Sample:
    """A hundred frames that say their number."""
    numbers = torch.arange(100.0)[:, None]
    return Sample("song", numbers.expand(100, 2), torch.rand(7, 3), torch.cat([numbers + 1000, numbers * 0 + 1], dim=1))


def starts(song, frames=20, epochs=200, seed=42):
    return [int(crop(song, frames, seed=seed, epoch=epoch).latents[0, 0]) for epoch in range(1, epochs + 1)]


def test_latents_and_context_are_of_the_same_frames_and_conditions_stay(song):
    for epoch in range(1, 30):
        window = crop(song, 20, seed=1, epoch=epoch)
        first = int(window.latents[0, 0])
        assert torch.equal(window.latents[:, 0], torch.arange(first, first + 20.0))
        assert torch.equal(window.context[:, 0], window.latents[:, 0] + 1000), "silence is of the same place"
        assert torch.equal(window.context[:, 1], torch.ones(20)), "and everything in it is to be made"
        assert window.conditions is song.conditions
        assert window.name == song.name


def test_windows_cover_the_song_evenly_from_the_first_to_the_last_frame(song):
    found = starts(song, frames=91, epochs=1000)
    assert set(found) == set(range(10))
    assert min(map(found.count, range(10))) > 60


def test_a_window_depends_on_seed_epoch_and_name_and_on_nothing_else(song):
    first = starts(song)
    torch.manual_seed(0)
    assert starts(song) == first
    assert starts(song, seed=43) != first
    other = Sample("other", song.latents, song.conditions, song.context)
    assert starts(other) != first
    assert len(set(first)) > 50


@pytest.mark.parametrize("frames", [0, 100, 101, 5000])
def test_a_song_that_is_not_longer_stays_whole(song, frames):
    assert crop(song, frames, seed=1, epoch=1) is song


@pytest.mark.parametrize(("seconds", "frames"), [(0, 0), (0.001, 1), (1, 25), (30, 750), (0.5, 12)])
def test_seconds_become_frames(seconds, frames):
    assert crop_frames(seconds) == frames


@pytest.fixture
def batches_of(write_sample):
    """The batches of an epoch over three songs, of which one is shorter than the window."""
    files = [write_sample(name, frames=frames) for name, frames in (("a", 60), ("b", 80), ("c", 20))]
    dataset = SongDataset(files, Demands(16, 32, "f00"), custom_tag="", notices=())

    def read(epoch, start=0, **changes):
        values = {"batch_size": 3, "seed": 42, "num_workers": 0, "pin_memory": False, "prefetch_factor": 2}
        values |= {"persistent_workers": True, "keep_in_memory": "no", "device": torch.device("cpu"), "crop_seconds": 1}
        loader = BatchLoader(dataset, **values | changes)
        found = list(loader.epoch(epoch, start))
        again = list(loader.epoch(epoch + 1, start))
        loader.close()
        return dataset, found, again

    return read


def test_batches_hold_windows_and_shorter_songs_whole(batches_of):
    dataset, (batch,), (later,) = batches_of(1)
    assert dict(zip(batch.names, batch.frames, strict=True)) == {"a": 25, "b": 25, "c": 20}
    for name in ("a", "b"):
        row, whole = batch.names.index(name), dataset[dataset.names.index(name)]
        expected = crop(whole, 25, seed=42, epoch=1)
        assert torch.equal(batch.latents[row], expected.latents)
        assert torch.equal(batch.context[row], expected.context)
        assert not torch.equal(later.latents[later.names.index(name)], expected.latents), "another one next time"


def test_windows_are_the_same_whoever_reads_them_and_wherever_an_epoch_begins(batches_of):
    _, found, later = batches_of(3, batch_size=1)
    for changes in ({"keep_in_memory": "yes"}, {"num_workers": 2}):
        _, same, same_later = batches_of(3, batch_size=1, **changes)
        for one, other in zip(found + later, same + same_later, strict=True):
            assert one.names == other.names
            assert torch.equal(one.latents, other.latents)
            assert torch.equal(one.context, other.context)
    _, (last,), _ = batches_of(3, 2, batch_size=1)
    assert torch.equal(last.latents, found[2].latents)
