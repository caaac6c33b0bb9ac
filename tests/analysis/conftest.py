"""Three tiny songs, and settings that estimate on them."""

import pytest
import torch

from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import EstimateSettings


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    """Three songs of different lengths as preprocessing writes them, with random content."""
    folder = tmp_path_factory.mktemp("dataset")
    for seed, (name, frames) in enumerate({"a": 24, "b": 17, "c": 30}.items()):
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(frames, 16, generator=generator)
        sample = {
            "target_latents": latents,
            "attention_mask": torch.ones(frames),
            "encoder_hidden_states": torch.randn(6, 32, generator=generator),
            "encoder_attention_mask": torch.ones(6, dtype=torch.bool),
            "context_latents": torch.cat([0.1 * latents, torch.ones_like(latents)], dim=1),
            "metadata": {},
        }
        torch.save(sample, folder / f"{name}.pt")
    return folder


@pytest.fixture
def settings_for(tmp_path, checkpoint_root, dataset_dir):
    """Build settings for eight batches with the toy base model; arguments change them."""

    def build(**changes) -> EstimateSettings:
        values = {
            "checkpoint_dir": checkpoint_root,
            "model": "acestep-v15-base",
            "dataset_dir": dataset_dir,
            "device": "cpu",
            "estimate_batches": 8,
            "output": tmp_path / "estimate.json",
        }
        return resolve(EstimateSettings, [Layer("test", values | changes)]).settings

    return build
