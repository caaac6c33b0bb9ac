"""The instruments of the little songs: each a function from time and pitch to sound, each with a timbre of its own.

Letters: t are seconds since a note began, (samples,).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.floating]
Voice = Callable[[Sound, float], Sound]

STROKES_PER_SECOND = 9.0  # of the mandolin's tremolo
NOISE_LENGTH = 1 << 16


def partials(t: Sound, hertz: float, amplitudes: Sequence[float], fading: float = 0.0) -> Sound:
    """Sum the harmonics n = 1, 2, ... of a tone, the n-th with amplitudes[n - 1] and fading n times as fast.

    Args:
        t: seconds.
        hertz: of the first harmonic.
        amplitudes: of the harmonics.
        fading: of the first harmonic, in 1 / seconds.
    """
    phase = 2 * np.pi * hertz * t
    first = (np.cos(phase) + 1j * np.sin(phase)) * np.exp(-fading * t)  # the n-th harmonic is its n-th power
    total = np.zeros_like(first)
    for amplitude in reversed(amplitudes):
        total = (total + amplitude) * first
    return np.asarray(total.imag)


def _attack(t: Sound, seconds: float) -> Sound:
    return np.asarray(np.minimum(t / seconds, 1.0))


def _flute(t: Sound, hertz: float) -> Sound:
    vibrato = 0.3 * np.sin(2 * np.pi * 5 * t)  # added to the phase
    return np.asarray(0.75 * np.sin(2 * np.pi * hertz * t + vibrato) * _attack(t, 0.06))


def _plucked_string(t: Sound, hertz: float) -> Sound:
    return 0.9 * partials(t, hertz, [1 / n for n in range(1, 9)], fading=3.0) * _attack(t, 0.002)


def _reed_organ(t: Sound, hertz: float) -> Sound:
    return 0.4 * partials(t, hertz, (1, 0.9, 0.7, 0.6, 0.0, 0.5)) * _attack(t, 0.03)


def _square_lead(t: Sound, hertz: float) -> Sound:
    odd = [1 / n if n % 2 else 0.0 for n in range(1, 18)]
    return 0.55 * partials(t, hertz, odd) * _attack(t, 0.005)


def _bell(t: Sound, hertz: float) -> Sound:
    strengths = {1.0: 0.8, 2.76: 0.9, 5.4: 0.5}
    tones = [a * np.sin(2 * np.pi * hertz * r * t) * np.exp(-1.6 * r * t) for r, a in strengths.items()]
    return np.asarray(0.7 * np.sum(tones, axis=0) * _attack(t, 0.002))


def _bass(t: Sound, hertz: float) -> Sound:
    return 0.8 * partials(t, hertz / 4, (1, 0.6, 0.35, 0.15), fading=1.2) * _attack(t, 0.01)


def _drum_kit(t: Sound, hertz: float) -> Sound:
    """Hit a drum: the lowest third of an octave above middle C is the kick, the highest the hat, the rest the snare."""
    height = 12 * np.log2(hertz / MIDDLE_C)
    noise = _NOISE[: len(t)]
    if height < 4:
        return np.asarray(1.3 * np.sin(2 * np.pi * (50 * t + 3.5 * (1 - np.exp(-30 * t)))) * np.exp(-9 * t))
    if height < 8:
        return np.asarray(0.55 * noise * np.exp(-16 * t) + 0.5 * np.sin(2 * np.pi * 185 * t) * np.exp(-20 * t))
    return 0.45 * np.diff(noise, prepend=0.0) * np.exp(-45 * t)


def _mandolin(t: Sound, hertz: float) -> Sound:
    """Strike the same string again and again; the strings in the middle of its range are the strongest."""
    tone = partials(t, hertz, (0.35, 0.6, 1.0, 0.9, 0.75, 0.5, 0.4, 0.25))
    return np.asarray(0.3 * tone * np.exp(-13 * (t % (1 / STROKES_PER_SECOND))) * _attack(t, 0.002))


MIDDLE_C = 261.63
_NOISE = np.random.default_rng(1).uniform(-1, 1, NOISE_LENGTH)


@dataclass(frozen=True)
class Instrument:
    """What plays a melody."""

    voice: Voice
    ringing: float  # a note sounds so many times as long as it is written


INSTRUMENTS = {
    "flute": Instrument(_flute, 1.0),
    "plucked string": Instrument(_plucked_string, 1.5),
    "reed organ": Instrument(_reed_organ, 1.0),
    "square lead": Instrument(_square_lead, 0.9),
    "bell": Instrument(_bell, 2.0),
    "bass": Instrument(_bass, 1.1),
    "drum kit": Instrument(_drum_kit, 1.5),
}
"""What the miniature model was trained on."""

NEW = "tremolo mandolin"
NEWCOMER = Instrument(_mandolin, 1.0)
"""What it never heard, so that it can be taught."""


def instrument_of(name: str) -> Instrument:
    """Return an instrument by the name that captions give it."""
    return NEWCOMER if name == NEW else INSTRUMENTS[name]


def random_instrument(random: np.random.Generator) -> Instrument:
    """Make up an instrument: harmonics, fading, attack and tremolo by chance. What it plays no caption names."""
    count = random.integers(1, 13)
    amplitudes = random.uniform(0, 1, count) / np.arange(1, count + 1) ** random.uniform(0, 1.2)
    fading, attack, ringing = random.choice([0.0, 1.5, 4.0]), random.uniform(0.002, 0.08), random.uniform(0.8, 1.8)
    speed, depth = random.uniform(3, 12), random.choice([0.0, 0.0, random.uniform(0.2, 0.9)])
    loudness = 0.9 / max(float(np.sqrt(np.sum(amplitudes**2))), 0.1)

    def voice(t: Sound, hertz: float) -> Sound:
        tremolo = 1 - depth * (t * speed % 1)
        return np.asarray(loudness * partials(t, hertz, amplitudes.tolist(), fading) * tremolo * _attack(t, attack))

    return Instrument(voice, ringing)
