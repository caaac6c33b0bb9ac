"""Settings that make a short song with a toy model, and adapters that change it."""

import pytest
import torch

from woodshed.adapters.files import save_adapter
from woodshed.adapters.lokr import LokrSettings, attach_lokr
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.oft import attach_oft
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_decoder
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import GenerateSettings, TrainSettings

TARGETS = [f"layers.{layer}.cross_attn.{part}_proj" for layer in range(4) for part in "qv"]
LOKR = LokrSettings(linear_dim=4, linear_alpha=4, factor=4)


@pytest.fixture
def settings_for(tmp_path, checkpoint_root):
    """Build settings for two steps of half a second on the toy base model; arguments change them."""

    def build(**changes) -> GenerateSettings:
        values = {
            "checkpoint_dir": checkpoint_root,
            "model": "acestep-v15-base",
            "device": "cpu",
            "prompt": "warm funk",
            "duration": 0.5,
            "steps": 2,
            "output": tmp_path / "song.wav",
        }
        return resolve(GenerateSettings, [Layer("test", values | changes)]).settings

    return build


@pytest.fixture(scope="session")
def adapter_of(checkpoint_root, tmp_path_factory):
    """Save an adapter with large random weights and a recipe: `adapter_of("lora", custom_tag="zz")`."""
    root = tmp_path_factory.mktemp("adapters")
    checkpoint = choose_model(find_checkpoints(checkpoint_root), "base")

    def make(family="lora", name="style", **recipe):
        decoder = load_decoder(checkpoint, dtype=torch.float32, device="cpu")
        if family == "lora":
            adapter = attach_lora(decoder, TARGETS, rank=2, alpha=4, dropout=0.0, bias="none")
        elif family == "oft":
            adapter = attach_oft(decoder, TARGETS, block_size=8)
        else:
            switches = LOKR if family == "lokr" else LokrSettings(4, 4, 4, weight_decompose=True)
            adapter = attach_lokr(decoder, TARGETS, switches, bias="none")
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in adapter.trainable_parameters().values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        folder = root / f"{len(list(root.iterdir()))}" / name
        save_adapter(adapter, folder, recipe)
        return folder

    return make


@pytest.fixture
def training_settings_for(tmp_path, checkpoint_root):
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
