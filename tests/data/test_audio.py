"""Every format becomes stereo at 48 kHz, whole and unchanged; whatever is no sound is refused in words."""

import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from woodshed.data import audio
from woodshed.data.ahead import AbandonedError
from woodshed.data.audio import decode, probe
from woodshed.errors import DataError

LOSSLESS = (".wav", ".flac")
LOSSY = (".mp3", ".ogg", ".opus", ".m4a")
ONE_FRAME = 2_100  # samples at 48 kHz: what an encoder without an exact end may add


@pytest.mark.parametrize("suffix", LOSSLESS + LOSSY)
@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_every_format_and_rate_keeps_length_pitch_and_loudness(write_audio, pitch, tmp_path, suffix, rate):
    if suffix == ".opus" and rate != 48_000:
        pytest.skip("Opus only knows 48 kHz and its fractions")
    sound = decode(write_audio(tmp_path / f"song{suffix}", rate=rate))
    assert sound.dtype == torch.float32
    assert sound.shape[0] == 2
    excess = sound.shape[1] - 96_000
    assert excess == 0 if suffix in (*LOSSLESS, ".mp3", ".opus") else 0 <= excess < ONE_FRAME
    for channel, frequency in zip(sound, (440, 880), strict=True):
        assert pitch(channel) == pytest.approx(frequency, abs=1)
        loudness = channel[4_800:-4_800].square().mean().sqrt() * 2**0.5
        tolerance = 1e-3 if suffix in LOSSLESS else 0.06  # LAME lowers what it encodes by 5 %
        assert loudness == pytest.approx(0.5, rel=tolerance)


def test_resampling_is_band_limited_interpolation(write_audio, tones, tmp_path):
    for rate in (8_000, 44_100):
        sound = decode(write_audio(tmp_path / "song.wav", tones(1, rate), rate, "pcm_f32le"))
        ideal = torch.from_numpy(tones(1, 48_000)).float()
        middle = slice(4_800, -4_800)  # the filter needs neighbours
        assert (sound[:, middle] - ideal[:, middle]).abs().max() < 1e-3


def test_a_mono_file_plays_on_both_sides(write_audio, tones, tmp_path):
    sound = decode(write_audio(tmp_path / "mono.wav", tones(1, 8_000, channels=1), 8_000))
    assert sound.shape == (2, 48_000)
    assert torch.equal(sound[0], sound[1])


@pytest.mark.parametrize("channels", [6, 8])
def test_of_many_channels_the_first_two_are_taken_not_mixed(write_audio, tones, pitch, tmp_path, channels):
    sound = decode(write_audio(tmp_path / "surround.wav", tones(1, 96_000, channels), 96_000, "pcm_s24le"))
    assert sound.shape == (2, 48_000)
    assert [pitch(channel) for channel in sound] == [440, 880]
    assert sound.abs().max() == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_gives_the_same_sound(write_audio, tones, tmp_path, codec):
    sound = decode(write_audio(tmp_path / "song.wav", tones(0.5), 48_000, codec))
    ideal = torch.from_numpy(tones(0.5)).float()
    assert (sound - ideal).abs().max() < (1e-2 if codec == "pcm_u8" else 1e-4)


def test_sound_beyond_full_scale_is_neither_clamped_nor_normalised(write_audio, tones, tmp_path):
    loud = write_audio(tmp_path / "loud.wav", tones(1, amplitude=2.0), 48_000, "pcm_f32le")
    quiet = write_audio(tmp_path / "quiet.wav", tones(1, amplitude=0.01), 48_000, "pcm_f32le")
    assert decode(loud).abs().max() == pytest.approx(2.0, rel=1e-3)
    assert decode(quiet).abs().max() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("suffix", LOSSLESS + LOSSY)
def test_decoding_stops_at_the_longest_wanted_length(write_audio, tmp_path, suffix):
    path = write_audio(tmp_path / f"song{suffix}")
    assert decode(path, max_seconds=0.75).shape == (2, 36_000)
    assert torch.equal(decode(path, max_seconds=0.75), decode(path)[:, :36_000])
    assert decode(path, max_seconds=60).shape == decode(path).shape


def test_a_single_sample_is_a_sound(write_audio, tmp_path):
    path = write_audio(tmp_path / "click.wav", np.full((1, 1), 0.25), 48_000, "pcm_f32le")
    assert decode(path).tolist() == [[0.25], [0.25]]


@pytest.mark.parametrize("name", ["夜の歌 🎵.wav", 'it\'s "quoted".flac', "line\nbreak.mp3", "%03d.wav", "שיר.ogg"])
def test_names_of_every_kind_are_read(write_audio, tmp_path, name):
    plain = write_audio(tmp_path / f"plain{Path(name).suffix}")
    assert decode(plain.rename(tmp_path / name)).shape[1] >= 96_000


def test_a_name_is_never_taken_for_a_protocol(write_audio, tmp_path, monkeypatch):
    write_audio(tmp_path / "plain.wav").rename(tmp_path / "concat:Part 2.wav")
    monkeypatch.chdir(tmp_path)
    assert decode(Path("concat:Part 2.wav")).shape == (2, 96_000)


