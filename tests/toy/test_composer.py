"""What captions, lyrics and metadata say of the little songs is true, and a seed decides everything."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from woodshed.toy.composer import CHORDS, ROOTS, SAMPLE_RATE, SCALES, SECONDS, Piece, chords, compose, melody, render
from woodshed.toy.instruments import INSTRUMENTS, NEW, random_instrument

PIECE = Piece("flute", "D", "minor", 120, 4, True, "melody", 5)
SEEDS = range(40)


def semitones(hertz, key):
    return 12 * np.log2(hertz / ROOTS[key])


def loudness(sound, first, last):
    return np.sqrt(np.mean(sound[:, round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)] ** 2))


def change(**fields):
    return dataclasses.replace(PIECE, **fields)


def test_the_same_seed_gives_the_same_song_and_another_one_another():
    pieces = [compose(seed) for seed in SEEDS]
    assert pieces == [compose(seed) for seed in SEEDS]
    assert len(set(pieces)) == len(pieces)
    np.testing.assert_array_equal(render(pieces[0]), render(compose(0)))
    assert np.abs(render(PIECE) - render(change(seed=6))).max() > 0.1


def test_chance_uses_all_there_is():
    pieces = [compose(seed) for seed in range(400)]
    for field, count in [("instrument", 7), ("key", 6), ("mode", 2), ("bpm", 4), ("beats", 2), ("form", 3)]:
        seen = Counter(getattr(piece, field) for piece in pieces)
        assert len(seen) == count
        assert min(seen.values()) > 20
    assert NEW not in {piece.instrument for piece in pieces}
    assert 0.6 < np.mean([piece.has_chords for piece in pieces]) < 0.8


def test_only_songs_with_chords_begin_with_chords_alone():
    assert all(piece.has_chords for piece in map(compose, range(400)) if piece.form == "intro")


@pytest.mark.parametrize("name", [*INSTRUMENTS, NEW])
def test_every_wording_of_a_caption_names_the_instrument_and_what_else_is_heard(name):
    for has_chords in (True, False):
        captions = {change(instrument=name, has_chords=has_chords, seed=seed).caption for seed in range(4)}
        assert len(captions) == 4
        for caption in captions:
            assert name in caption
            assert ("chords" in caption) is has_chords


@pytest.mark.parametrize("seed", SEEDS)
def test_melody_and_chords_keep_to_the_key(seed):
    piece = compose(seed, tuple(name for name in INSTRUMENTS if name != "drum kit"))
    steps = {step % 12 for step in SCALES[piece.mode]}
    notes = [*melody(piece, 40), *chords(piece, 40)]
    assert {round(semitones(note.hertz, piece.key)) % 12 for note in notes} <= steps


def test_the_melody_begins_on_the_root_and_fills_its_bars():
    for seed in SEEDS:
        notes = list(melody(change(seed=seed), 24))
        assert notes[0].hertz == pytest.approx(ROOTS["D"])
        assert [note.start for note in notes] == list(
            itertools.accumulate((note.length for note in notes[:-1]), initial=0)
        )
        assert notes[-1].start + notes[-1].length == 24


@pytest.mark.parametrize("beats", [3, 4])
def test_every_bar_has_the_rhythm_of_the_first_and_as_many_beats_as_stated(beats):
    bar = 2 * beats
    for seed in SEEDS:
        notes = [(note.start, note.length) for note in melody(change(seed=seed, beats=beats), 4 * bar)]
        bars = [[(start % bar, length) for start, length in notes if start // bar == number] for number in range(4)]
        assert bars[0] == bars[1] == bars[2] == bars[3]


@pytest.mark.parametrize("beats", [3, 4])
def test_chords_sound_on_every_beat_and_change_with_the_bar(beats):
    found = {}
    for note in chords(change(beats=beats), 8 * beats):
        found.setdefault(note.start, set()).add(round(semitones(2 * note.hertz, "D")))
    assert sorted(found) == list(range(0, 8 * beats, 2))
    for start, triad in found.items():
        degree = CHORDS[start // (2 * beats)]
        assert triad == {SCALES["minor"][(degree + third) % 7] for third in (0, 2, 4)}


def test_the_new_instrument_plays_rising_runs():
    steps = [note.hertz for note in melody(change(instrument=NEW), 32)]
    assert sum(high > low for low, high in itertools.pairwise(steps)) >= 0.85 * (len(steps) - 1)
    others = [note.hertz for note in melody(PIECE, 32)]
    assert sum(high > low for low, high in itertools.pairwise(others)) < 0.7 * (len(others) - 1)


def test_lyrics_mark_the_sections_that_are_heard():
    plain, intro, chorus = (change(form=form) for form in ("melody", "intro", "chorus"))
    assert (plain.lyrics, intro.lyrics, chorus.lyrics) == ("", "[Intro]\n\n[Verse]", "[Verse]\n\n[Chorus]")
    assert min(note.start for note in melody(intro, 24)) == 12
    pairs = zip(melody(plain, 24), melody(chorus, 24), strict=True)
    assert all(high.hertz / low.hertz == (2 if low.start >= 12 else 1) for low, high in pairs)


def test_drums_alone_have_no_key():
    assert change(instrument="drum kit").keyscale == "D minor"
    assert change(instrument="drum kit", has_chords=False).keyscale == ""


@pytest.mark.parametrize("bpm", [80, 150])
def test_notes_come_at_the_stated_tempo(bpm):
    piece = next(
        piece
        for piece in (change(instrument="plucked string", bpm=bpm, has_chords=False, seed=seed) for seed in SEEDS)
        if all(note.length == 2 for note in melody(piece, 8))
    )
    sound, beat = render(piece), 60 / bpm
    for number in range(1, 5):
        assert loudness(sound, number * beat, number * beat + 0.03) > 1.5 * loudness(
            sound, number * beat - 0.06, number * beat - 0.03
        )


def test_a_song_is_stereo_of_the_asked_length_and_ends_in_silence():
    for seconds, rate in ((SECONDS, SAMPLE_RATE), (3.0, 44_100)):
        sound = render(PIECE, seconds, rate)
        assert sound.shape == (2, round(seconds * rate))
        assert sound.dtype == np.float32
        assert np.abs(sound[:, -1]).max() < 1e-3
    assert np.abs(sound[0] - sound[1]).max() > 0.01


def test_chords_are_heard_only_where_the_caption_says_so():
    """Below a flute's lowest note there is nothing but chords."""
    low = [
        np.abs(np.fft.rfft(render(change(has_chords=has_chords)).mean(axis=0)))[500:1200].max()  # 100 to 230 Hz
        for has_chords in (True, False)
    ]
    assert low[0] > 20 * low[1]


def test_songs_hardly_ever_reach_the_limit():
    peaks = [np.abs(render(compose(seed, (*INSTRUMENTS, NEW)), 2.0)).max() for seed in SEEDS]
    assert max(peaks) <= 1
    assert np.mean([peak == 1 for peak in peaks]) < 0.1
    assert min(peaks) > 0.1


def test_another_instrument_can_take_the_melody():
    made_up = random_instrument(np.random.default_rng(3))
    assert np.abs(render(PIECE, 1.0) - render(PIECE, 1.0, instrument=made_up)).max() > 0.05
