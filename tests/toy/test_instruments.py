"""Every instrument plays its note from the same few frequencies, in a timbre that is its own."""

import itertools

import numpy as np
import pytest

from woodshed.toy.composer import KEYS
from woodshed.toy.instruments import FRAME_RATE, FREQUENCIES, INSTRUMENTS, NEW, NEWCOMER, instrument_of

T = np.arange(48_000) / 48_000
EVERY = (*INSTRUMENTS, NEW)
NOTES = sorted({hertz for notes in KEYS.values() for hertz in notes})


def test_frequencies_fit_the_frames():
    assert len(set(FREQUENCIES)) == len(FREQUENCIES) == 32
    assert list(FREQUENCIES) == sorted(FREQUENCIES)
    assert not [hertz for hertz in FREQUENCIES if hertz % FRAME_RATE]


@pytest.mark.parametrize("name", [name for name in EVERY if name != "bass"])
@pytest.mark.parametrize("hertz", NOTES)
def test_every_note_stays_within_the_frequencies(name, hertz):
    assert {partial.hertz for partial in instrument_of(name).partials(hertz)} <= set(FREQUENCIES)


def test_pitched_instruments_play_harmonics_of_the_note():
    for name in EVERY:
        player = instrument_of(name)
        if not player.is_drums:
            heard = [partial.hertz / (300 * player.octave) for partial in player.partials(300)]
            assert heard == list(player.harmonics)


def test_the_bass_plays_an_octave_lower():
    assert [partial.hertz for partial in INSTRUMENTS["bass"].partials(300)] == [150, 300]


@pytest.mark.parametrize("name", EVERY)
def test_sounds_begin_from_silence_and_stay_within_bounds(name):
    player = instrument_of(name)
    for partial in player.partials(300):
        envelope = player.envelope(T, partial.fading)
        assert envelope[0] == 0
        assert 0.4 < envelope.max() <= 1
        assert envelope.min() >= 0


SUSTAINED = ("flute", "reed organ", "square lead")


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_what_is_blown_sustains_and_what_is_struck_fades(name):
    player = instrument_of(name)
    envelope = player.envelope(T, player.partials(300)[0].fading)
    assert bool(envelope[-1] < 0.5 * envelope.max()) is (name not in SUSTAINED)


def test_higher_harmonics_of_a_string_fade_faster():
    fadings = [partial.fading for partial in INSTRUMENTS["plucked string"].partials(300)]
    assert fadings == sorted(set(fadings))


def test_the_mandolin_strikes_its_string_again_and_again():
    envelope = NEWCOMER.envelope(T, NEWCOMER.fading)
    strokes = np.flatnonzero((envelope[1:] < 0.05) & (np.diff(envelope) > 0) & (envelope[:-1] <= envelope[1:]))
    beginnings = 1 + np.count_nonzero(np.diff(strokes) > 100)
    assert beginnings == int(np.ceil(NEWCOMER.strokes))


def test_low_notes_are_the_kick_high_ones_the_hat_and_the_rest_the_snare():
    drums = [tuple(partial.hertz for partial in INSTRUMENTS["drum kit"].partials(hertz)) for hertz in (200, 300, 450)]
    assert len(set(drums)) == 3
    assert max(drums[0]) < min(drums[1]) < max(drums[1]) < min(drums[2])


def test_no_two_instruments_have_the_same_spectrum():
    """Of the same note; the tremolo of the new one is not even needed to tell it."""
    spectra = {}
    for name in EVERY:
        spectra[name] = np.zeros(len(FREQUENCIES))
        for partial in instrument_of(name).partials(300):
            spectra[name][FREQUENCIES.index(partial.hertz)] = partial.strength
    for one, other in itertools.combinations(EVERY, 2):
        likeness = spectra[one] @ spectra[other] / np.linalg.norm(spectra[one]) / np.linalg.norm(spectra[other])
        assert likeness < 0.95, (one, other)
