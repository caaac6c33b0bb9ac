"""Adapter files from strangers, given to every command that takes one: a clear line, exit code 1, and nothing done."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from woodshed import cli

Q = "layers.0.self_attn.q_proj"
A, B = torch.ones(2, 32), torch.ones(32, 2)


class Bomb:
    def __reduce__(self):
        return open, ("owned", "w")


def tensors(path, content, header=None):
    save_file({name: value.contiguous().clone() for name, value in content.items()}, path, header)


def peft(folder, config, content=None):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if content is not None:
        tensors(folder / "adapter_model.safetensors", content)


GOOD = {f"base_model.model.{Q}.lora_A.weight": A, f"base_model.model.{Q}.lora_B.weight": B}
HOSTILE = {
    "a pickle": lambda path: path.with_suffix(".bin").write_bytes(pickle.dumps(Bomb())),
    "a pickle in disguise": lambda path: path.with_suffix(".safetensors").write_bytes(pickle.dumps(Bomb())),
    "a folder with a pickle": lambda path: (
        peft(path, {"peft_type": "LORA", "r": 2, "lora_alpha": 2}),
        (path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb())),
    ),
    "a header of exabytes": lambda path: path.with_suffix(".safetensors").write_bytes(struct.pack("<Q", 1 << 62)),
    "an empty file": lambda path: path.with_suffix(".safetensors").write_bytes(b""),
    "a name that commands the terminal": lambda path: tensors(
        path.with_suffix(".safetensors"), {"a\x1b[2J\x07\nb.lora_A.weight": A}
    ),
    "a name without end": lambda path: tensors(path.with_suffix(".safetensors"), {"x" * 200_000 + ".lora_A.weight": A}),
    "a name that is a path": lambda path: tensors(
        path.with_suffix(".safetensors"),
        {"../../../etc/passwd.lora_A.weight": A, "../../../etc/passwd.lora_B.weight": B},
    ),
    "a type that commands the terminal": lambda path: peft(path, {"peft_type": "\x1b[2J" * 999}, GOOD),
    "a config that is cut": lambda path: peft(path, '{"peft_type": "LORA', GOOD),
    "a config without end": lambda path: peft(path, "[" * 500_000, GOOD),
    "an alpha that is no number": lambda path: peft(path, {"peft_type": "LORA", "r": 2, "lora_alpha": "NaN"}, GOOD),
    "factors that do not fit": lambda path: peft(
        path, {"peft_type": "LORA", "r": 2, "lora_alpha": 2}, {**GOOD, f"base_model.model.{Q}.lora_B.weight": B.T}
    ),
    "numbers that are none": lambda path: peft(
        path, {"peft_type": "LORA", "r": 2, "lora_alpha": 2}, {**GOOD, f"base_model.model.{Q}.lora_B.weight": B / 0}
    ),
    "a layer that no model has": lambda path: tensors(
        path.with_suffix(".safetensors"),
        {f"{'deep.' * 50}q_proj.lora_A.weight": A, f"{'deep.' * 50}q_proj.lora_B.weight": B},
    ),
    "a product of terabytes": lambda path: tensors(
        path.with_suffix(".safetensors"),
        {
            f"{Q}.lokr_w1": torch.ones(1, 1),
            f"{Q}.lokr_w2_a": torch.ones(1_000_000, 1),
            f"{Q}.lokr_w2_b": torch.ones(1, 1_000_000),
        },
    ),
}
COMMANDS = {
    "export": ("export", "{adapter}", "--to", "peft", "--output", "out"),
    "merge": ("merge", "{adapter}", "--output", "out"),
    "inspect": ("inspect", "{adapter}"),
    "generate": ("generate", "{adapter}", "--prompt", "x", "--duration", "1", "--output", "out.wav"),
    "train": ("train", "--init-from", "{adapter}", "--dataset-dir", "songs", "--output-dir", "out", "--yes"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_adapter_is_a_clear_line_and_nothing_is_done(
    case, command, tmp_path, monkeypatch, capsys, checkpoint_root, golden
):
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    HOSTILE[case](tmp_path / "adapter")
    (tmp_path / "songs").symlink_to(golden / "preprocessed_fp32")
    (path,) = (entry for entry in tmp_path.iterdir() if entry.name.startswith("adapter"))
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(adapter=path) for word in COMMANDS[command]]
    if command == "generate":
        words[1:2] = ["--adapter", str(path)]
    model = ["--checkpoint-dir", str(checkpoint_root), "--model", "base", "--plain"]
    assert cli.main([*words, *model]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err.strip().splitlines()
    assert 1 <= len(said) <= 2
    assert all(len(line) < 700 and line.isprintable() and line.endswith(".") for line in said)
    assert path.name in said[0]
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before
