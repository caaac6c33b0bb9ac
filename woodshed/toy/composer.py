"""Composes little songs for which caption, lyrics and metadata tell the truth; a seed decides everything about one.

A song is a melody of one instrument, mostly over soft chords on every beat, in a stated key, tempo and time signature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from woodshed.toy.instruments import FRAME_RATE, FREQUENCIES, INSTRUMENTS, NEW, Instrument, Sound, instrument_of

SECONDS = 5.12
SAMPLE_RATE = 48_000
KEYS = {
    "G major": (200, 225, 250, 300, 375, 400, 450, 500),
    "D major": (300, 375, 450, 500, 225, 250),
    "B minor": (250, 300, 375, 450, 500),
}
"""The notes of each key in Hz, its root first; those below the root come last."""
CHORDS = {
    "G major": ((200, 250, 300), (225, 300, 375)),
    "D major": ((225, 300, 375), (200, 250, 300)),
    "B minor": ((250, 300, 375), (200, 250, 300)),
}
"""The triads that take turns, bar by bar."""
TEMPOS = (80, 100, 120, 150)
RHYTHMS = {
    4: ((1, 1, 1, 1, 1, 1, 1, 1), (2, 1, 1, 2, 1, 1), (2, 2, 2, 2), (1, 1, 2, 1, 1, 2)),
    3: ((1, 1, 1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 2), (2, 2, 1, 1)),
}
"""How a bar of so many beats is divided: note lengths in eighths."""
BEATS = (200, 450, 300, 450, 225, 450, 300, 450)
"""The notes of a drum pattern: kick, hat, snare, hat, ..."""
BASS_NOTES = (200, 250, 300)
FORMS = {"melody": "", "intro": "[Intro]\n\n[Verse]", "chorus": "[Verse]\n\n[Chorus]"}
"""What the lyrics say of a song's two halves: melody throughout; chords alone at first; twice as loud at last."""
FADE_SECONDS = 0.08  # of a song
RELEASE_SECONDS = 0.04  # of a note
LOUDNESS = 0.4


@dataclass(frozen=True)
class Piece:
    """All that makes a song what it is."""

    instrument: str
    key: str
    bpm: int
    beats: int  # in a bar
    has_chords: bool
    form: str
    seed: int  # of the melody

    @property
    def caption(self) -> str:
        """What can be heard, in the words that belong to the piece's seed."""
        phrase = "rising runs" if self.instrument == NEW else "a melody"
        over = ("over soft chords", "with soft chords") if self.has_chords else ("alone", "and nothing else")
        wordings = (
            f"a {self.instrument} playing {phrase} {over[0]}",
            f"a little song for {self.instrument}, {phrase} {over[0]}",
            f"{phrase} of a {self.instrument} {over[1]}",
            f"{self.instrument}, {over[1]}",
        )
        return wordings[self.seed % len(wordings)]

    @property
    def lyrics(self) -> str:
        """Markers of its sections; none in a song that is a melody throughout."""
        return FORMS[self.form]

    @property
    def keyscale(self) -> str:
        """Key and mode; empty for drums alone, which have none."""
        return "" if self.instrument == "drum kit" and not self.has_chords else self.key

    @property
    def timesignature(self) -> str:
        """Beats in a bar."""
        return str(self.beats)


@dataclass(frozen=True)
class Note:
    """A tone in a piece: times in eighths, pitch in Hz, loudness as a factor."""

    start: int
    length: int
    hertz: int
    loudness: float = 1.0


def compose(seed: int, instruments: Sequence[str] = tuple(INSTRUMENTS)) -> Piece:
    """Draw a piece. The same seed gives the same piece, whatever was drawn before."""
    random = np.random.default_rng(seed)
    has_chords = bool(random.random() < 0.7)
    forms = ["melody"] * 7 + ["chorus"] * 2 + ["intro"] * (2 * has_chords)
    return Piece(
        instrument=str(random.choice(list(instruments))),
        key=str(random.choice(list(KEYS))),
        bpm=int(random.choice(TEMPOS)),
        beats=int(random.choice([4, 4, 3])),
        has_chords=has_chords,
        form=str(random.choice(forms)),
        seed=seed,
    )


