"""Little synthesized songs with captions, lyrics and metadata that tell the truth about them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 44_100  # on purpose not the model's, so that every song is resampled
NOTES = {"C": 261.63, "D": 293.66, "E": 329.63, "F": 349.23, "G": 392.00, "A": 440.00}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus", "opus": "libopus", "m4a": "aac"}
CONTAINERS = {"m4a": "ipod", "opus": "ogg"}
SAME_EVERY_TIME = {"fflags": "+bitexact"}  # else an Ogg stream gets a random number

Sound = NDArray[np.floating]
Voice = Callable[[Sound, float], Sound]


def _mix(partials: Iterable[Sound]) -> Sound:
    return np.asarray(np.sum(list(partials), axis=0))


def _flute(t: Sound, hertz: float) -> Sound:
    vibrato = 0.4 * np.sin(2 * np.pi * 5 * t)  # added to the phase: two hertz up and down
    return np.asarray(np.sin(2 * np.pi * hertz * t + vibrato) * np.minimum(t / 0.06, 1))


def _pluck(t: Sound, hertz: float) -> Sound:
    return _mix(np.sin(2 * np.pi * hertz * n * t) * np.exp(-3 * n * t) / n for n in range(1, 7))


def _organ(t: Sound, hertz: float) -> Sound:
    return 0.6 * _mix(np.sin(2 * np.pi * hertz * n * t) / n for n in (1, 2, 3, 4, 6))


def _square(t: Sound, hertz: float) -> Sound:
    return np.asarray(0.5 * np.tanh(6 * np.sin(2 * np.pi * hertz * t)))


def _bell(t: Sound, hertz: float) -> Sound:
    return 0.6 * _mix(np.sin(2 * np.pi * hertz * ratio * t) * np.exp(-2.5 * ratio * t) for ratio in (1, 2.76, 5.4))


VOICES: dict[str, Voice] = {"flute": _flute, "plucked string": _pluck, "reed organ": _organ, "square lead": _square}
VOICES["bell"] = _bell


@dataclass(frozen=True)
class ToySong:
    """What a song is made of."""

    name: str
    suffix: str
    voice: str
    key: str
    mode: str
    bpm: int
    bars: int
    lyrics: str = ""
    language: str = ""

    @property
    def caption(self) -> str:
        """What can be heard."""
        return f"a short {self.voice} melody over soft chords"


SONGS = (
    ToySong("first light", "wav", "flute", "C", "major", 120, 2, "[Verse]\nSoft notes in the morning light", "en"),
    ToySong("river", "flac", "plucked string", "A", "minor", 96, 2),
    ToySong("old chapel", "mp3", "reed organ", "G", "major", 80, 2, "[Chorus]\nSing it low, sing it long", "en"),
    ToySong("arcade", "ogg", "square lead", "E", "minor", 140, 4),
    ToySong("schlaflied", "opus", "bell", "D", "minor", 100, 3, "[Strophe]\nGute Nacht, kleiner Stern", "de"),
    ToySong("night train", "m4a", "flute", "F", "major", 110, 3),
)


def render(song: ToySong, seed: int) -> Sound:
    """Synthesize a song: a melody of eighths over a chord a bar, (2, samples) float32 at 44.1 kHz."""
    random = np.random.default_rng(seed)
    eighth = 30 / song.bpm
    scale = [NOTES[song.key] * 2 ** (step / 12) for step in SCALES[song.mode]]
    length = int(song.bars * 8 * eighth * SAMPLE_RATE)
    melody, chords = np.zeros(length), np.zeros(length)
    degree = 0
    for index in range(song.bars * 8):
        degree = int(np.clip(degree + random.integers(-2, 3), 0, len(scale) - 1))
        _add(melody, VOICES[song.voice], scale[degree], index * eighth, eighth * 1.2)
    for bar in range(song.bars):
        root = (0, 3, 4, 0)[bar % 4]
        for third in (0, 2, 4):
            _add(chords, _organ, scale[(root + third) % len(scale)] / 2, bar * 8 * eighth, 8 * eighth)
    left, right = 0.5 * melody + 0.12 * chords, 0.4 * melody + 0.16 * chords
    sound = np.stack([left, right])
    return np.asarray(0.7 * sound / np.abs(sound).max(), dtype=np.float32)


def _add(track: Sound, voice: Voice, hertz: float, start: float, seconds: float) -> None:
    """Play one note into a track, faded at its end."""
    first = int(start * SAMPLE_RATE)
    t = np.arange(min(int(seconds * SAMPLE_RATE), len(track) - first)) / SAMPLE_RATE
    fade = np.minimum((t[-1] - t) / 0.05, 1) if len(t) else t
    track[first : first + len(t)] += voice(t, hertz) * fade


def write_songs(folder: Path, seed: int = 0) -> Path:
    """Write the songs, each in another format, and an ACE-Step dataset JSON that describes them; return the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, song in enumerate(SONGS):
        path = folder / f"{song.name}.{song.suffix}"
        write_audio(path, render(song, seed + number))
        samples.append(
            {
                "audio_path": path.name,
                "caption": song.caption,
                "lyrics": song.lyrics,
                "language": song.language,
                "is_instrumental": not song.lyrics,
                "bpm": song.bpm,
                "keyscale": f"{song.key} {song.mode}",
                "timesignature": "4",
                "genre": "toy",
            }
        )
    dataset = folder / "dataset.json"
    metadata = {"name": "toy songs", "custom_tag": "toybox", "tag_position": "prepend"}
    dataset.write_text(json.dumps({"metadata": metadata, "samples": samples}, indent=1), encoding="utf-8")
    return dataset


def write_audio(path: Path, sound: Sound, *, sample_rate: int = SAMPLE_RATE) -> None:
    """Write (channels, samples) float32 in the format that the file's ending names."""
    suffix = path.suffix.removeprefix(".").lower()
    layout = "mono" if len(sound) == 1 else "stereo"
    with av.open(str(path), "w", format=CONTAINERS.get(suffix, suffix), options=SAME_EVERY_TIME) as container:
        codec = CODECS[suffix]
        stream = container.add_stream(codec, rate=48_000 if codec == "libopus" else sample_rate)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
        frame.sample_rate = sample_rate
        frame.pts = 0
        resampler = av.AudioResampler(stream.format, layout, stream.rate)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
