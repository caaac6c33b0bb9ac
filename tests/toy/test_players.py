"""Other libraries hear the adapter that we saved: no more, no less."""

import pytest
import torch

from woodshed.adapters.files import load_adapter
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.targets import decoder_linear_shapes
from woodshed.models.checkpoints import choose_model
from woodshed.models.load import load_decoder
from woodshed.toy.players import original_tree, velocity_through_diffusers, velocity_through_peft

TARGETS = ["layers.0.self_attn.q_proj", "layers.1.cross_attn.o_proj", "layers.3.mlp.down_proj"]
PLAYERS = pytest.mark.parametrize(
    "play", [velocity_through_peft, velocity_through_diffusers], ids=["PEFT", "diffusers"]
)


@pytest.fixture
def make_decoder(toy_root):
    return lambda: load_decoder(choose_model(toy_root, "base"), dtype=torch.float32, device="cpu")


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([0.4])
    return {
        "hidden_states": torch.randn(1, 9, 8, generator=generator),
        "timestep": t,
        "timestep_r": t,
        "encoder_hidden_states": torch.randn(1, 5, 64, generator=generator),
        "context_latents": torch.randn(1, 9, 16, generator=generator),
    }


@pytest.fixture
def save(make_decoder, tmp_path):
    """Save a LoRA whose second factors hold numbers of a given size; return its folder."""

    def call(size):
        adapter = attach_lora(make_decoder(), TARGETS, rank=2, alpha=4.0, dropout=0.0, bias="none")
        generator = torch.Generator().manual_seed(2)
        for name, parameter in adapter.trainable_parameters().items():
            if "lora_B" in name:
                parameter.data = size * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path / f"size {size}"
        folder.mkdir()
        adapter.save(folder, {})
        return folder

    return call


@torch.no_grad()
@PLAYERS
def test_a_player_gives_the_velocity_that_we_give(make_decoder, inputs, save, play):
    folder = save(0.5)
    ours = make_decoder()
    load_adapter(ours, folder)
    expected, base = ours(**inputs).sample, make_decoder()(**inputs).sample
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(play(make_decoder(), folder, inputs), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@PLAYERS
def test_a_player_tells_one_adapter_from_another(make_decoder, inputs, save, play):
    """A player that ignored the file would give the same velocity twice."""
    one, other = (play(make_decoder(), save(size), inputs) for size in (0.5, 1.0))
    assert (one - other).abs().max() > 0.05


def test_the_tree_has_the_original_names(make_decoder, toy_root):
    shapes = decoder_linear_shapes(choose_model(toy_root, "base").config)
    tree = original_tree(make_decoder())
    leaves = {name: module for name, module in tree.named_modules() if hasattr(module, "weight")}
    assert {name: tuple(leaves[name].weight.shape) for name in shapes} == shapes
    assert {"proj_in.1", "proj_out.1"} <= leaves.keys()
    assert not [name for name in leaves if "to_q" in name]
