import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from woodshed.adapters.adapter import Adapter
from woodshed.adapters.targets import linear_shapes, resolve_targets
from woodshed.models.checkpoints import find_checkpoints
from woodshed.models.config import ModelConfig
from woodshed.models.decoder import Decoder, build_decoder
from woodshed.models.keys import diffusers_to_original, original_to_diffusers


@pytest.fixture(scope="session")
def configs(checkpoint_root: Path) -> dict[str, ModelConfig]:
    return {checkpoint.name: checkpoint.config for checkpoint in find_checkpoints(checkpoint_root).models}


@pytest.fixture(scope="session")
def config(configs: dict[str, ModelConfig]) -> ModelConfig:
    """The toy base model: 4 layers, width 32, 4 query heads and 2 key-value heads of 8, MLP of 64."""
    return configs["acestep-v15-base"]


@pytest.fixture
def make_decoder(config: ModelConfig) -> Callable[..., Decoder]:
    """Build a two-layer decoder with random weights that do not depend on the test's random state."""

    def make(dtype: torch.dtype = torch.float32, layers: int = 2) -> Decoder:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build_decoder(config.model_copy(update={"num_hidden_layers": layers})).to(dtype).eval()

    return make


@pytest.fixture
def targets(make_decoder: Callable[..., Decoder]) -> list[str]:
    """Attention with unequal q and k sizes, an MLP matrix wider than high, and a layer with a bias."""
    words = "q_proj k_proj o_proj layers.1.self_attn.v_proj layers.0.mlp.down_proj time_embed.linear_1"
    return resolve_targets(linear_shapes(make_decoder()), attention_type="both", target_modules=words)


@pytest.fixture
def inputs(config: ModelConfig) -> dict[str, Tensor]:
    """What the decoder's forward takes, for two songs of 11 frames and 5 condition tokens."""
    generator = torch.Generator().manual_seed(1)
    channels, width = config.latent_channels, config.condition_width
    t = torch.tensor([0.3, 0.9])
    return {
        "hidden_states": torch.randn(2, 11, channels, generator=generator),
        "timestep": t,
        "timestep_r": t,
        "encoder_hidden_states": torch.randn(2, 5, width, generator=generator),
        "context_latents": torch.randn(2, 11, 2 * channels, generator=generator),
    }


@pytest.fixture
def train_a_little() -> Callable[[Adapter], None]:
    """Give every trained tensor values unlike its first ones, as training would."""

    @torch.no_grad()
    def train(adapter: Adapter) -> None:
        generator = torch.Generator().manual_seed(2)
        for parameter in adapter.trainable_parameters().values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise + 0.1 if parameter.dim() else 0.7)

    return train


@pytest.fixture
def original_tree() -> Callable[[Decoder], nn.Module]:
    """Copy a decoder's layers into a tree of modules with the original names, as ACE-Step's own code has them."""

    def build(decoder: Decoder) -> nn.Module:
        root = nn.Module()
        for name, module in decoder.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
                *path, leaf = diffusers_to_original(name).split(".")
                parent = root
                for part in path:
                    if part not in dict(parent.named_children()):
                        parent.add_module(part, nn.Module())
                    parent = parent.get_submodule(part)
                parent.add_module(leaf, copy.deepcopy(module))
        return root

    return build


@pytest.fixture
def merged_velocity(make_decoder: Callable[..., Decoder], inputs: dict[str, Tensor]) -> Callable[[Adapter], Tensor]:
    """Compute the velocity of a decoder without adapter whose weights and biases hold what the adapter changes."""

    @torch.no_grad()
    def compute(adapter: Adapter) -> Tensor:
        decoder = make_decoder()
        for module in adapter.modules:
            decoder.get_submodule(original_to_diffusers(module)).weight += adapter.effective_delta(module)
        for name, bias in adapter.biases.parameters.items():
            decoder.get_parameter(original_to_diffusers(name)).copy_(bias)
        return decoder(**inputs).sample

    return compute
