"""Songs that are kept are the same songs; a card without room gets them back, and says so once."""

import pytest
import torch

from woodshed.data.dataset import Sample
from woodshed.data.kept import KeptSongs

RAM = torch.device("cpu")
CARD = torch.device("meta")  # a device that every machine has, whose tensors are no CPU's


@pytest.fixture
def song() -> Sample:
    generator = torch.Generator().manual_seed(0)
    latents, conditions, context = (torch.randn(5, width, generator=generator).bfloat16() for width in (4, 6, 8))
    return Sample("a", latents, conditions, context)


def test_a_song_is_found_as_it_was_put_there_and_no_other(song):
    kept = KeptSongs(RAM, RAM)
    assert kept.get(3) is None
    found = kept.add(3, song)
    assert kept.get(3) is found
    assert kept.get(4) is None
    for name in ("latents", "conditions", "context"):
        assert torch.equal(getattr(found, name), getattr(song, name))
        assert getattr(found, name).dtype == torch.bfloat16, "twice the memory for nothing"


def test_a_song_lies_on_the_device_that_keeps_it(song):
    kept = KeptSongs(CARD, RAM)
    assert {kept.add(0, song).latents.device.type, kept.get(0).context.device.type} == {"meta"}


@pytest.mark.parametrize(("instead", "then"), [(RAM, "kept in RAM"), (None, "read from the disk each time")])
def test_songs_that_give_way_are_gone_and_later_ones_stay_elsewhere(song, instead, then):
    kept = KeptSongs(CARD, instead)
    kept.add(0, song)
    kept.add(1, song)
    assert kept.give_back()
    assert kept.get(0) is None
    assert kept.add(2, song).latents.device == RAM
    assert (kept.get(2) is not None) == (instead is not None)
    (line,) = kept.notices()
    assert line == (
        "meta has no more room for songs: 2 that were kept there give way to the training, and all are "
        f"{then} from here on."
    )
    assert kept.notices() == []


def test_there_is_nothing_to_give_back_twice_nor_in_ram(song):
    on_card, in_ram = KeptSongs(CARD, RAM), KeptSongs(RAM, RAM)
    for kept in (on_card, in_ram):
        kept.add(0, song)
    assert [on_card.give_back(), on_card.give_back(), in_ram.give_back()] == [True, False, False]
    assert in_ram.get(0) is not None


def test_a_song_that_the_card_has_no_room_for_is_handed_on_and_all_give_way(song, monkeypatch):
    kept = KeptSongs(CARD, RAM)
    kept.add(0, song)

    def full(*_):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Sample, "to", full)
        assert kept.add(1, song) is song
    assert kept.get(0) is None
    assert kept.add(1, song).latents.device == RAM
    assert "1 that were kept" in kept.notices()[0]
