"""Inspecting tells what a path holds by its files, and what is missing or wrong with it."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed.adapters.files import save_adapter
from woodshed.adapters.lokr import LokrSettings, attach_lokr
from woodshed.adapters.lora import attach_lora
from woodshed.analysis.estimate import estimate
from woodshed.analysis.inspection import inspect_path
from woodshed.errors import UserError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_decoder
from woodshed.sampling.waveform import write_sound
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import InspectSettings, TrainSettings
from woodshed.training.loop import train

TARGETS = ["layers.0.self_attn.q_proj", "layers.0.cross_attn.v_proj", "layers.2.mlp.up_proj"]
RECIPE = {
    "base_model": "acestep-v15-base",
    "custom_tag": "zyx",
    "tag_position": "append",
    "shift": 1.0,
    "num_inference_steps": 50,
    "epochs": 3,
    "averaged_epochs": [2, 3],
}


@pytest.fixture
def look(checkpoint_root):
    """Inspect a path: `look(path, model="base")`."""

    def inspect(path, **changes):
        values = {"checkpoint_dir": checkpoint_root, "device": "cpu"} | changes
        return inspect_path(path, resolve(InspectSettings, [Layer("test", values)]).settings)

    return inspect


@pytest.fixture
def make_adapter(checkpoint_root, tmp_path):
    """Save an adapter on three layers and return it with its folder; size 0 changes nothing."""

    def make(family="lora", size=0.3, recipe=RECIPE):
        checkpoint = choose_model(find_checkpoints(checkpoint_root), "base")
        decoder = load_decoder(checkpoint, dtype=torch.float32, device="cpu")
        if family == "lora":
            adapter = attach_lora(decoder, TARGETS, rank=2, alpha=4, dropout=0.0, bias="none")
        else:
            switches = LokrSettings(4, 4, 4, weight_decompose=family == "dora")
            adapter = attach_lokr(decoder, TARGETS, switches, bias="none")
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in adapter.trainable_parameters().values():
                parameter.add_(size * torch.randn(parameter.shape))
        save_adapter(adapter, tmp_path / "style", recipe)
        return adapter, tmp_path / "style"

    return make


def test_an_adapter_says_what_it_is_what_made_it_and_how_far_it_moves_each_layer(look, make_adapter):
    adapter, folder = make_adapter()
    report = look(folder)
    expected = {
        "family": "LoRA",
        "modules": 3,
        "rank": 2,
        "parameters": adapter.num_parameters,
        "changes anything": True,
    }
    expected |= {"trained on": "acestep-v15-base", "trigger tag": "zyx", "tag position": "append"}
    expected |= {"steps": 50, "shift": 1.0, "epochs": 3, "mean of the epochs": [2, 3]}
    assert expected.items() <= report.facts.items()
    assert report.notices == ()
    untagged = look(make_adapter(recipe={**RECIPE, "custom_tag": ""})[1])
    assert "tag position" not in untagged.facts
    rows = report.as_json()["tables"]["size of the change"]
    assert [row["layer"] for row in rows] == ["0", "2"]
    norms = {module: adapter.effective_delta(module).norm().item() for module in TARGETS}
    assert rows[0]["self_attn"] == pytest.approx(norms[TARGETS[0]], rel=1e-5)
    assert rows[0]["all"] == pytest.approx(math.hypot(norms[TARGETS[0]], norms[TARGETS[1]]), rel=1e-5)
    assert (rows[0]["mlp"], rows[1]["self_attn"]) == (None, None)


@pytest.mark.parametrize("family", ["lora", "lokr", "dora"])
def test_with_a_model_the_change_is_measured_against_its_weights_and_tried(look, make_adapter, family):
    adapter, folder = make_adapter(family)
    report = look(folder, model="base")
    module = TARGETS[2]
    (row,) = [row for row in report.tables[0].rows if row[0] == "2"]
    share = adapter.effective_delta(module).norm() / adapter.base_weight(module).norm()
    assert report.tables[0].title == "size of the change, % of the weights"
    assert row[3] == pytest.approx(100 * share.item(), rel=1e-4)
    assert (report.facts["tried on"], report.facts["is live"]) == ("acestep-v15-base", True)
    assert float(report.facts["moves the velocity by"].rstrip("%")) > 1


def test_a_weight_decomposition_needs_the_model_to_be_measured(look, make_adapter):
    report = look(make_adapter("dora")[1])
    assert report.facts["family"] == "LoKr with weight decomposition (DoRA)"
    assert report.tables == ()
    assert "add --checkpoint-dir and --model" in report.notices[0]


def test_an_adapter_that_changes_nothing_is_not_live(look, make_adapter):
    _, folder = make_adapter(size=0)
    assert look(folder).facts["changes anything"] is False
    report = look(folder, model="base")
    assert (report.facts["is live"], report.facts["moves the velocity by"]) == (False, "0.00%")


def test_an_adapter_of_another_tool_and_one_for_another_model(look, golden):
    report = look(golden / "adapters" / "lora_r4")
    assert report.facts["rank"] == 4
    assert "carries no recipe" in report.notices[0]
    with pytest.raises(UserError):
        look(golden / "adapters" / "lora_r4", model="xl-turbo")


def test_a_model_folder_says_its_kind_size_and_parts(look, checkpoint_root):
    report = look(checkpoint_root / "acestep-v15-xl-turbo")
    expected = {"kind": "turbo", "size": "XL", "published by ACE-Step": True, "number format": "F32", "weight files": 2}
    assert (report.kind, report.notices) == ("model", ())
    assert expected.items() <= report.facts.items()
    parts = {row[0]: row[2] for row in report.tables[0].rows}
    assert set(parts) == {"decoder", "encoder", "tokenizer", "detokenizer", "null_condition_emb"}
    assert sum(parts.values()) == report.facts["parameters"]
    checkpoint = choose_model(find_checkpoints(checkpoint_root), "xl-turbo")
    decoder = load_decoder(checkpoint, dtype=torch.float32, device="cpu")
    assert parts["decoder"] == sum(parameter.numel() for parameter in decoder.parameters())


def test_missing_parts_of_a_model_are_named(look, checkpoint_root, tmp_path):
    folder = tmp_path / "acestep-v15-base"
    shutil.copytree(checkpoint_root / "acestep-v15-base", folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.", "decoder.norm_out"))}
    save_file(kept, folder / "model.safetensors")
    (folder / "silence_latent.pt").unlink()
    report = look(folder)
    said = "\n".join(report.notices)
    for part in ("decoder.norm_out.weight", "52 tensors are missing", "silence_latent.pt", "encoder.text_projector"):
        assert part in said, part
    assert [row[3] for row in report.tables[0].rows if row[0] == "encoder"] == ["missing"]


def test_a_folder_of_models_lists_them_and_what_is_missing_beside_them(look, checkpoint_root, tmp_path):
    report = look(checkpoint_root)
    assert report.tables[0].rows[0] == ["acestep-v15-base", "base", "2B", "official"]
    assert (report.facts["models"], report.facts["VAE"], report.notices) == (5, True, ())
    (tmp_path / "acestep-v15-base").symlink_to(checkpoint_root / "acestep-v15-base")
    report = look(tmp_path)
    assert report.facts["VAE"] is False
    assert len(report.notices) == 2


def test_a_part_that_models_share_points_to_its_parent(look, checkpoint_root):
    for name in ("vae", "Qwen3-Embedding-0.6B"):
        with pytest.raises(UserError, match="Inspect the folder it lies in"):
            look(checkpoint_root / name)


def test_a_dataset_says_its_songs_lengths_and_for_whom_it_was_made(look, dataset_dir, tmp_path):
    report = look(dataset_dir)
    expected = {"songs": 3, "seconds of music": 2.84, "shortest and longest": [0.68, 1.2], "condition tokens": [6, 6]}
    expected |= {"latent channels": 16, "condition width": 32, "made for": "not said", "number format": "float32"}
    assert expected.items() <= report.facts.items()
    folder = tmp_path / "mine"
    shutil.copytree(dataset_dir, folder)
    (folder / "b.pt").write_bytes(b"broken")
    ours = {"model": "acestep-v15-base", "fingerprint": "f", "conditioning": "inference", "is_complete": False}
    manifest = {"metadata": {"custom_tag": "zyx"}, "samples": ["a.pt", "b.pt", "gone.pt"], "woodshed": ours}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = look(folder)
    expected = {"songs": 3, "made for": "acestep-v15-base", "conditioning": "inference", "trigger tag": "zyx"}
    assert expected.items() <= report.facts.items()
    said = "\n".join(report.notices)
    for part in ("gone.pt, which the manifest names, is not there", "b.pt", "was interrupted"):
        assert part in said


def test_a_dataset_in_parts_says_that_they_are_not_put_together(look, dataset_dir, tmp_path):
    parts = shutil.copytree(dataset_dir, tmp_path / "parts")
    for number in (1, 2):
        (parts / f"manifest-{number}-of-2.json").write_text("{}", encoding="utf-8")
    (notice,) = (line for line in look(parts).notices if "not put together" in line)
    assert notice.startswith("It is in 2 parts that are not put together yet: run woodshed dataset merge ")


def test_a_run_and_its_checkpoints(look, checkpoint_root, dataset_dir, tmp_path):
    values = {
        "checkpoint_dir": checkpoint_root,
        "model": "acestep-v15-base",
        "dataset_dir": dataset_dir,
        "device": "cpu",
    }
    values |= {"output_dir": tmp_path / "run", "rank": 2, "epochs": 2, "save_every": 1, "warmup_steps": 0}
    resolved = resolve(TrainSettings, [Layer("test", values)])
    for _ in train(resolved.settings, origins=resolved.origins, should_stop=lambda: True):
        pass
    report = look(tmp_path / "run")
    assert (report.kind, report.facts["model"], report.facts["finished"]) == ("run", "acestep-v15-base", False)
    changed = report.facts["settings that differ from their defaults"]
    assert changed == {"device": "cpu", "rank": 2, "epochs": 2, "save_every": 1, "warmup_steps": 0}
    assert [row[0] for row in report.tables[0].rows] == ["checkpoint-epoch-1"]
    assert "--resume-from latest" in report.notices[0]
    folder = tmp_path / "run" / "checkpoint-epoch-1"
    report = look(folder)
    assert (report.kind, report.facts["resumes at"]) == ("adapter", "epoch 2, after step 1")
    assert report.facts["settings"]["rank"] == 2
    (folder / "resume" / "optimizer.pt").write_bytes(b"broken")
    assert any("is damaged" in notice for notice in look(folder).notices)


def test_an_estimate_and_a_song(look, settings_for, tmp_path):
    ranking = list(estimate(settings_for(estimate_batches=2)))[-1].ranking
    report = look(tmp_path / "estimate.json")
    assert (report.kind, report.facts["recommended"], report.notices) == (
        "estimate",
        ranking.top_k,
        ranking.recommendation,
    )
    assert report.tables[0].rows[0][:2] == [ranking.entries[0].name, ranking.entries[0].score]
    recipe = {"woodshed": "1", "prompt": "funk", "seed": 3}
    write_sound(tmp_path / "a.wav", torch.zeros(2, 5), tags={"comment": json.dumps(recipe)})
    assert look(tmp_path / "a.wav").facts == recipe
    write_sound(tmp_path / "b.wav", torch.zeros(2, 5))
    with pytest.raises(UserError, match="does not say how it was made"):
        look(tmp_path / "b.wav")


def test_nothing_and_what_is_not_known_say_what_could_be_inspected(look, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="Give an adapter"):
            look(path)


def test_an_unknown_model_and_device_are_found_together(look, make_adapter):
    with pytest.raises(UserError) as caught:
        look(make_adapter()[1], model="bsae", device="cpu")
    assert "Did you mean acestep-v15-base" in str(caught.value)
