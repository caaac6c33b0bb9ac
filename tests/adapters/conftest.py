from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from woodshed.models.checkpoints import find_checkpoints
from woodshed.models.config import ModelConfig
from woodshed.models.decoder import Decoder, build_decoder


@pytest.fixture(scope="session")
def configs(checkpoint_root: Path) -> dict[str, ModelConfig]:
    return {checkpoint.name: checkpoint.config for checkpoint in find_checkpoints(checkpoint_root).models}


@pytest.fixture(scope="session")
def config(configs: dict[str, ModelConfig]) -> ModelConfig:
    """The toy base model: 4 layers, width 32, 4 query heads and 2 key-value heads of 8, MLP of 64."""
    return configs["acestep-v15-base"]


@pytest.fixture
def make_decoder(config: ModelConfig) -> Callable[..., Decoder]:
    """Build a decoder with random weights that do not depend on the test's random state."""

    def make(dtype: torch.dtype = torch.float32, seed: int = 0) -> Decoder:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_decoder(config).to(dtype)

    return make