def test_the_header_tells_length_rate_and_channels(write_audio, tones, tmp_path):
    facts = probe(write_audio(tmp_path / "song.flac", tones(1.5, 44_100, 1), 44_100))
    assert (facts.seconds, facts.rate, facts.channels) == (1.5, 44_100, 1)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match=r"There is no audio file .*gone\.wav"):
        decode(tmp_path / "gone.wav")


def test_a_folder_named_like_a_song_is_no_song(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(DataError, match="There is no audio file"):
        decode(tmp_path / "folder.wav")


@pytest.mark.parametrize("suffix", LOSSLESS + LOSSY)
@pytest.mark.parametrize("text", ["These are words.\n" * 200, "x", "\0" * 5_000])
def test_what_is_no_sound_is_refused_by_name(tmp_path, suffix, text):
    path = tmp_path / f"notes{suffix}"
    path.write_text(text)
    with pytest.raises(DataError) as refusal:
        decode(path)
    assert len(refusal.value.problems) == 1
    assert refusal.value.problems[0].startswith(f"{path} ")


def test_a_file_without_bytes_is_refused(tmp_path):
    (tmp_path / "empty.mp3").touch()
    with pytest.raises(DataError, match=r"empty\.mp3 is empty: it has no bytes"):
        decode(tmp_path / "empty.mp3")


def test_a_file_without_samples_is_refused(tmp_path):
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(48_000)
    with pytest.raises(DataError, match=r"none\.wav holds no sound"):
        decode(tmp_path / "none.wav")


@pytest.mark.parametrize(
    "play_list", ["ffconcat version 1.0\nfile song.wav\n", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsong.wav\n"]
)
def test_a_play_list_named_like_a_song_opens_no_other_file(write_audio, tmp_path, play_list):
    write_audio(tmp_path / "song.wav")
    (tmp_path / "list.m4a").write_text(play_list)
    with pytest.raises(DataError, match=r"list\.m4a is no audio file"):
        decode(tmp_path / "list.m4a")


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".flac", ".m4a"])
def test_a_file_that_breaks_off_is_refused(write_audio, tmp_path, suffix):
    path = write_audio(tmp_path / f"song{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError, match=r"cut short: it says 2\.0 seconds|damaged after|no audio file that can be read"
    ):
        decode(path)


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".opus", ".m4a"])
def test_a_file_damaged_in_the_middle_is_refused_with_the_place(write_audio, tmp_path, suffix):
    path = write_audio(tmp_path / f"song{suffix}")
    content = bytearray(path.read_bytes())
    start, length = len(content) // 2, len(content) // 8
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"is damaged after \d\.\d seconds|is cut short: it says 2\.\d seconds and holds \d"
    ):
        decode(path)


def test_a_streamed_wav_whose_header_knows_no_length_is_whole(write_audio, tmp_path):
    path = write_audio(tmp_path / "stream.wav")
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff" * 4
    data = content.index(b"data")
    content[data + 4 : data + 8] = b"\xff" * 4
    path.write_bytes(content)
    assert decode(path).shape == (2, 96_000)


def test_a_changing_bit_rate_without_a_header_is_no_damage(write_audio, tmp_path):
    path = write_audio(tmp_path / "song.mp3")
    content = path.read_bytes()
    first = content.index(b"\xff\xfb")
    second = content.index(b"\xff\xfb", first + 4)  # the first frame holds the encoder's header and no sound
    path.write_bytes(content[second:])
    assert decode(path).shape[1] >= 96_000


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_that_may_not_be_read_is_refused(write_audio, tmp_path):
    path = write_audio(tmp_path / "secret.wav")
    path.chmod(0)
    with pytest.raises(DataError, match=r"cannot be read|no audio file"):
        decode(path)


def test_a_file_that_turns_from_mono_to_stereo_is_refused_not_crashed_on(write_audio, tones, tmp_path):
    mono = write_audio(tmp_path / "mono.mp3", tones(1, channels=1))
    stereo = write_audio(tmp_path / "stereo.mp3", tones(1))
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(mono.read_bytes() + stereo.read_bytes())
    with pytest.raises(DataError, match=r"joined\.mp3 is damaged after 1\.\d seconds"):
        decode(joined)


def test_sound_is_the_same_however_many_frames_are_joined(tmp_path, write_audio, tones, monkeypatch):
    for name, rate in (("a.mp3", 44_100), ("b.opus", 48_000), ("c.flac", 8_000)):
        path = write_audio(tmp_path / name, tones(1.5, rate), rate)
        whole = audio.decode(path)
        for joined in (1, 5_000):
            monkeypatch.setattr(audio, "JOINED", joined)
            assert torch.equal(audio.decode(path), whole)
        monkeypatch.undo()


def test_decoding_ends_when_nobody_wants_the_sound(tmp_path, write_audio):
    with pytest.raises(AbandonedError):
        audio.decode(write_audio(tmp_path / "a.wav"), should_stop=lambda: True)
