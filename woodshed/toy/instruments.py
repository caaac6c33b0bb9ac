"""The instruments of the little songs: which partials a note has, how strong they are, and how they swell and fade.

All partials of all instruments are among 32 frequencies, each a multiple of 25 Hz, the rate of the models' latent
frames. A sine of such a frequency looks the same in every frame, so that one number a frame, its strength, says all
about it: a world that is easy to hear and easy to learn. It is tuned by whole numbers instead of equal steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[Any]

FRAME_RATE = 25
FREQUENCIES = (
    *(50, 100, 125, 150, 200, 225, 250, 300, 375, 400, 450, 500, 600, 675, 750, 800),
    *(900, 1000, 1125, 1200, 1250, 1350, 1500, 1600, 1800, 1875, 2000, 2250, 2500, 4000, 5000, 6000),
)
"""In Hz: the notes from G3 to B4, their harmonics up to the fifth, the bass below and the drums around them."""
KICK, SNARE, HAT = 50, (675, 1125, 1875, 2250, 2500), (4000, 5000, 6000)


@dataclass(frozen=True)
class Partial:
    """A sine within a note."""

    hertz: int
    strength: float
    fading: float  # in 1 / seconds


@dataclass(frozen=True)
class Instrument:
    """What plays a melody."""

    harmonics: Mapping[int, float]  # number -> strength
    fading: float = 0.0  # of the first harmonic, in 1 / seconds
    fading_more: float = 0.0  # of each harmonic above it
    attack: float = 0.04  # seconds
    ringing: float = 1.0  # a note sounds so many times as long as it is written
    strokes: float = 0.0  # a second, of a tremolo; 0 is none
    octave: float = 1.0  # what is written is played so many times as high
    is_drums: bool = field(default=False)

    def partials(self, hertz: int) -> list[Partial]:
        """Return the sines of a note. Drums take the low notes for the kick, the high ones for the hat."""
        if self.is_drums:
            return _drum(hertz)
        return [
            Partial(round(self.octave * hertz * number), strength, self.fading + self.fading_more * (number - 1))
            for number, strength in self.harmonics.items()
        ]

    def envelope(self, t: Sound, fading: float) -> Sound:
        """Return how loud a partial is, seconds after its note began."""
        if self.strokes:
            t = t % (1 / self.strokes)
        return np.asarray(np.minimum(t / self.attack, 1.0) * np.exp(-fading * t))


def _drum(hertz: int) -> list[Partial]:
    if hertz < 250:
        return [Partial(KICK, 1.6, 7.0)]
    if hertz < 400:
        return [Partial(tone, 0.35, 12.0) for tone in SNARE]
    return [Partial(tone, 0.3, 20.0) for tone in HAT]


INSTRUMENTS = {
    "flute": Instrument({1: 1.0, 2: 0.12}),
    "plucked string": Instrument({1: 0.7, 2: 0.6, 3: 0.45, 4: 0.35, 5: 0.3}, fading=4.0, fading_more=1.5, ringing=1.5),
    "reed organ": Instrument({1: 0.45, 2: 0.5, 3: 0.2, 4: 0.45}),
    "square lead": Instrument({1: 0.7, 3: 0.45, 5: 0.35}, ringing=0.9),
    "bell": Instrument({1: 0.5, 4: 0.8}, fading=1.5, fading_more=0.3, ringing=2.0),
    "bass": Instrument({1: 1.1, 2: 0.5}, fading=1.5, octave=0.5),
    "drum kit": Instrument({}, is_drums=True),
}
"""What the miniature model was trained on."""

NEW = "tremolo mandolin"
NEWCOMER = Instrument({2: 0.5, 3: 0.7, 5: 0.8}, fading=9.0, strokes=6.25)
"""What it never heard, so that it can be taught."""


def instrument_of(name: str) -> Instrument:
    """Return an instrument by the name that captions give it."""
    return NEWCOMER if name == NEW else INSTRUMENTS[name]
