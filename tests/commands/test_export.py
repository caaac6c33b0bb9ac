"""`woodshed export`, as its users type it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from woodshed import cli
from woodshed.adapters.saved import read_adapter


@pytest.fixture
def export(capsys, tmp_path, monkeypatch, golden):
    """Run `woodshed export` on a golden adapter; return exit code, standard output and standard error."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(name, *words):
        code = cli.main(["export", str(golden / "adapters" / name), *map(str, words), "--plain"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_lora_of_another_trainer_becomes_a_file_for_comfyui(export, tmp_path, golden):
    code, out, err = export("lora_r4", "--to", "comfyui", "--output", "loras/style.safetensors")
    assert (code, err) == (0, "")
    assert [path.name for path in (tmp_path / "loras").iterdir()] == ["style.safetensors"]
    assert "Wrote loras/style.safetensors" in out
    assert "Verified: 96 tensors written and matched over 32 modules, relative error 0.0e+00, strength 1.000000" in out
    tensors = load_file("loras/style.safetensors")
    source = load_file(golden / "adapters" / "lora_r4" / "adapter_model.safetensors")
    name = "layers.0.cross_attn.k_proj"
    for theirs, ours in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
        one = source[f"base_model.model.{name}.{theirs}.weight"]
        assert torch.equal(one, tensors[f"diffusion_model.decoder.{name}.{ours}.weight"])
    assert tensors[f"diffusion_model.decoder.{name}.alpha"] == torch.tensor(8.0)


def test_json_holds_the_verification(export):
    code, out, _ = export("lora_r4", "--to", "peft", "--output", "peft", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["path"], report["modules"], report["is_live"]) == ("peft", 32, True)
    assert report["strength"] == pytest.approx(1)
    assert read_adapter(Path(report["path"])).path.parent == Path(report["path"])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_halves_the_file_and_says_what_it_costs(export, dtype):
    assert export("lora_r4", "--to", "peft", "--output", "full")[0] == 0
    code, out, _ = export("lora_r4", "--to", "peft", "--output", "half", "--dtype", dtype, "--json")
    assert code == 0
    assert 1e-4 < json.loads(out)["max_relative_error"] < 2e-2
    tensors = load_file("half/adapter_model.safetensors")
    assert {value.element_size() for value in tensors.values()} == {2}


def test_norms_for_comfyui_need_the_base_and_say_for_which_version_they_are(export, checkpoint_root):
    code, _, err = export("dora_r4", "--to", "comfyui", "--output", "dora")
    assert code == 1
    assert "depends on the weights of the base model" in err
    words = ("--checkpoint-dir", checkpoint_root, "--model", "base")
    code, out, _ = export("dora_r4", "--to", "comfyui", "--output", "dora", *words)
    assert code == 0
    assert "ComfyUI of today" in out
    tensors = load_file("dora/dora.safetensors")
    assert {tuple(v.shape) for k, v in tensors.items() if k.endswith("dora_scale")} == {(16, 1), (32, 1)}
    assert export("dora_r4", "--to", "comfyui", "--dora", "true", "--output", "true")[0] == 0
    magnitude = load_file("true/true.safetensors")["diffusion_model.decoder.layers.0.self_attn.q_proj.dora_scale"]
    assert not torch.allclose(magnitude, tensors["diffusion_model.decoder.layers.0.self_attn.q_proj.dora_scale"])


def test_an_approximation_says_what_is_lost_and_a_larger_rank_loses_less(export, checkpoint_root):
    words = ("--checkpoint-dir", checkpoint_root, "--model", "base", "--to", "lora", "--json")
    lost = []
    for rank in (2, 16):
        code, out, _ = export("dora_r4", "--output", f"lora-{rank}", "--max-rank", rank, *words)
        assert code == 0
        report = json.loads(out)
        lost.append(report["residual"])
        assert any("This is an approximation" in notice for notice in report["notices"])
    assert lost[0] > lost[1] > 0


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("lora_r4", ("--to", "peft", "--output", "x.safetensors"), "peft is a folder"),
        ("lora_r4", ("--to", "comfyui", "--output", "taken"), "taken exists already"),
        ("lora_r4", ("--to", "comfyui", "--output", "beside/x.safetensors"), "holds an adapter (adapter_config.json)"),
        ("lora_r4", ("--to", "lycoriss", "--output", "x"), "to must be one of comfyui, diffusers"),
        ("nowhere", ("--to", "peft", "--output", "x"), "There is no adapter at"),
        (
            "dora_r4",
            ("--to", "comfyui", "--output", "x", "--model", "base"),
            "There is no checkpoint folder checkpoints",
        ),
    ],
)
def test_what_cannot_be_done_is_one_clear_line_and_writes_nothing(export, tmp_path, name, words, sentence):
    (tmp_path / "taken").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "adapter_config.json").write_text("{}")
    code, out, err = export(name, *words)
    assert (code, out) == (1, "")
    assert sentence in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_adapter_for_another_size_of_model_is_refused(export, checkpoint_root, tmp_path):
    words = ("--checkpoint-dir", checkpoint_root, "--model", "xl-base", "--to", "peft", "--output", "x")
    code, _, err = export("lora_r4", *words)
    assert code == 1
    assert "is for another model" in err
    assert not (tmp_path / "x").exists()
