"""Gradient norms equal the original's, and no gradient is kept to get them."""

import json

import pytest
import torch

from woodshed.adapters.targets import linear_shapes
from woodshed.analysis.gradients import GradientNorms
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.keys import original_to_diffusers
from woodshed.models.load import load_decoder
from woodshed.training.flow import flow_matching_loss, mix_with_noise

CASE = "train/b2_T40/"


@pytest.fixture
def decoder(checkpoint_root):
    checkpoint = choose_model(find_checkpoints(checkpoint_root), "base")
    return load_decoder(checkpoint, dtype=torch.float32, device="cpu")


def weights_of(decoder):
    names = [name for name in linear_shapes(decoder) if name.startswith("layers.")]
    return {name: decoder.get_submodule(original_to_diffusers(name)).weight for name in names}


def backward(decoder, golden):
    """Compute the original's training loss on its own batch."""
    given = {name: golden[CASE + name] for name in ("x0", "noise", "t", "encoder_hidden_states", "context_latents")}
    velocity = decoder(
        mix_with_noise(given["x0"], given["noise"], given["t"]),
        timestep=given["t"],
        timestep_r=given["t"],
        encoder_hidden_states=given["encoder_hidden_states"],
        context_latents=given["context_latents"],
    ).sample
    flow_matching_loss(velocity, given["x0"], given["noise"], None).mean().backward()


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_norms_equal_the_originals(decoder, golden, read_golden, is_checkpointed):
    if is_checkpointed:
        decoder.enable_gradient_checkpointing()
    norms = GradientNorms(weights_of(decoder))
    backward(decoder, read_golden("dit_base"))
    expected = json.loads((golden / "dit_base.json").read_text())["cases"][CASE]["grad_norms"]
    found = norms.collect()
    assert len(found) == 44
    for name, norm in found.items():
        assert norm == pytest.approx(expected[f"{name}.weight"], rel=1e-4), name


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_never_more_than_one_gradient_is_alive(decoder, read_golden, is_checkpointed):
    if is_checkpointed:
        decoder.enable_gradient_checkpointing()
    weights = weights_of(decoder)
    alive = []

    def count(_):
        alive.append(sum(parameter.grad is not None for parameter in decoder.parameters()))

    for weight in weights.values():
        weight.requires_grad_(True)
        weight.register_post_accumulate_grad_hook(count)  # before the one that frees
    norms = GradientNorms(weights)
    backward(decoder, read_golden("dit_base"))
    norms.collect()
    assert alive == [1] * len(weights)
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_norms_are_of_the_last_backward_pass_and_zero_where_no_gradient_came(decoder, read_golden):
    weights = weights_of(decoder)
    unused = torch.nn.Parameter(torch.ones(2, 2))
    norms = GradientNorms(weights | {"unused": unused})
    backward(decoder, read_golden("dit_base"))
    first = norms.collect()
    backward(decoder, read_golden("dit_base"))
    assert norms.collect() == first
    assert first["unused"] == 0
    assert set(norms.collect().values()) == {0.0}


def test_closing_leaves_the_weights_as_they_were(decoder, read_golden):
    weights = weights_of(decoder)
    norms = GradientNorms(weights)
    norms.close()
    assert not any(weight.requires_grad for weight in weights.values())
    weights["layers.0.self_attn.q_proj"].requires_grad_(True)
    backward(decoder, read_golden("dit_base"))
    assert weights["layers.0.self_attn.q_proj"].grad is not None
