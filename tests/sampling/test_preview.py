"""Samples while it trains: heard as the base model and as the adapter, and never in the training's way."""

import json
import re

import pytest
import torch

from woodshed.errors import UserError
from woodshed.models.load import load_vae as true_load
from woodshed.sampling import preview
from woodshed.sampling.page import write_page
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Notice, SampleMade, StepDone
from woodshed.training.loop import train
from woodshed.training.preflight import check


@pytest.fixture
def settings_for(tmp_path, checkpoint_root):
    """Training settings for two short songs that sample after every epoch; arguments change them."""
    folder = tmp_path / "tensors"
    folder.mkdir()
    for seed, name in enumerate(("a song", "b")):
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(12, 16, generator=generator)
        sample = {
            "target_latents": latents,
            "attention_mask": torch.ones(12),
            "encoder_hidden_states": torch.randn(5, 32, generator=generator),
            "encoder_attention_mask": torch.ones(5, dtype=torch.bool),
            "context_latents": torch.cat([0.1 * latents, torch.ones_like(latents)], dim=1),
            "metadata": {},
        }
        torch.save(sample, folder / f"{name}.pt")

    def build(output="out", **changes):
        values = {
            "checkpoint_dir": checkpoint_root,
            "model": "acestep-v15-base",
            "dataset_dir": folder,
            "output_dir": tmp_path / output,
            "device": "cpu",
            "rank": 4,
            "learning_rate": 0.05,
            "warmup_steps": 0,
            "epochs": 2,
            "num_workers": 0,
            "save_every": 0,
            "sample_every_n_epochs": 1,
            "sample_seconds": 0.4,
            "num_inference_steps": 2,
        }
        return resolve(TrainSettings, [Layer("test", values | changes)]).settings

    return build


def adapter_bytes(folder):
    return (folder / "final" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_adapter_is_the_same_to_the_last_byte_with_and_without_samples(settings_for, tmp_path, precision):
    made = [e for e in train(settings_for("with", precision=precision)) if isinstance(e, SampleMade)]
    list(train(settings_for("without", precision=precision, sample_every_n_epochs=0)))
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")
    assert [event.path.relative_to(tmp_path / "with").as_posix() for event in made] == [
        f"samples/{version}/{name}.wav" for version in ("base", "epoch-1", "epoch-2") for name in ("1-a-song", "2-b")
    ]
    sounds = [event.path.read_bytes() for event in made]
    assert len({sound[100:] for sound in sounds}) == 6  # songs and versions all differ


def test_an_adapter_that_learns_nothing_sounds_like_the_base_model(settings_for):
    made = [e for e in train(settings_for(learning_rate=1e-30)) if isinstance(e, SampleMade)]
    tail = [event.path.read_bytes()[-40_000:] for event in made]  # without the tags
    assert tail[:2] == tail[2:4] == tail[4:]


def test_the_page_holds_every_version_of_every_song_and_asks_nothing_of_the_net(settings_for, tmp_path):
    list(train(settings_for()))
    text = (tmp_path / "out" / "samples" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|<link|@import|src=.http", text)
    rows = json.loads(re.search(r"const rows = (.*);", text)[1])
    assert [row["title"] for row in rows] == ["a song", "b"]
    for row in rows:
        assert [sound["label"] for sound in row["sounds"]] == ["base model", "epoch 1", "epoch 2"]
        for sound in row["sounds"]:
            assert (tmp_path / "out" / "samples" / sound["source"]).is_file()


def test_a_title_cannot_end_the_script_and_a_later_epoch_of_an_older_run_is_left_out(tmp_path):
    for version in ("base", "epoch-2", "epoch-10", "epoch-30"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "1-x.wav").touch()
    write_page(tmp_path, {"1-x.wav": "</script><script>alert(1)"}, 10)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 1
    assert re.findall(r'"label": "([^"]+)"', text) == ["base model", "epoch 2", "epoch 10"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), OSError("disk full"), UserError("No.")])
def test_a_sample_that_fails_costs_the_samples_and_not_the_training(settings_for, tmp_path, monkeypatch, error):
    calls = iter(range(100))
    true_decode = preview.decode_latents

    def decode(*arguments, **options):
        if next(calls) == 3:  # the second sample of epoch 1
            raise error
        return true_decode(*arguments, **options)

    list(train(settings_for("without", sample_every_n_epochs=0)))
    monkeypatch.setattr(preview, "decode_latents", decode)
    events = list(train(settings_for("with")))
    (said,) = [e.text for e in events if isinstance(e, Notice) and "No more samples are made" in e.text]
    assert "training goes on" in said
    assert {e.epoch for e in events if isinstance(e, SampleMade)} == {0}
    assert len([e for e in events if isinstance(e, StepDone)]) == 2
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")


def test_the_vae_is_loaded_once_and_the_base_model_played_once(settings_for, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(preview, "load_vae", lambda *a, **how: loads.append(1) or true_load(*a, **how))
    list(train(settings_for(save_every=1)))
    assert len(loads) == 1
    before = (tmp_path / "out" / "samples" / "base" / "1-a-song.wav").stat().st_mtime_ns
    made = [e for e in train(settings_for(epochs=3, resume_from="latest")) if isinstance(e, SampleMade)]
    assert {event.epoch for event in made} == {3}
    assert (tmp_path / "out" / "samples" / "base" / "1-a-song.wav").stat().st_mtime_ns == before


def test_what_samples_lack_is_found_before_anything_is_loaded_all_at_once(settings_for, tmp_path, checkpoint_root):
    root = tmp_path / "models"
    root.mkdir()
    (root / "acestep-v15-base").symlink_to(checkpoint_root / "acestep-v15-base")
    with pytest.raises(UserError) as caught:
        check(settings_for(checkpoint_dir=root, sample_prompts=tmp_path / "nowhere.txt"))
    for part in ("no folder vae", "no folder Qwen3-Embedding-0.6B", "nowhere.txt cannot be read"):
        assert sum(part in problem for problem in caught.value.problems) == 1
    check(settings_for(checkpoint_dir=root, sample_every_n_epochs=0))
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no sample prompts"):
        check(settings_for(sample_prompts=tmp_path / "empty.txt"))


def test_prompts_beyond_the_count_are_named(settings_for, tmp_path):
    (tmp_path / "three.txt").write_text("one\ntwo\nthree", encoding="utf-8")
    said = check(settings_for(sample_prompts=tmp_path / "three.txt")).notices
    assert any("--sample-count 3 plays all" in line for line in said)
