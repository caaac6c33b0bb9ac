import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed.adapters.changes import LowRank
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.saved import read_adapter
from woodshed.adapters.tensor_files import LARGEST_JSON
from woodshed.errors import AdapterError

Q = "base_model.model.layers.0.self_attn.q_proj"
FLAT = "lycoris_layers_0_self_attn_q_proj"
MODULE = "layers.0.self_attn.q_proj"


@pytest.fixture
def peft_folder(tmp_path):
    """Write a PEFT folder; every argument replaces a part of a good one."""

    def write(config=None, tensors=None):
        folder = tmp_path / "peft"
        folder.mkdir(exist_ok=True)
        good = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(good | (config or {})))
        a, b = torch.randn(4, 32), torch.randn(32, 4)
        tensors = tensors or {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
        copies = {name: value.clone() for name, value in tensors.items()}  # safetensors refuses shared memory
        save_file(copies, folder / "adapter_model.safetensors")
        return folder

    return write


@pytest.fixture
def lokr_file(tmp_path):
    """Write a LoKr file of the given tensors of one module."""

    def write(parts, name="style.safetensors"):
        path = tmp_path / name
        save_file({f"{FLAT}.{part}": value for part, value in parts.items()}, path)
        return path

    return write


def problems_of(path):
    with pytest.raises(AdapterError) as caught:
        read_adapter(path)
    return caught.value.problems


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 6 / 4),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / 2),
        ({"lora_alpha": 0.5, "r": 999}, 0.5 / 4),
        ({"lora_alpha": 4}, 1.0),
    ],
)
def test_any_peft_folder_is_read_at_its_own_scale(peft_folder, config, scale):
    folder = peft_folder(config)
    saved = read_adapter(folder)
    assert saved.family is LowRank
    tensors = load_file(folder / "adapter_model.safetensors")
    expected = scale * tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"]
    torch.testing.assert_close(saved.delta("layers.0.self_attn.q_proj", torch.zeros(32, 32)), expected)
    assert (saved.modules, saved.tensors, saved.recipe) == (["layers.0.self_attn.q_proj"], 2, {})


def test_names_with_and_without_prefix_and_adapter_name_are_understood(peft_folder):
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    tensors = {"condition_embedder.lora_A.default.weight": a, "condition_embedder.lora_B.default.weight": b}
    assert read_adapter(peft_folder(tensors=tensors)).modules == ["condition_embedder"]


def test_half_precision_files_are_read_as_float32(peft_folder):
    tensors = {f"{Q}.lora_A.weight": torch.randn(4, 32).half(), f"{Q}.lora_B.weight": torch.randn(32, 4).bfloat16()}
    saved = read_adapter(peft_folder(tensors=tensors))
    change = saved.changes[MODULE]
    assert change.a.dtype == change.b.dtype == torch.float32


def test_the_file_in_a_folder_means_the_folder(peft_folder):
    folder = peft_folder()
    for path in (folder, folder / "adapter_config.json", folder / "adapter_model.safetensors"):
        assert read_adapter(path).modules == ["layers.0.self_attn.q_proj"]


def test_a_lokr_is_found_as_a_folder_or_as_a_file_of_any_name(lokr_file, tmp_path):
    parts = {"lokr_w1": torch.randn(4, 4), "lokr_w2": torch.randn(8, 8), "alpha": torch.tensor(64.0)}
    named = lokr_file(parts, "lokr_weights.safetensors")
    for path in (lokr_file(parts), named, tmp_path):
        saved = read_adapter(path)
        assert saved.family is Kronecker
        assert saved.modules == [MODULE]
        assert saved.shape(MODULE) == (32, 32)


