"""Fixtures for every room: the reference numbers, and a quiet machine."""

import os
from collections.abc import Callable
from pathlib import Path

# Set before transformers and diffusers are imported: a test that reaches for the network fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

torch.set_num_threads(min(torch.get_num_threads(), 2))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers, see its README."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def checkpoint_root(golden: Path) -> Path:
    """A checkpoint root in the original layout, at toy size, with all five variants."""
    return golden / "checkpoints"


@pytest.fixture(scope="session")
def read_golden(golden: Path) -> Callable[[str], dict[str, Tensor]]:
    """Read one file of reference tensors by its name without the ending: `read_golden("dit_base")`."""
    return lambda name: load_file(golden / f"{name}.safetensors")
