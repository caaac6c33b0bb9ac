"""Composes little songs for which caption, lyrics and metadata tell the truth; a seed decides everything about one.

A song is a melody of one instrument, mostly over soft chords on every beat, in a stated key, tempo and time signature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from woodshed.toy.instruments import INSTRUMENTS, NEW, Instrument, Sound, instrument_of, partials

SECONDS = 5.12
SAMPLE_RATE = 48_000
ROOTS = {"C": 261.63, "D": 293.66, "E": 329.63, "F": 349.23, "G": 392.00, "A": 440.00}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11, 12), "minor": (0, 2, 3, 5, 7, 8, 10, 12)}
TEMPOS = (80, 100, 120, 150)
RHYTHMS = {
    4: ((1, 1, 1, 1, 1, 1, 1, 1), (2, 1, 1, 2, 1, 1), (2, 2, 2, 2), (1, 1, 2, 1, 1, 2)),
    3: ((1, 1, 1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 2), (2, 2, 1, 1)),
}
"""How a bar of so many beats is divided: note lengths in eighths."""
CHORDS = (0, 3, 4, 0)  # the scale's degree that each bar's chord stands on
BEATS = (0, 8, 4, 8, 9, 8, 4, 8)  # the degrees of a drum pattern: kick, hat, snare, hat, ...
FORMS = {"melody": "", "intro": "[Intro]\n\n[Verse]", "chorus": "[Verse]\n\n[Chorus]"}
"""What the lyrics say of a song's two halves: melody throughout; chords alone at first; an octave higher at last."""
FADE_SECONDS = 0.08


@dataclass(frozen=True)
class Piece:
    """All that makes a song what it is."""

    instrument: str
    key: str
    mode: str
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
        return "" if self.instrument == "drum kit" and not self.has_chords else f"{self.key} {self.mode}"

    @property
    def timesignature(self) -> str:
        """Beats in a bar."""
        return str(self.beats)


@dataclass(frozen=True)
class Note:
    """A tone in a piece: times in eighths, pitch in Hz."""

    start: int
    length: int
    hertz: float


def compose(seed: int, instruments: Sequence[str] = tuple(INSTRUMENTS)) -> Piece:
    """Draw a piece. The same seed gives the same piece, whatever was drawn before."""
    random = np.random.default_rng(seed)
    has_chords = bool(random.random() < 0.7)
    forms = ["melody"] * 7 + ["chorus"] * 2 + ["intro"] * (2 * has_chords)
    return Piece(
        instrument=str(random.choice(list(instruments))),
        key=str(random.choice(list(ROOTS))),
        mode=str(random.choice(list(SCALES))),
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
    scale, half = SCALES[piece.mode], eighths // 2
    start = degree = 0
    while start < eighths:
        for length in rhythm:
            if start >= half or piece.form != "intro":
                octave = 2.0 if piece.form == "chorus" and start >= half else 1.0
                step = BEATS[start % 8] if piece.instrument == "drum kit" else scale[degree]
                root = ROOTS["C" if piece.instrument == "drum kit" else piece.key]
                yield Note(start, length, root * octave * 2 ** (step / 12))
            start += length
            wander = int(np.clip(degree + random.integers(-2, 3), 0, len(scale) - 1))
            degree = (degree + 1) % len(scale) if piece.instrument == NEW else wander


def chords(piece: Piece, eighths: int) -> Iterator[Note]:
    """Write a triad for every beat, an octave below the melody."""
    scale = SCALES[piece.mode][:7]
    for start in range(0, eighths, 2):
        degree = CHORDS[start // (2 * piece.beats) % len(CHORDS)]
        for third in (0, 2, 4):
            step = scale[(degree + third) % len(scale)]
            yield Note(start, 2, ROOTS[piece.key] / 2 * 2 ** (step / 12))


def render(
    piece: Piece,
    seconds: float = SECONDS,
    sample_rate: int = SAMPLE_RATE,
    instrument: Instrument | None = None,
) -> Sound:
    """Play a piece: (2, samples) float32 in [-1, 1], faded at its end.

    Args:
        piece: what to play.
        seconds: how long; whatever bar it is in, the song ends there.
        sample_rate: in Hz.
        instrument: plays in place of the one that the piece names.
    """
    eighth = 30 / piece.bpm
    eighths = int(np.ceil(seconds / eighth))
    tracks = np.zeros((2, round(seconds * sample_rate)))
    player = instrument or instrument_of(piece.instrument)
    _play(tracks[0], player, melody(piece, eighths), eighth * sample_rate, sample_rate)
    if piece.has_chords:
        _play(tracks[1], SOFT_CHORDS, chords(piece, eighths), eighth * sample_rate, sample_rate)
    mixed = np.array([[0.42, 0.12], [0.34, 0.15]]) @ tracks
    ending = min(round(FADE_SECONDS * sample_rate), mixed.shape[1])
    mixed[:, mixed.shape[1] - ending :] *= np.linspace(1, 0, ending)
    return np.asarray(np.clip(mixed, -1, 1), dtype=np.float32)


def _pad(t: Sound, hertz: float) -> Sound:
    return np.asarray(partials(t, hertz, (1, 0.3, 0.1), fading=1.5) * np.minimum(t / 0.02, 1))


SOFT_CHORDS = Instrument(_pad, 1.0)


def _play(track: Sound, player: Instrument, notes: Iterator[Note], eighth: float, sample_rate: int) -> None:
    """Add notes to a track, each faded where it ends; an eighth has so many samples."""
    known: dict[tuple[int, float], Sound] = {}  # the same tone of the same length sounds the same
    for note in notes:
        tone = known.get((note.length, note.hertz))
        if tone is None:
            t = np.arange(round(note.length * eighth * player.ringing)) / sample_rate
            fade = np.minimum((len(t) / sample_rate - t) / 0.02, 1)
            tone = known[note.length, note.hertz] = player.voice(t, note.hertz) * fade
        first = round(note.start * eighth)
        part = track[first : first + len(tone)]
        part += tone[: len(part)]
