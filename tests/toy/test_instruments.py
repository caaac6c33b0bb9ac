"""Every instrument plays the note it is given, in a timbre that is its own."""

import itertools

import numpy as np
import pytest

from woodshed.toy.instruments import INSTRUMENTS, NEW, STROKES_PER_SECOND, instrument_of, partials, random_instrument

RATE = 48_000
T = np.arange(RATE) / RATE
EVERY = (*INSTRUMENTS, NEW)
PITCHED = [name for name in EVERY if name != "drum kit"]


def strength(sound, hertz):
    """The magnitude of (1 second,) of sound within 3 Hz of a frequency."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return spectrum[round(hertz) - 3 : round(hertz) + 4].max()


def loudness(sound, first, last):
    return np.sqrt(np.mean(sound[round(first * RATE) : round(last * RATE)] ** 2))


def test_partials_are_the_sines_that_they_are_said_to_be():
    amplitudes, fading = (0.5, 0.0, 0.25), 2.0
    one_by_one = sum(a * np.sin(2 * np.pi * 440 * n * T) * np.exp(-fading * n * T) for n, a in enumerate(amplitudes, 1))
    np.testing.assert_allclose(partials(T, 440.0, amplitudes, fading), one_by_one, atol=1e-9)


@pytest.mark.parametrize("name", PITCHED)
def test_a_pitched_instrument_plays_its_note_and_not_the_one_beside_it(name):
    low = 4 if name == "bass" else 1  # it plays two octaves below what is written
    for hertz in (262.0, 524.0):
        sound = instrument_of(name).voice(T, low * hertz)
        own, beside = (sum(strength(sound, factor * hertz * n) for n in range(1, 5)) for factor in (1, 1.0595))
        assert own > 5 * beside


@pytest.mark.parametrize("name", EVERY)
def test_sounds_begin_from_silence_and_stay_within_bounds(name):
    sound = instrument_of(name).voice(T, 330.0)
    assert abs(sound[0]) < 0.05
    assert 0.1 < np.abs(sound).max() < 2
    assert np.isfinite(sound).all()


@pytest.mark.parametrize("name", ["flute", "reed organ", "square lead"])
def test_what_is_blown_sustains(name):
    sound = instrument_of(name).voice(T, 330.0)
    assert loudness(sound, 0.8, 1.0) == pytest.approx(loudness(sound, 0.1, 0.3), rel=0.05)


@pytest.mark.parametrize("name", ["plucked string", "bell", "bass", "drum kit"])
def test_what_is_struck_fades(name):
    sound = instrument_of(name).voice(T, 330.0)
    assert loudness(sound, 0.8, 1.0) < 0.5 * loudness(sound, 0.0, 0.2)


def test_the_square_lead_has_odd_harmonics_only_and_the_bell_none():
    square, bell = (instrument_of(name).voice(T, 300.0) for name in ("square lead", "bell"))
    assert strength(square, 900) > 50 * strength(square, 600)
    assert strength(bell, 300 * 2.76) > 10 * max(strength(bell, 600), strength(bell, 900))


def test_the_mandolin_strikes_its_string_again_and_again():
    sound = np.abs(instrument_of(NEW).voice(T, 440.0))
    stroke = round(RATE / STROKES_PER_SECOND)
    for number in range(1, int(STROKES_PER_SECOND)):
        at = number * stroke
        assert sound[at : at + 2000].max() > 2 * sound[at - 2000 : at - 200].max()


def test_three_drums_share_the_octave():
    hits = [instrument_of("drum kit").voice(T, 261.63 * 2 ** (step / 12)) for step in (0, 5, 9)]
    deep = [strength(hit, 60) / np.abs(hit).sum() for hit in hits]
    assert deep[0] > 10 * max(deep[1:])
    assert loudness(hits[1], 0.03, 0.1) > 2 * loudness(hits[2], 0.03, 0.1)


def test_no_two_instruments_have_the_same_spectrum():
    spectra = {name: np.abs(np.fft.rfft(instrument_of(name).voice(T, 440.0))) for name in EVERY}
    for one, other in itertools.combinations(EVERY, 2):
        assert np.corrcoef(spectra[one], spectra[other])[0, 1] < 0.99, (one, other)


def test_made_up_instruments_differ_and_can_be_made_again():
    first, again, other = (random_instrument(np.random.default_rng(seed)).voice(T, 440.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    for seed in range(20):
        assert 0.05 < np.abs(random_instrument(np.random.default_rng(seed)).voice(T, 440.0)).max() < 3
