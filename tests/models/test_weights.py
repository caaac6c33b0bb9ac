from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from woodshed.errors import CheckpointError
from woodshed.models.weights import StoredTensor, check_tensors, fill_module, read_headers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)}, path)
    return path


def test_headers_say_name_shape_and_type(file: Path):
    assert read_headers([file]) == {
        "weight": StoredTensor(file, "weight", (2, 3), "F32"),
        "bias": StoredTensor(file, "bias", (2,), "BF16"),
    }


def test_headers_of_shards_are_put_together(file: Path, tmp_path: Path):
    save_file({"more": torch.zeros(1)}, tmp_path / "second.safetensors")
    assert set(read_headers([file, tmp_path / "second.safetensors"])) == {"weight", "bias", "more"}


def test_every_unreadable_file_is_named(file: Path, tmp_path: Path):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError) as caught:
        read_headers([tmp_path / "junk.safetensors", file, tmp_path / "gone.safetensors"])
    junk, gone = caught.value.problems
    assert "junk.safetensors cannot be read" in junk
    assert "gone.safetensors cannot be read" in gone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tensor_is_read_in_the_precision_asked_for(file: Path, dtype):
    tensor = read_headers([file])["weight"].read(dtype=dtype)
    assert torch.equal(tensor, torch.arange(6, dtype=dtype).reshape(2, 3))


@pytest.mark.parametrize(
    ("shape", "is_vector"),
    [((), True), ((5,), True), ((1, 1, 5), True), ((1, 1), True), ((2, 5), False), ((2, 1, 5), False)],
)
def test_a_vector_has_one_long_side_at_most(shape, is_vector):
    assert StoredTensor(Path("file"), "name", shape, "F32").is_vector == is_vector


def test_what_fits_passes_and_what_does_not_is_told(file: Path):
    stored = read_headers([file])
    check_tensors("the toy", {"weight": (2, 3), "bias": (2,)}, stored)
    with pytest.raises(CheckpointError) as caught:
        check_tensors("the toy", {"weight": (3, 2), "scale": (1,)}, stored, unexpected=["bias"])
    assert caught.value.problems == (
        "In the toy, 1 tensor is missing: scale.",
        "In the toy, 1 tensor is unexpected: bias.",
        "In the toy, 1 tensor has another shape than config.json says: weight [2, 3] instead of [3, 2].",
    )


def test_a_filled_module_is_frozen_and_complete(file: Path):
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    fill_module(layer, read_headers([file]), dtype=torch.float32, device="cpu")
    assert layer.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert layer.bias.tolist() == [1, 1]
    assert not layer.weight.requires_grad
    assert not layer.training


def test_a_module_is_never_filled_in_part(file: Path):
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="bias"):
        fill_module(layer, {"weight": read_headers([file])["weight"]}, dtype=torch.float32, device="cpu")