@pytest.mark.parametrize("first", ["whole", "low"])
@pytest.mark.parametrize("second", ["whole", "low"])
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_lokr_of_any_shape_is_scaled_as_its_players_scale_it(lokr_file, first, second, alpha):
    """alpha over the dimension of the second factor, else of the first; 1 when both are whole or no alpha is there."""
    whole = {"lokr_w1": torch.randn(4, 2), "lokr_w2": torch.randn(8, 16)}
    low = {
        "lokr_w1_a": torch.randn(4, 3),
        "lokr_w1_b": torch.randn(3, 2),
        "lokr_w2_a": torch.randn(8, 5),
        "lokr_w2_b": torch.randn(5, 16),
    }
    pick = {"whole": whole, "low": low}
    parts = {name: value for name, value in pick[first].items() if "w1" in name}
    parts |= {name: value for name, value in pick[second].items() if "w2" in name}
    w1 = whole["lokr_w1"].double() if first == "whole" else low["lokr_w1_a"].double() @ low["lokr_w1_b"].double()
    w2 = whole["lokr_w2"].double() if second == "whole" else low["lokr_w2_a"].double() @ low["lokr_w2_b"].double()
    dim = 5 if second == "low" else 3
    scale = 1.0 if alpha is None or first == second == "whole" else alpha / dim
    saved = read_adapter(lokr_file(parts | ({} if alpha is None else {"alpha": torch.tensor(alpha)})))
    assert saved.shape(MODULE) == (32, 32)
    torch.testing.assert_close(saved.delta(MODULE, torch.zeros(32, 32).double()), scale * torch.kron(w1, w2))


def test_a_recipe_is_read_from_both_families(make_decoder, targets, tmp_path):
    recipe = {"shift": 3.0, "settings": {"rank": 2}, "custom_tag": "Ängström"}
    lora = attach_lora(make_decoder(), targets, rank=2, alpha=1.0, dropout=0.0, bias="none")
    lokr = attach_lokr(make_decoder(), targets, LokrSettings(2, 1.0), bias="none")
    for adapter in (lora, lokr):
        folder = tmp_path / adapter.family
        folder.mkdir()
        adapter.save(folder, recipe)
        assert read_adapter(folder).recipe == recipe


def test_what_is_no_adapter_is_said_with_what_was_seen(tmp_path):
    (tmp_path / "notes.txt").write_text("hm")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({}))
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(
        f"There is no adapter at {tmp_path}, only adapter_model.bin, notes.txt. Give a folder with"
    )
    (problem,) = problems_of(tmp_path / "absent")
    assert problem.startswith(f"There is no adapter at {tmp_path / 'absent'}. Give a folder with")
    assert "is a pickle, which could run code" in problems_of(tmp_path / "adapter_model.bin")[0]
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    assert "adapter_model.bin is a pickle, which could run code" in problems_of(tmp_path)[0]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "is of PEFT type 'IA3'; LORA, LOKR, LOHA, OFT can be read."),
        ({"peft_type": None}, "is of PEFT type None; LORA, LOKR, LOHA, OFT can be read."),
        ({"lora_bias": True}, "has lora_bias set, which cannot be read."),
        ({"alpha_pattern": {"q_proj": "x"}}, "has an alpha_pattern that cannot be read: it must map"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "has an alpha_pattern that cannot be read: it must map"),
        ({"rank_pattern": [3]}, "has a rank_pattern that cannot be read: it must map"),
        ({"r": 0}, "has no usable r; got 0."),
        ({"lora_alpha": "6"}, "has no usable lora_alpha; got '6'."),
        ({"lora_alpha": None}, "has no usable lora_alpha; got None."),
        ({"lora_alpha": True}, "has no usable lora_alpha; got True."),
        ({"lora_alpha": float("nan")}, "has no usable lora_alpha; got nan."),
        ({"lora_alpha": 10**400}, f"has no usable lora_alpha; got 1{'0' * 47}...{'0' * 49}."),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(peft_folder, config, said):
    folder = peft_folder(config)
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{folder / 'adapter_config.json'} {said}")


def test_all_problems_of_a_config_are_told_at_once(peft_folder):
    assert len(problems_of(peft_folder({"lora_bias": True, "alpha_pattern": {"x": -1}, "lora_alpha": []}))) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"' + "x" * LARGEST_JSON + '"', "\udcff"])
def test_a_broken_config_is_one_clear_line(peft_folder, text):
    folder = peft_folder()
    (folder / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (problem,) = problems_of(folder)
    assert problem.startswith(str(folder / "adapter_config.json"))
    assert "\n" not in problem


BROKEN_FILES = {
    "empty": b"",
    "text": b"not a tensor in sight",
    "a pickle": pickle.dumps({"a": 1}),
    "a header that is longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"!!!!",
    "offsets outside the file": struct.pack("<Q", 58) + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}   ',
    "a recipe that is no JSON": struct.pack("<Q", 42) + b'{"__metadata__":{"woodshed":"[[[[[[[["}}  ',
}


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_broken_tensor_files_are_one_clear_line(peft_folder, tmp_path, content):
    folder = peft_folder()
    (folder / "adapter_model.safetensors").write_bytes(content)
    (tmp_path / "alone.safetensors").write_bytes(content)
    for path, file in ((folder, folder / "adapter_model.safetensors"), (tmp_path / "alone.safetensors",) * 2):
        (problem,) = problems_of(path)
        assert problem.startswith(f"{file} cannot be read: ")


