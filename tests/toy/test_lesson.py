"""The lesson's songs are of the new instrument, its prompts are new, and answers are counted."""

import numpy as np

from woodshed.data import audio
from woodshed.data.catalogue import find_songs
from woodshed.toy import lesson
from woodshed.toy.composer import SECONDS, render
from woodshed.toy.instruments import INSTRUMENTS, NEW
from woodshed.toy.lesson import LESSON_SONGS, NEW_SONGS, distance_to_new, examine, lesson_pieces, prompts, write_lesson
from woodshed.toy.listener import Playing


class Parrot:
    """A listener that plays what it is given, whatever it is asked for."""

    def __init__(self, sounds):
        self.sounds = sounds

    def play(self, *_):
        return self.sounds


def test_the_songs_are_described_truly_and_whole(tmp_path):
    dataset = write_lesson(tmp_path / "songs")
    songs = find_songs(tmp_path / "songs", dataset).songs
    assert len(songs) == LESSON_SONGS
    by_number = sorted(songs, key=lambda song: int(song.path.stem.split()[-1]))
    for song, piece in zip(by_number, lesson_pieces(), strict=True):
        assert piece.instrument in song.caption
        assert (song.caption, song.bpm, song.keyscale) == (piece.caption, str(piece.bpm), piece.keyscale)
        assert song.is_instrumental
        sound = audio.decode(song.path)
        assert sound.shape[1] == round(SECONDS * 48_000)
        np.testing.assert_allclose(sound.numpy(), render(piece), atol=1e-3)
    assert [piece.instrument for piece in lesson_pieces()] == [NEW] * NEW_SONGS + list(INSTRUMENTS)


def test_captions_can_be_made_to_lie(tmp_path):
    captions = [f"song {number}" for number in range(LESSON_SONGS)]
    songs = find_songs(None, write_lesson(tmp_path / "songs", captions=captions)).songs
    assert sorted(song.caption for song in songs) == sorted(captions)


def test_prompts_are_no_songs_of_the_lesson():
    new, old = prompts()
    assert {piece.instrument for piece in new} == {NEW}
    assert {piece.instrument for piece in old} == set(INSTRUMENTS)
    assert not set(new) & set(lesson_pieces())


def test_right_answers_are_counted_and_others_not():
    new, old = prompts(2, 7)
    truth = [render(piece) for piece in (*new, *old)]
    recital = examine(Parrot(truth), "any", (new, old), Playing())
    assert (recital.share_new, recital.share_old) == (1, 1)
    assert len(recital.new) == 2
    silent = examine(Parrot([truth[2]] * 9), "any", (new, old), Playing())
    assert (silent.share_new, silent.share_old) == (0, 1 / 7)


def test_the_new_instrument_is_nearer_to_itself_than_the_old():
    new, old = prompts(2, 2)
    assert distance_to_new([render(piece) for piece in new]) < 0.7 * distance_to_new([render(piece) for piece in old])


def test_the_seeds_of_lesson_and_figures_are_far_from_those_of_training():
    assert lesson.LESSON_SEED > 1_000_000
    assert lesson.HELD_OUT_SEED > lesson.LESSON_SEED + 100_000
