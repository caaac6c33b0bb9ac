"""The ears name what the generator's songs are, on songs that they have not learned from."""

import numpy as np
import pytest

from woodshed.toy import ears
from woodshed.toy.composer import render
from woodshed.toy.ears import Ear, Example, chroma, instrument_ear, key_ear, plain_songs, pulse, tempo_ear, timbre
from woodshed.toy.instruments import INSTRUMENTS, NEW

SECONDS = 5.12


@pytest.fixture(scope="module")
def heard():
    """Songs of every instrument, and their sound."""
    songs = plain_songs((*INSTRUMENTS, NEW), 1000, 40)
    return [(song, render(song)) for song in songs]


def share(judgements):
    judgements = list(judgements)
    assert len(judgements) >= 15
    return np.mean(judgements)


def test_the_instrument_is_named(heard):
    assert share(instrument_ear().name(sound) == song.instrument for song, sound in heard) >= 0.95


def test_the_new_instrument_is_told_from_the_old_ones(heard):
    is_new = [(instrument_ear().name(sound) == NEW, song.instrument == NEW) for song, sound in heard]
    assert share(found == true for found, true in is_new) == 1


@pytest.mark.slow
def test_tempo_and_key_are_named(heard):
    assert share(tempo_ear().name(sound) == str(song.bpm) for song, sound in heard) >= 0.9
    tonal = [(song, sound) for song, sound in heard if song.has_chords and song.instrument != "drum kit"]
    assert share(key_ear().name(sound) == song.keyscale for song, sound in tonal) >= 0.9


def test_noise_and_silence_have_features_too():
    noise = np.random.default_rng(0).normal(size=(2, 48_000)) * 0.1
    for features in (timbre, pulse, chroma):
        for sound in (noise, np.zeros((2, 48_000))):
            assert np.isfinite(features(sound)).all()


def test_loudness_does_not_matter(heard):
    _, sound = heard[0]
    for features in (timbre, pulse, chroma):
        np.testing.assert_allclose(features(sound), features(0.25 * sound), atol=1e-6)


def test_a_pulse_is_found_at_its_period():
    clicks = np.zeros((2, 48_000 * 4))
    for start in range(0, clicks.shape[1], 24_000):
        clicks[:, start : start + 200] = 0.5
    lags = range(ears.LAGS.start, ears.LAGS.stop)
    assert lags[int(pulse(clicks).argmax())] == pytest.approx(50, abs=1)  # half a second in frames of 10 ms


def test_a_tone_falls_into_its_pitch_class():
    t = np.arange(48_000) / 48_000
    for step, hertz in ((0, 261.63), (9, 440.0), (9, 220.0)):
        assert chroma(np.tile(np.sin(2 * np.pi * hertz * t), (2, 1))).argmax() == step


class TestAnEar:
    @pytest.fixture
    def ear(self):
        """One that hears two numbers: large and wild the first, small and steady the second."""
        random = np.random.default_rng(0)
        places = {("a", "near"): (0.0, 0.0), ("a", "far"): (0.0, 9.0), ("b", ""): (0.0, 3.0)}
        examples = [
            Example(label, variant, np.array([x + 100 * random.normal(), y + 0.1 * random.normal()]))
            for (label, variant), (x, y) in places.items()
            for _ in range(30)
        ]
        return Ear(lambda sound: sound, examples)

    @pytest.mark.parametrize(("place", "label"), [((50.0, 0.2), "a"), ((-50.0, 8.5), "a"), ((90.0, 3.3), "b")])
    def test_measures_in_units_of_the_spread_and_knows_variants(self, ear, place, label):
        assert ear.name(np.array(place)) == label

    def test_gives_a_distance_for_each_label(self, ear):
        distances = ear.distances(np.array([0.0, 3.0]))
        assert set(distances) == {"a", "b"}
        assert distances["b"] < distances["a"]


def test_plain_songs_take_the_instruments_in_turn_and_have_no_sections():
    songs = list(plain_songs(("flute", "bell"), 0, 6))
    assert [song.instrument for song in songs] == ["flute", "bell"] * 3
    assert not any(song.lyrics for song in songs)
