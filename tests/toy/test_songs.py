"""The toy songs are what their captions say, in every format, every time."""

import math

import numpy as np
import pytest

from woodshed.data import audio
from woodshed.data.audio import AUDIO_SUFFIXES
from woodshed.data.catalogue import find_songs
from woodshed.toy.songs import NOTES, SAMPLE_RATE, SCALES, SONGS, VOICES, render, write_audio, write_songs

EVERY_SONG = pytest.mark.parametrize("song", SONGS, ids=lambda song: song.name)
SEMITONE = 2 ** (1 / 12)


def loudest(sound, rate, lowest, highest):
    """The loudest frequency of (samples,) between two others, in Hz, to a fraction of the spectrum's grid."""
    size = 1 << 17
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    hertz = np.arange(len(spectrum)) * rate / size
    inside = (hertz >= lowest) & (hertz <= highest)
    return hertz[inside][spectrum[inside].argmax()]


def decoded(songs_json, song):
    return audio.decode(songs_json.parent / f"{song.name}.{song.suffix}").numpy()


def seconds_of(song):
    """Bars of four beats at the speed that the metadata names."""
    return song.bars * 4 * 60 / song.bpm


@EVERY_SONG
def test_every_format_decodes_to_the_length_that_bars_and_tempo_give(songs_json, song):
    sound = decoded(songs_json, song)
    assert sound.shape[1] / audio.SAMPLE_RATE == pytest.approx(seconds_of(song), abs=0.03)
    assert 0.5 < np.abs(sound).max() < 1


def notes_of(song, sound, rate):
    """How many semitones each eighth lies above the song's key, told from its loudest tone above the chords."""
    eighth = 30 / song.bpm * rate
    found = []
    for index in range(song.bars * 8):
        part = sound[0, round(index * eighth) : round((index + 1) * eighth)]
        hertz = loudest(part, rate, 0.97 * NOTES[song.key], 2.05 * NOTES[song.key])
        found.append(12 * math.log2(hertz / NOTES[song.key]))
    return found


@EVERY_SONG
def test_every_format_decodes_to_the_sound_that_was_rendered(songs_json, song):
    """Compared as they are, at two rates and with a codec's delay: the loudness of 100 pieces, and every note."""
    rendered, sound = render(song, SONGS.index(song)), decoded(songs_json, song)
    for side in (0, 1):
        one, other = (
            [np.sqrt((part**2).mean()) for part in np.array_split(wave, 100)] for wave in (rendered[side], sound[side])
        )
        assert np.corrcoef(one, other)[0, 1] > 0.95
    notes = notes_of(song, rendered, SAMPLE_RATE)
    assert notes_of(song, sound, audio.SAMPLE_RATE) == pytest.approx(notes, abs=0.2)
    assert np.abs(sound[0] - sound[1]).max() > 0.02  # the sides differ


@EVERY_SONG
def test_the_melody_keeps_to_the_key_and_mode_of_the_metadata(songs_json, song):
    notes = notes_of(song, decoded(songs_json, song), audio.SAMPLE_RATE)
    scale = SCALES[song.mode]
    assert all(min(abs(note - step) for step in scale) < 0.3 for note in notes), notes
    assert len({round(note) for note in notes}) >= 3  # a melody, not one tone


@EVERY_SONG
def test_the_first_bar_stands_on_the_root_of_the_key(songs_json, song):
    bar = seconds_of(song) / song.bars
    first = decoded(songs_json, song)[1, : round(bar * audio.SAMPLE_RATE)]
    root = NOTES[song.key] / 2
    assert loudest(first, audio.SAMPLE_RATE, 0.9 * root, 1.08 * root) == pytest.approx(root, rel=0.01)


def test_notes_start_where_the_tempo_says(songs_json):
    """Plucked strings fade, so every note begins louder than the one before it ends."""
    song = next(song for song in SONGS if song.voice == "plucked string")
    left = decoded(songs_json, song)[0]
    eighth, piece = 30 / song.bpm * audio.SAMPLE_RATE, round(0.02 * audio.SAMPLE_RATE)
    starts = [round(index * eighth) for index in range(1, song.bars * 8)]
    louder = [np.abs(left[at : at + piece]).max() > np.abs(left[at - piece : at]).max() for at in starts]
    assert sum(louder) >= 0.9 * len(louder)


@pytest.mark.parametrize("voice", VOICES)
def test_every_voice_plays_the_note_it_is_given(voice):
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    sound = VOICES[voice](t, 440.0)
    assert np.abs(sound).max() <= 2
    assert loudest(sound, SAMPLE_RATE, 50, 5000) == pytest.approx(440, rel=0.005)


def test_voices_sound_unlike_one_another():
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    sounds = [np.abs(np.fft.rfft(voice(t, 440.0))) for voice in VOICES.values()]
    likeness = np.corrcoef(sounds)
    assert (likeness[~np.eye(len(sounds), dtype=bool)] < 0.995).all()


@EVERY_SONG
def test_the_metadata_says_of_each_song_what_it_is(songs_json, song):
    known = {item.path.stem: item for item in find_songs(None, songs_json).songs}[song.name]
    assert song.voice in known.caption
    assert (known.bpm, known.keyscale, known.timesignature) == (str(song.bpm), f"{song.key} {song.mode}", "4")
    assert (known.lyrics, known.language) == (song.lyrics, song.language)
    assert known.is_instrumental is not bool(song.lyrics)


def test_there_is_a_song_in_every_format_and_some_have_lyrics(songs_json):
    found = find_songs(songs_json.parent, songs_json)
    assert found.custom_tag == "toybox"
    assert {item.path.suffix for item in found.songs} == set(AUDIO_SUFFIXES)
    assert {bool(item.lyrics) for item in found.songs} == {True, False}
    assert found.notices == ()


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_songs(songs_json, tmp_path):
    again = write_songs(tmp_path / "again").parent
    for path in songs_json.parent.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert not np.array_equal(render(SONGS[0], 0), render(SONGS[0], 1))


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
@pytest.mark.parametrize("rate", [22_050, 48_000])
def test_any_rate_and_a_single_channel_can_be_written(tmp_path, suffix, rate):
    t = np.arange(rate) / rate
    path = tmp_path / f"mono{suffix.upper()}"
    write_audio(path, (0.5 * np.sin(2 * np.pi * 330 * t))[None].astype(np.float32), sample_rate=rate)
    sound = audio.decode(path).numpy()
    assert sound.shape[1] / audio.SAMPLE_RATE == pytest.approx(1, abs=0.06)
    assert loudest(sound[0], audio.SAMPLE_RATE, 50, 5000) == pytest.approx(330, rel=0.01)