def melody(piece: Piece, eighths: int) -> Iterator[Note]:
    """Write the notes of a piece's instrument: one rhythm in every bar, steps that wander, or rise and begin anew."""
    random = np.random.default_rng((piece.seed, 1))
    rhythm = RHYTHMS[piece.beats][random.integers(len(RHYTHMS[piece.beats]))]
    root, *_ = notes = [hertz for hertz in KEYS[piece.key] if piece.instrument != "bass" or hertz in BASS_NOTES]
    notes, half = sorted(notes), eighths // 2
    degree, start = notes.index(root), 0
    while start < eighths:
        for length in rhythm:
            if start >= half or piece.form != "intro":
                hertz = BEATS[start % 8] if piece.instrument == "drum kit" else notes[degree]
                yield Note(start, length, hertz, 2.0 if piece.form == "chorus" and start >= half else 1.0)
            start += length
            wander = int(np.clip(degree + random.integers(-2, 3), 0, len(notes) - 1))
            degree = (degree + 1) % len(notes) if piece.instrument == NEW else wander


def chords(piece: Piece, eighths: int) -> Iterator[Note]:
    """Write a triad for every beat."""
    for start in range(0, eighths, 2):
        triads = CHORDS[piece.key]
        for hertz in triads[start // (2 * piece.beats) % len(triads)]:
            yield Note(start, 2, hertz)


def strengths(piece: Piece, seconds: float = SECONDS, sample_rate: int = SAMPLE_RATE) -> dict[int, Sound]:
    """Return how strong each frequency of a piece is at each moment: (samples,) by Hz."""
    eighth = 30 / piece.bpm
    eighths = int(np.ceil(seconds / eighth))
    tracks: dict[int, Sound] = {}
    total = round(seconds * sample_rate)
    _play(tracks, total, instrument_of(piece.instrument), melody(piece, eighths), eighth, sample_rate)
    if piece.has_chords:
        _play(tracks, total, SOFT_CHORDS, chords(piece, eighths), eighth, sample_rate)
    return tracks


def render(piece: Piece, seconds: float = SECONDS, sample_rate: int = SAMPLE_RATE) -> Sound:
    """Play a piece: (2, samples) float32 in [-1, 1], faded at its end; low tones lean to the right.

    Args:
        piece: what to play.
        seconds: how long; whatever bar it is in, the song ends there.
        sample_rate: in Hz, a multiple of the rate of latent frames.
    """
    tracks = strengths(piece, seconds, sample_rate)
    total = round(seconds * sample_rate)
    period = np.arange(sample_rate // FRAME_RATE) / sample_rate  # every frequency is whole in it
    mixed = np.zeros((2, total))
    for hertz, strength in tracks.items():
        wave = strength * np.tile(np.sin(2 * np.pi * hertz * period), -(-total // len(period)))[:total]
        for channel, side in zip(mixed, sides(hertz), strict=True):
            channel += side * wave
    mixed *= np.minimum((total - 1 - np.arange(total)) / (FADE_SECONDS * sample_rate), 1)
    return np.asarray(np.clip(LOUDNESS * mixed, -1, 1), dtype=np.float32)


def sides(hertz: int) -> tuple[float, float]:
    """Return how much of a frequency is heard on the left and on the right; their squares sum to one."""
    angle = np.pi / 4 * (1 + 0.4 * (FREQUENCIES.index(hertz) / (len(FREQUENCIES) - 1) - 0.5))
    return float(np.sin(angle)), float(np.cos(angle))


SOFT_CHORDS = Instrument({1: 0.16}, fading=2.0)


def _play(
    tracks: dict[int, Sound], total: int, player: Instrument, notes: Iterator[Note], eighth: float, sample_rate: int
) -> None:
    """Add notes to the strengths of their partials, each faded where it ends; an eighth lasts so many seconds."""
    shapes: dict[tuple[int, float], tuple[Sound, Sound]] = {}
    for note in notes:
        first = round(note.start * eighth * sample_rate)
        length = round(note.length * eighth * player.ringing * sample_rate)
        for partial in player.partials(note.hertz):
            if partial.hertz not in tracks:
                tracks[partial.hertz] = np.zeros(total)
            shape = length, partial.fading
            if shape not in shapes:
                shapes[shape] = _shape(player, *shape, sample_rate)
            fade, envelope = shapes[shape]
            part = tracks[partial.hertz][first : first + length]
            part += (note.loudness * partial.strength * fade * envelope)[: len(part)]


def _shape(player: Instrument, length: int, fading: float, sample_rate: int) -> tuple[Sound, Sound]:
    """Return for each sample of a note how it fades where it ends, and how loud a partial is."""
    t = np.arange(length) / sample_rate
    return np.minimum((length / sample_rate - t) / RELEASE_SECONDS, 1), player.envelope(t, fading)
