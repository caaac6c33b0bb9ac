"""The built-in checkpoints are those that were made, and whole."""

import json

import pytest
import torch

from woodshed.errors import CheckpointError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_silence, load_vae
from woodshed.toy import miniature
from woodshed.toy.ears import tempo_ear
from woodshed.toy.filterbank import CHANNELS
from woodshed.toy.listener import Listener, Playing, asked_pieces, hear_instrument
from woodshed.toy.miniature import DIGESTS, WORLD, copy_miniature, digests_of

MOST_BYTES = 12_000_000


def test_every_file_has_the_digest_it_had_when_it_was_made():
    assert digests_of(WORLD) == json.loads(DIGESTS.read_text(encoding="utf-8"))


def test_all_together_is_small():
    assert sum(path.stat().st_size for path in WORLD.rglob("*") if path.is_file()) <= MOST_BYTES


def test_a_copy_is_a_checkpoint_root_in_the_original_layout(tmp_path):
    copy_miniature(tmp_path / "root")
    found = find_checkpoints(tmp_path / "root")
    assert {model.name: model.kind for model in found.models} == {
        "acestep-v15-base": "base",
        "acestep-v15-turbo": "turbo",
    }
    assert not found.unusable
    assert found.require_vae()
    assert found.require_text_encoder()
    assert not (tmp_path / "root" / DIGESTS.name).exists()


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    world = tmp_path / "world"
    copy_miniature(world)
    monkeypatch.setattr(miniature, "WORLD", world)
    (world / "vae" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"damaged \(vae/config.json\)"):
        copy_miniature(tmp_path / "root")


def test_silence_is_what_the_vae_makes_of_silence():
    found = find_checkpoints(WORLD)
    vae = load_vae(found.require_vae(), dtype=torch.float32, device="cpu")
    with torch.no_grad():
        expected = vae.encode(torch.zeros(1, 2, 30 * 1920)).latent_dist.mean[0].T
    for name in ("acestep-v15-base", "acestep-v15-turbo"):
        silence = load_silence(choose_model(found, name))
        assert silence.shape == (750, CHANNELS)
        torch.testing.assert_close(silence[:25], expected[:25], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "playing"),
    [("acestep-v15-base", Playing(steps=8, guidance=3.0)), ("acestep-v15-turbo", Playing())],
    ids=["base", "turbo"],
)
def test_the_instrument_and_the_tempo_are_those_that_are_asked_for(model, playing):
    pieces = asked_pieces(7)
    sounds = Listener(WORLD, torch.device("cpu")).play(model, pieces, playing)
    names = hear_instrument(sounds)
    assert sum(name == piece.instrument for name, piece in zip(names, pieces, strict=True)) >= 6
    tempos = [tempo_ear().name(sound) for sound in sounds]
    assert sum(tempo == str(piece.bpm) for tempo, piece in zip(tempos, pieces, strict=True)) >= 5
