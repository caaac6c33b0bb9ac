"""A fingerprint knows a song again in another format and level, and tells different songs apart."""

import numpy as np
import pytest
import torch

from woodshed.data.listening import alike, fingerprint, listen


@pytest.fixture(scope="module")
def melody():
    """A random melody of two voices, (2, samples)."""

    def make(seed, seconds=6):
        draw = np.random.default_rng(seed)
        notes = 110 * 2 ** (draw.integers(0, 36, (2, seconds * 2)) / 12)
        time = np.arange(24_000) / 48_000
        voices = [
            np.concatenate([np.sin(2 * np.pi * note * time) * np.exp(-3 * time) for note in row]) for row in notes
        ]
        return np.stack([sum(voices)] * 2) * 0.3

    return make


def test_another_format_another_level_and_a_short_cut_are_the_same_song(melody, write_audio, tmp_path):
    song, other = melody(1), melody(2)
    files = {"a.wav": song, "quiet.mp3": song * 0.2, "late.ogg": song[:, 1_000:], "other.wav": other}
    heard = [listen(write_audio(tmp_path / name, wave)) for name, wave in files.items()]
    pairs = {frozenset((one.path.name, two.path.name)) for one, two in alike(heard)}
    assert pairs == {
        frozenset(pair) for pair in (("a.wav", "quiet.mp3"), ("a.wav", "late.ogg"), ("quiet.mp3", "late.ogg"))
    }


def test_a_copy_that_lacks_a_little_at_both_ends_is_known_again(melody, write_audio, tmp_path):
    song = melody(3, 20)
    cut = round(song.shape[1] * 0.004)
    files = {"whole.wav": song, "cut.wav": song[:, cut:-cut]}
    heard = [listen(write_audio(tmp_path / name, wave)) for name, wave in files.items()]
    assert len(alike(heard)) == 1


def test_many_different_songs_are_all_different(melody, write_audio, tmp_path):
    heard = [listen(write_audio(tmp_path / f"{seed}.wav", melody(seed))) for seed in range(10)]
    heard += [listen(write_audio(tmp_path / "longer.wav", melody(0, 12)))]
    assert alike(heard) == []


def test_steady_tones_of_different_pitch_differ_and_silence_is_like_nothing(write_audio, tones, tmp_path):
    waves = {"low": tones(1, channels=1), "high": tones(1, channels=2)[1:], "none": tones(1, channels=1) * 0}
    assert alike([listen(write_audio(tmp_path / f"{name}.wav", wave)) for name, wave in waves.items()]) == []
    assert alike([]) == []


def test_what_is_heard_is_measured(write_audio, tones, tmp_path):
    heard = listen(write_audio(tmp_path / "a.wav", (tones(1, 22_050, channels=1) * 4).clip(-1, 1), 22_050))
    assert (heard.rate, heard.channels) == (22_050, 1)
    assert heard.seconds == pytest.approx(1, abs=0.01)
    assert heard.peak == pytest.approx(1, abs=0.2)
    assert 0.3 < heard.clipped < 0.9


def test_a_moment_of_sound_has_a_fingerprint_too():
    assert fingerprint(torch.ones(2, 1)).isfinite().all()
    assert fingerprint(torch.zeros(2, 100)).shape == (16, 64)
