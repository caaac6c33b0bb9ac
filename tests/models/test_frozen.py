"""Frozen layers in fewer bits: near the full ones, nothing full kept, the same under the compiler and autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from woodshed.errors import UserError
from woodshed.models import frozen
from woodshed.models.checkpoints import read_checkpoint
from woodshed.models.frozen import BITS, FrozenLinear, pack, require_base_precision, unpack
from woodshed.models.load import load_decoder

KINDS = list(BITS)
ERRORS = {"bf16": 0.002, "int8": 0.01, "fp8": 0.03, "nf4": 0.1}
"""How far a normal matrix lies from its packed self. Source: half a step over the root of 3, roughly."""


@pytest.fixture
def weight():
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(1))


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_weight_is_as_near_as_its_bits_allow(weight, kind):
    packed = pack(weight, kind)
    found = unpack(packed, kind, (96, 128), torch.float32)
    assert 0 < distance(found, weight) < ERRORS[kind]
    held = sum(tensor.numel() * tensor.element_size() for tensor in packed)
    assert held <= weight.numel() * BITS[kind] / 8 + 4 * len(weight)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_row_keeps_its_largest_number_and_a_row_of_zeros_stays_so(weight, kind):
    weight[3], weight[4, 7] = 0, 50
    found = unpack(pack(weight, kind), kind, (96, 128), torch.float32)
    assert torch.allclose(found.abs().amax(1), weight.abs().amax(1), rtol=1e-6)
    assert not found[3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_and_its_gradient_are_those_of_the_weight_that_it_shows(weight, kind):
    layer = FrozenLinear(weight, nn.Parameter(torch.ones(96)), kind)
    assert list(layer.state_dict()) == ["bias"]  # codes are no part of a checkpoint
    x = torch.randn(2, 5, 128, requires_grad=True)
    expected = F.linear(x, layer.weight, layer.bias)
    found = layer(x)
    assert torch.allclose(found, expected, atol=1e-5)
    up = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(expected, x, up)
    found.backward(up)
    assert torch.allclose(x.grad, gradient, atol=1e-5)
    assert torch.allclose(layer.bias.grad, up.sum((0, 1)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_full_is_kept_for_the_backward_pass(weight, kind):
    layer, kept = FrozenLinear(weight.bfloat16(), None, kind), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True))
    assert {tensor.data_ptr() for tensor in kept} == {layer.codes.data_ptr(), layer.scales.data_ptr()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_compiler_and_autocast_change_nothing(weight, kind):
    layer = FrozenLinear(weight.bfloat16(), None, kind)
    x = torch.randn(4, 128, requires_grad=True)

    def run(layer, x):
        return layer(x) * 2

    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        plain = run(layer, x)
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)(layer, x)
    assert plain.dtype == torch.bfloat16
    assert torch.equal(plain, compiled)
    gradients = [torch.autograd.grad(output.float().sum(), x)[0] for output in (plain, compiled)]
    assert torch.equal(*gradients)


def test_packing_four_bits_needs_its_package(monkeypatch):
    monkeypatch.setattr(frozen, "has_nf4", lambda: False)
    with pytest.raises(UserError, match=r"pip install \"woodshed\[8bit\]\""):
        require_base_precision("nf4")
    require_base_precision("int8")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_only_the_blocks_of_a_decoder_are_packed_and_it_computes_nearly_the_same(checkpoint_root, kind):
    checkpoint = read_checkpoint(checkpoint_root / "acestep-v15-base")
    whole, packed = (load_decoder(checkpoint, dtype=torch.float32, device="cpu", packed=p) for p in (None, kind))
    names = [name for name, module in packed.named_modules() if isinstance(module, FrozenLinear)]
    assert names == [n for n, m in whole.named_modules() if isinstance(m, nn.Linear) and n.startswith("layers.")]
    assert not any(parameter.is_meta for parameter in packed.parameters())
    generator = torch.Generator().manual_seed(5)
    channels, width = checkpoint.config.latent_channels, checkpoint.config.condition_width
    inputs = {
        "hidden_states": torch.randn(1, 40, channels, generator=generator),
        "timestep": torch.tensor([0.4]),
        "timestep_r": torch.tensor([0.4]),
        "encoder_hidden_states": torch.randn(1, 9, width, generator=generator),
        "context_latents": torch.randn(1, 40, 2 * channels, generator=generator),
    }
    with torch.no_grad():
        near, exact = packed(**inputs).sample, whole(**inputs).sample
    assert 0 < distance(near, exact) < 2 * ERRORS[kind]
