"""Parts of the songs: dealt so that nobody is forgotten or done twice, and that copies of a file keep their numbers."""

import pytest

from woodshed.data.shards import Shard, choose_shard, deal, songs_digest
from woodshed.data.songs import Song
from woodshed.errors import SettingsError, UserError


@pytest.fixture
def songs(tmp_path):
    """Ten files: four are called the same, of which three are of one size."""

    def write(name, size):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
        return Song(path)

    copies = [write(f"{folder}/song.wav", size) for folder, size in (("a", 5), ("b", 5), ("c", 6))]
    return [*copies, *(write(f"n{number}.wav", number) for number in range(6)), write("d/SONG.mp3", 5)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_every_song_is_in_exactly_one_part_in_the_order_of_the_list(songs, count):
    parts = [deal(songs, Shard(number, count)) for number in range(1, count + 1)]
    assert sorted(place for part in parts for place in part) == list(range(len(songs)))
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_files_of_one_name_and_size_stay_together_whatever_the_case_and_the_ending(songs, count):
    together = {0, 1, 9}
    parts = [set(deal(songs, Shard(number, count))) for number in range(1, count + 1)]
    assert any(together <= part for part in parts)


def test_the_parts_are_of_about_one_size(songs):
    assert [len(deal(songs, Shard(number, 2))) for number in (1, 2)] == [6, 4]


def test_a_song_that_vanished_is_dealt_all_the_same(songs):
    songs[3].path.unlink()
    assert sum(len(deal(songs, Shard(number, 3))) for number in (1, 2, 3)) == len(songs)


def test_the_digest_knows_names_sizes_and_order_and_no_folders(songs, tmp_path):
    before = songs_digest(songs)
    (tmp_path / "moved").mkdir()
    moved = [
        Song(song.path.rename(tmp_path / "moved" / f"{number}{song.path.name}")) for number, song in enumerate(songs)
    ]
    assert songs_digest(moved) != before, "other names"
    assert songs_digest(moved[::-1]) != songs_digest(moved)
    before = songs_digest(moved)
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    there = [Song(tmp_path / "elsewhere" / song.path.name) for song in moved]
    assert songs_digest(there) == before
    there[0].path.write_bytes(b"another size")
    assert songs_digest(there) != before


def test_the_flag_wins_over_the_environment_and_one_of_one_is_everything():
    environment = {"RANK": "0", "WORLD_SIZE": "4"}
    assert choose_shard("2/3", environment) == Shard(2, 3)
    assert choose_shard("1/1", environment).is_whole
    assert choose_shard("", environment) == Shard(1, 4, "RANK and WORLD_SIZE")
    assert choose_shard("", {"RANK": "3", "WORLD_SIZE": "4"}).number == 4


@pytest.mark.parametrize("environment", [{}, {"RANK": "1"}, {"WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_without_a_part_all_songs_are_meant(environment):
    assert choose_shard("", environment).is_whole


@pytest.mark.parametrize("rank", ["4", "-1", "x", "1.5"])
def test_an_environment_that_names_no_part_is_refused(rank):
    with pytest.raises(UserError, match=rf"RANK={rank} of WORLD_SIZE=4, which is no part of the songs"):
        choose_shard("", {"RANK": rank, "WORLD_SIZE": "4"})


@pytest.mark.parametrize("written", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", " 1/4"])
def test_a_part_that_cannot_be_is_refused_with_what_is_accepted(settings_for, written):
    with pytest.raises(SettingsError, match=r"shard must be I/N, part I of N, from 1/N to N/N; got"):
        settings_for(shard=written)


def test_only_parts_have_a_suffix():
    assert (Shard().suffix, Shard(2, 4).suffix, str(Shard(2, 4))) == ("", "-2-of-4", "2/4")
