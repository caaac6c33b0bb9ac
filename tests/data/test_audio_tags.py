"""What audio files say about themselves, in every format, and what is left out of it."""

import av
import numpy as np
import pytest

from woodshed.data.audio_tags import read_tags


@pytest.fixture
def tagged(tmp_path):
    """Write a short file with tags."""

    def write(suffix, codec, **tags):
        path = tmp_path / f"song{suffix}"
        with av.open(str(path), "w") as container:
            container.metadata.update(tags)
            stream = container.add_stream(codec, rate=48_000, layout="stereo")
            resampler = av.AudioResampler(format=stream.format.name, layout="stereo", rate=48_000, frame_size=1152)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.float32), format="flt", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, 0
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.mark.parametrize(("suffix", "codec"), [(".mp3", "libmp3lame"), (".flac", "flac"), (".opus", "libopus")])
def test_tags_are_read_in_every_format(tagged, suffix, codec):
    tags = {"TBPM": "128", "TKEY": "F#m"} if suffix == ".mp3" else {"BPM": "128", "INITIALKEY": "F#m"}
    path = tagged(suffix, codec, title="夜の歌 🎵", genre="city pop", lyrics="[Verse]\nla", **tags)
    assert read_tags(path) == {
        "title": "夜の歌 🎵",
        "genre": "city pop",
        "bpm": "128",
        "keyscale": "F# minor",
        "lyrics": "[Verse]\nla",
    }


@pytest.mark.parametrize(
    ("written", "known"),
    [("Am", "A minor"), ("C", "C major"), ("Bb maj", "Bb major"), ("e♭ Minor", "Eb minor"), ("8A", None), ("o", None)],
)
def test_keys_are_written_as_the_model_knows_them(tagged, written, known):
    assert read_tags(tagged(".flac", "flac", INITIALKEY=written)).get("keyscale") == known


def test_what_makes_no_sense_is_left_out(tagged):
    assert read_tags(tagged(".flac", "flac", BPM="fast", genre=" unknown ", title="  ")) == {}
    assert read_tags(tagged(".flac", "flac", BPM="0")) == {}


def test_a_file_that_cannot_be_opened_has_no_tags(tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"no sound")
    assert read_tags(tmp_path / "song.mp3") == {}
    assert read_tags(tmp_path / "gone.mp3") == {}
