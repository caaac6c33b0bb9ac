"""Sound from latents, in tiles that do not show, and WAV files that say what they hold."""

import pytest
import torch

from woodshed.data import audio
from woodshed.errors import UserError
from woodshed.models.load import load_vae
from woodshed.sampling.waveform import PEAK, decode_latents, read_tags, write_sound


@pytest.fixture(scope="module")
def vae(checkpoint_root):
    return load_vae(checkpoint_root / "vae", dtype=torch.float32, device="cpu")


def test_decoding_equals_the_original_up_to_the_peak_rule(read_golden, vae):
    stored = read_golden("vae")
    expected = stored["decode_10_wave"][0]
    found = decode_latents(vae, stored["decode_10_latents"][0].T)
    torch.testing.assert_close(found, expected * PEAK / expected.abs().max(), rtol=0, atol=1e-5)


def test_tiles_do_not_show(vae):
    latents = torch.randn(90, 16, generator=torch.Generator().manual_seed(1))
    whole = decode_latents(vae, latents, tile_frames=1000)
    tiled = decode_latents(vae, latents, tile_frames=40, overlap_frames=12)
    assert whole.shape == tiled.shape == (2, 90 * 1920)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 1920, 30_000, 200_000])
def test_the_beginning_of_a_song_is_decoded_as_part_of_the_whole_and_peaks_by_itself(vae, samples):
    latents = torch.randn(90, 16, generator=torch.Generator().manual_seed(1))
    whole, part = decode_latents(vae, latents)[:, :samples], decode_latents(vae, latents, samples=samples)
    assert part.shape == whole.shape
    torch.testing.assert_close(part, whole * PEAK / whole.abs().max(), rtol=0, atol=1e-4)


def test_the_loudest_sample_is_at_minus_one_decibel(vae):
    latents = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    assert decode_latents(vae, latents).abs().max().item() == pytest.approx(10 ** (-1 / 20))


def test_a_wav_file_holds_what_was_written(tmp_path):
    t = torch.arange(48_000) / 48_000
    waveform = torch.stack([0.5 * torch.sin(2 * torch.pi * 440 * t), 0.25 * torch.sin(2 * torch.pi * 660 * t)])
    path = tmp_path / "a.wav"
    write_sound(path, waveform)
    torch.testing.assert_close(audio.decode(path), waveform, rtol=0, atol=1e-6)
    assert [item.name for item in tmp_path.iterdir()] == ["a.wav"]


def test_too_loud_sound_is_clamped_not_wrapped(tmp_path):
    path = tmp_path / "a.wav"
    write_sound(path, torch.full((2, 100), 1.5))
    assert audio.decode(path).min() > 0.99


def test_tags_are_read_back_whatever_letters_they_hold(tmp_path):
    for name in ("a.wav", "a.flac"):
        write_sound(tmp_path / name, torch.zeros(2, 5), tags={"title": "bläk & “funk”", "comment": "x" * 5000})
        tags = read_tags(tmp_path / name)
        assert (tags["title"], tags["comment"]) == ("bläk & “funk”", "x" * 5000)


def test_tags_of_what_is_no_sound_file_are_refused_by_name(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(UserError, match=r"a\.wav is no sound file"):
        read_tags(tmp_path / "a.wav")
