"""Spectrograms show what was played, in files that other programs read."""

import numpy as np
import pytest
from PIL import Image

from woodshed.toy.picture import GAP, HEIGHT, HIGHEST, LOWEST, encode_png, spectrogram, write_spectrograms


def tone(hertz, seconds=0.5):
    t = np.arange(round(seconds * 48_000)) / 48_000
    return np.tile(0.5 * np.sin(2 * np.pi * hertz * t), (2, 1))


def brightest_row(picture):
    return int(picture.sum(axis=(1, 2)).argmax())


def test_another_library_reads_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    path = tmp_path / "p.png"
    path.write_bytes(encode_png(pixels))
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 6000.0])
def test_a_tone_is_a_line_at_its_height(hertz):
    above = np.log(HIGHEST / hertz) / np.log(HIGHEST / LOWEST)
    assert brightest_row(spectrogram(tone(hertz))) == pytest.approx(above * (HEIGHT - 1), abs=3)


def test_sound_is_bright_where_it_is_and_silence_dark():
    sound = np.concatenate([np.zeros((2, 24_000)), tone(1000.0)], axis=1)
    picture = spectrogram(sound).astype(int).sum(axis=2)
    half = picture.shape[1] // 2
    assert picture[:, : half - 3].max() < 20
    assert picture[:, half + 3 :].max() > 600


def test_silence_and_a_single_sample_can_be_drawn():
    assert spectrogram(np.zeros((2, 4800))).sum(axis=2).max() < 20
    assert spectrogram(np.ones((2, 1))).shape == (HEIGHT, 1, 3)


def test_sounds_lie_one_below_the_other(tmp_path):
    sounds = [tone(200.0), tone(4000.0)]
    write_spectrograms(tmp_path / "both.png", sounds)
    with Image.open(tmp_path / "both.png") as image:
        picture = np.asarray(image)
    assert picture.shape[0] == 2 * HEIGHT + GAP
    np.testing.assert_array_equal(picture[:HEIGHT], spectrogram(sounds[0]))
    np.testing.assert_array_equal(picture[-HEIGHT:], spectrogram(sounds[1]))
    assert (picture[HEIGHT : HEIGHT + GAP] == 255).all()
