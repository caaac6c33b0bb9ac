"""Every variant in the golden data, and folders that tests may spoil."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from woodshed.models.checkpoints import Checkpoint, choose_model, find_checkpoints

VARIANTS = ("base", "sft", "turbo", "xl-base", "xl-turbo")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def checkpoint(variant: str, checkpoint_root: Path) -> Checkpoint:
    """Each variant in turn."""
    return choose_model(find_checkpoints(checkpoint_root), variant)


@pytest.fixture
def base(checkpoint_root: Path) -> Checkpoint:
    return choose_model(find_checkpoints(checkpoint_root), "base")


@pytest.fixture
def own_root(checkpoint_root: Path, tmp_path: Path) -> Path:
    """A copy of base, xl-turbo, VAE and text encoder that a test may spoil."""
    root = tmp_path / "checkpoints"
    for name in ("acestep-v15-base", "acestep-v15-xl-turbo", "vae", "Qwen3-Embedding-0.6B"):
        shutil.copytree(checkpoint_root / name, root / name)
    return root


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Change fields of a folder's config.json; a field set to ... is removed."""

    def edit(folder: Path, **changes: object) -> None:
        path = folder / "config.json"
        fields = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))

    return edit


@pytest.fixture
def assert_equal() -> Callable[..., None]:
    """Compare with a reference, relative to its largest value."""

    def check(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
        assert actual.shape == expected.shape
        assert torch.isfinite(actual).all()
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()

    return check


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Read a safetensors file, let a function change its tensors in place, and write it back."""

    def change_file(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return change_file
