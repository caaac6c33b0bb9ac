"""What captions, lyrics and metadata say of the little songs is true, and a seed decides everything."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from woodshed.toy.composer import CHORDS, KEYS, SAMPLE_RATE, SECONDS, Piece, chords, compose, melody, render, strengths
from woodshed.toy.instruments import FREQUENCIES, INSTRUMENTS, NEW

PIECE = Piece("flute", "D major", 120, 4, True, "melody", 5)
SEEDS = range(40)
EVERY = (*INSTRUMENTS, NEW)


def change(**fields):
    return dataclasses.replace(PIECE, **fields)


def loudness_at(sound, hertz):
    """The strength of a sine in a sound, in the units of the sound."""
    t = np.arange(sound.shape[1]) / SAMPLE_RATE
    return 2 * np.abs((sound * np.exp(-2j * np.pi * hertz * t)).mean(axis=1))


def test_the_same_seed_gives_the_same_song_and_another_one_another():
    pieces = [compose(seed) for seed in SEEDS]
    assert pieces == [compose(seed) for seed in SEEDS]
    assert len(set(pieces)) == len(pieces)
    np.testing.assert_array_equal(render(pieces[0]), render(compose(0)))
    assert np.abs(render(PIECE) - render(change(seed=6))).max() > 0.1


def test_chance_uses_all_there_is():
    pieces = [compose(seed) for seed in range(400)]
    for field, count in [("instrument", 7), ("key", 3), ("bpm", 4), ("beats", 2), ("form", 3)]:
        seen = Counter(getattr(piece, field) for piece in pieces)
        assert len(seen) == count
        assert min(seen.values()) > 20
    assert NEW not in {piece.instrument for piece in pieces}
    assert 0.6 < np.mean([piece.has_chords for piece in pieces]) < 0.8


def test_only_songs_with_chords_begin_with_chords_alone():
    assert all(piece.has_chords for piece in map(compose, range(400)) if piece.form == "intro")


@pytest.mark.parametrize("name", EVERY)
def test_every_wording_of_a_caption_names_the_instrument_and_what_else_is_heard(name):
    for has_chords in (True, False):
        captions = {change(instrument=name, has_chords=has_chords, seed=seed).caption for seed in range(4)}
        assert len(captions) == 4
        for caption in captions:
            assert name in caption
            assert ("chords" in caption) is has_chords


@pytest.mark.parametrize("name", EVERY)
def test_every_partial_of_every_song_is_one_of_the_frequencies(name):
    for key, seed in itertools.product(KEYS, range(5)):
        assert strengths(change(instrument=name, key=key, seed=seed), 4.0, 250).keys() <= set(FREQUENCIES)


@pytest.mark.parametrize("key", KEYS)
def test_melody_and_chords_keep_to_the_key(key):
    for seed in SEEDS:
        piece = change(key=key, seed=seed)
        assert {note.hertz for note in melody(piece, 40)} <= set(KEYS[key])
        assert {note.hertz for note in chords(piece, 40)} <= {hertz for notes in KEYS.values() for hertz in notes}
        assert set(CHORDS[key][0]) <= set(KEYS[key])


@pytest.mark.parametrize("key", KEYS)
def test_the_root_is_where_melody_and_first_chord_begin(key):
    root = KEYS[key][0]
    assert next(melody(change(key=key), 8)).hertz == root
    assert root in CHORDS[key][0]


def test_triads_are_in_tune():
    """Major is 4:5:6, minor 10:12:15, or their octaves."""
    for key, shape in [("G major", (4, 5, 6)), ("D major", (3, 4, 5)), ("B minor", (10, 12, 15))]:
        unit = CHORDS[key][0][0] / shape[0]
        assert [hertz / unit for hertz in CHORDS[key][0]] == list(shape)


def test_the_melody_fills_its_bars():
    for seed in SEEDS:
        notes = list(melody(change(seed=seed), 24))
        starts = list(itertools.accumulate((note.length for note in notes[:-1]), initial=0))
        assert [note.start for note in notes] == starts
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
        found.setdefault(note.start, []).append(note.hertz)
    assert sorted(found) == list(range(0, 8 * beats, 2))
    for start, triad in found.items():
        assert tuple(triad) == CHORDS["D major"][start // (2 * beats) % 2]


def test_the_new_instrument_plays_rising_runs():
    tones = [note.hertz for note in melody(change(instrument=NEW), 32)]
    assert sum(high > low for low, high in itertools.pairwise(tones)) >= 0.75 * (len(tones) - 1)
    others = [note.hertz for note in melody(PIECE, 32)]
    assert sum(high > low for low, high in itertools.pairwise(others)) < 0.7 * (len(others) - 1)


def test_lyrics_mark_the_sections_that_are_heard():
    plain, intro, chorus = (change(form=form) for form in ("melody", "intro", "chorus"))
    assert (plain.lyrics, intro.lyrics, chorus.lyrics) == ("", "[Intro]\n\n[Verse]", "[Verse]\n\n[Chorus]")
    assert min(note.start for note in melody(intro, 24)) >= 12
    pairs = zip(melody(plain, 24), melody(chorus, 24), strict=True)
    assert all(loud.loudness / soft.loudness == (2 if soft.start >= 12 else 1) for soft, loud in pairs)


def test_drums_alone_have_no_key():
    assert change(instrument="drum kit").keyscale == "D major"
    assert change(instrument="drum kit", has_chords=False).keyscale == ""


@pytest.mark.parametrize("bpm", [80, 150])
def test_notes_come_at_the_stated_tempo(bpm):
    """Drums on every eighth: the kick at the beginning of a bar, as often as bars go by."""
    rate = 1000
    kick = strengths(change(instrument="drum kit", bpm=bpm, seed=2), SECONDS, rate)[50]
    beginnings = [start / rate for start in np.flatnonzero((kick[1:] > 0) & (kick[:-1] == 0))]
    assert len(beginnings) >= 2
    for begun in beginnings:
        eighths = begun / (30 / bpm)
        assert eighths == pytest.approx(round(eighths), abs=0.02)


def test_a_song_is_stereo_of_the_asked_length_and_ends_in_silence():
    for seconds, rate in ((SECONDS, SAMPLE_RATE), (3.0, 44_100)):
        sound = render(PIECE, seconds, rate)
        assert sound.shape == (2, round(seconds * rate))
        assert sound.dtype == np.float32
        assert np.abs(sound[:, -1]).max() < 1e-3
    assert np.abs(sound[0] - sound[1]).max() > 0.01


def test_low_tones_lean_to_the_right_and_high_ones_to_the_left():
    kit = render(change(instrument="drum kit", has_chords=False))
    (left, right), (hat_left, hat_right) = loudness_at(kit, 50), loudness_at(kit, 6000)
    assert right > 1.1 * left
    assert hat_left > 1.1 * hat_right


def test_the_sound_holds_the_strengths_and_nothing_else():
    sound, tracks = render(PIECE), strengths(PIECE)
    inside = [loudness_at(sound, hertz).max() for hertz in tracks]
    outside = [loudness_at(sound, hertz).max() for hertz in FREQUENCIES if hertz not in tracks]
    assert min(inside) > 5 * max(outside)


def test_songs_hardly_ever_reach_the_limit():
    peaks = np.array([np.abs(render(compose(seed, EVERY))).max() for seed in SEEDS])
    assert np.mean(peaks == 1) < 0.1
    assert peaks.min() > 0.1