def test_a_file_cut_short_is_refused(peft_folder):
    folder = peft_folder()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "cannot be read" in problems_of(folder)[0]


def test_a_missing_weight_file_is_refused(peft_folder):
    folder = peft_folder()
    (folder / "adapter_model.safetensors").unlink()
    assert "cannot be read" in problems_of(folder)[0]


A, B = torch.randn(4, 32), torch.randn(32, 4)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{Q}.lora_A.weight": A}, "is damaged: tensors of layers.0.self_attn.q_proj are missing or do not fit"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B[:, :3]}, "are missing or do not fit together."),
        ({f"{Q}.lora_A.weight": A[0], f"{Q}.lora_B.weight": B}, "are missing or do not fit together."),
        ({f"{Q}.lora_A.weight": A[:0], f"{Q}.lora_B.weight": B[:, :0]}, "are missing or do not fit together."),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, "x.hada_w9_a": A}, "no part of such an adapter: x.hada_w9"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, "x.hada_w1_a": A}, "damaged: tensors of x are missing"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.alpha": B[0, :1]}, "are missing or do not fit"),
        (
            {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B / 0},
            "q_proj.lora_B.weight holds what is no finite number.",
        ),
        ({f"{Q}.lora_A.weight": A.int(), f"{Q}.lora_B.weight": B}, "q_proj.lora_A.weight holds what is no finite"),
        ({f"{Q}.bias": B[0]}, "adapts no layer."),
    ],
)
def test_lora_tensors_that_make_no_sense_are_refused(peft_folder, tensors, said):
    assert said in " ".join(problems_of(peft_folder(tensors=tensors)))


W1, W2 = torch.randn(4, 2), torch.randn(8, 16)


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": W1},
        {"lokr_w1": W1, "lokr_w2_a": W2},
        {"lokr_w1": W1, "lokr_w2": W2, "lokr_w2_a": W2},
        {"lokr_w1": W1, "lokr_w2_a": W2, "lokr_w2_b": W2},
        {"lokr_w1": W1[0], "lokr_w2": W2},
        {"lokr_w1": W1, "lokr_w2": W2, "alpha": W1},
        {"lokr_w1": W1, "lokr_w2": W2, "dora_scale": torch.ones(1, 32)},
        {"lokr_w1": W1, "lokr_w2": W2, "dora_scale": torch.ones(31)},
        {"lokr_w1": W1, "lokr_w2": W2, "lokr_t2": W2},
        {"lokr_w1": W1, "lokr_w2": W2 * float("nan")},
        {"hada_w1_a": W1},
    ],
)
def test_lokr_tensors_that_make_no_sense_are_refused(lokr_file, parts):
    path = lokr_file({name: value.clone() for name, value in parts.items()})
    assert all(problem.startswith(str(path)) for problem in problems_of(path))


def test_names_that_look_like_paths_are_only_names(tmp_path):
    path = tmp_path / "evil.safetensors"
    save_file({"lycoris_/../../etc/passwd.lokr_w1": W1}, path)
    assert "no part of such an adapter" in problems_of(path)[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.safetensors"]


def test_layers_larger_than_any_models_are_refused_without_multiplying_them_out(lokr_file):
    """Two thin matrices of a few megabytes would make one of terabytes."""
    thin = {"lokr_w1": torch.ones(1, 1), "lokr_w2_a": torch.ones(1_000_000, 1), "lokr_w2_b": torch.ones(1, 1_000_000)}
    (problem,) = problems_of(lokr_file(thin))
    assert problem.endswith(f"is for no ACE-Step model: it has layers of {MODULE} 1000000x1000000.")
    large = {"lokr_w1": torch.ones(1, 1), "lokr_w2_a": torch.ones(20_000, 1), "lokr_w2_b": torch.ones(1, 10_000)}
    assert read_adapter(lokr_file(large)).shape(MODULE) == (20_000, 10_000)
