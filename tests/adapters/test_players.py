"""What we save, loaded by the real tools: PEFT, diffusers, LyCORIS, and ACE-Step's rule for LoKr rebuilt from them.

For every file: the effective weight of each adapted layer is the trained one (relative 1e-5, and no factor of two:
projection ratio 1), and all other weights are untouched.
"""

import itertools
import json

import pytest
import torch
from diffusers.loaders.lora_pipeline import AceStepLoraLoaderMixin
from lycoris import create_lycoris, create_lycoris_from_weights
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from woodshed.adapters.lokr import LokrSettings, attach_lokr
from woodshed.adapters.lora import attach_lora
from woodshed.models.keys import diffusers_to_original, original_to_diffusers

LOKR = [
    LokrSettings(linear_dim=dim, linear_alpha=3.0, factor=factor, decompose_both=both, use_scalar=scalar)
    for dim, factor, both, scalar in itertools.product((2, 64), (-1, 2), (False, True), (False, True))
]


@torch.no_grad()
def effective_weights(root):
    """Return W of every linear layer by original name, read off from what the layer does to the unit vectors."""
    weights = {}
    for name, module in root.named_modules():
        is_adapter = any(part in name for part in ("lora_", "base_layer", "lycoris"))
        if is_adapter or not hasattr(module, "in_features"):
            continue
        bias = torch.zeros(0) if module.bias is None else module.bias
        kept = bias.clone()
        bias.zero_()
        weights[diffusers_to_original(name.removeprefix("base_model.model."))] = module(torch.eye(module.in_features)).T
        bias.copy_(kept)
    return weights


def assert_same_change(adapter, before, after):
    """Compare what a player made of the file with what was trained."""
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= set(adapter.modules)
    for name in adapter.modules:
        change, trained = after[name] - before[name], adapter.effective_delta(name)
        assert (change - trained).abs().max() < 1e-5 * trained.abs().max()
        assert (change * trained).sum() / trained.square().sum() == pytest.approx(1, abs=1e-4)


@pytest.fixture(params=[(4, 6.0), (2, 0.5), (3, 12.0)], ids=lambda sizes: f"rank {sizes[0]} alpha {sizes[1]}")
def lora(request, make_decoder, targets, train_a_little):
    rank, alpha = request.param
    adapter = attach_lora(make_decoder(), targets, rank=rank, alpha=alpha, dropout=0.1, bias="none")
    train_a_little(adapter)
    return adapter


def test_peft_loads_our_folder_onto_the_original_modules(lora, make_decoder, original_tree, tmp_path):
    lora.save(tmp_path, {})
    root = original_tree(make_decoder())
    before = effective_weights(root)
    model = PeftModel.from_pretrained(root, tmp_path)
    assert_same_change(lora, before, effective_weights(model))


@pytest.fixture
def load_with_diffusers(make_decoder):
    def load(folder):
        class Pipeline(AceStepLoraLoaderMixin):
            transformer = make_decoder()
            components = {"transformer": transformer}  # noqa: RUF012 - as diffusers reads it
            hf_device_map = None

        before = effective_weights(Pipeline.transformer)
        Pipeline().load_lora_weights(str(folder))
        return before, effective_weights(Pipeline.transformer)

    return load


def test_diffusers_loads_our_folder(lora, load_with_diffusers, tmp_path):
    lora.save(tmp_path, {})
    assert_same_change(lora, *load_with_diffusers(tmp_path))
    assert lora.notices == ()


@pytest.mark.parametrize("target", ["layers.0.self_attn.v_proj", "layers.0.mlp.up_proj"])
def test_diffusers_ignores_an_adapter_without_q_and_k_and_we_say_so(
    make_decoder, train_a_little, load_with_diffusers, tmp_path, target
):
    adapter = attach_lora(make_decoder(), [target], rank=4, alpha=6.0, dropout=0.0, bias="none")
    train_a_little(adapter)
    adapter.save(tmp_path, {})
    before, after = load_with_diffusers(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [notice.split(":")[0] for notice in adapter.notices] == ["diffusers will ignore this adapter"]


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_peft_loads_trained_biases(make_decoder, targets, train_a_little, original_tree, tmp_path, bias):
    adapter = attach_lora(make_decoder(), targets, rank=4, alpha=6.0, dropout=0.0, bias=bias)
    train_a_little(adapter)
    adapter.save(tmp_path, {})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["bias"] == bias
    root = original_tree(make_decoder())
    before = effective_weights(root)
    model = PeftModel.from_pretrained(root, tmp_path)
    assert_same_change(adapter, before, effective_weights(model))
    found = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in model.named_parameters()
        if name.endswith(".bias")
    }
    original = {name: value for name, value in original_tree(make_decoder()).named_parameters() if "bias" in name}
    assert len(found) == len(original) == 9
    for name, value in found.items():
        assert torch.equal(value, adapter.biases.parameters.get(name, original[name]))
    assert len(adapter.biases.parameters) == (9 if bias == "all" else 1)


@pytest.mark.parametrize("weight_decompose", [False, True])
@pytest.mark.parametrize("settings", LOKR, ids=str)
def test_lycoris_loads_our_file_onto_the_original_modules(
    make_decoder, targets, train_a_little, original_tree, tmp_path, settings, weight_decompose
):
    settings = LokrSettings(**(vars(settings) | {"weight_decompose": weight_decompose}))
    adapter = attach_lokr(make_decoder(), targets, settings, bias="all")
    train_a_little(adapter)
    adapter.save(tmp_path, {})
    root = original_tree(make_decoder())
    before = effective_weights(root)
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / "lokr_weights.safetensors"), root)
    assert len(network.loras) == len(targets)
    network.apply_to()
    assert_same_change(adapter, before, effective_weights(root))


@pytest.mark.parametrize("weight_decompose", [False, True])
@pytest.mark.parametrize("settings", LOKR, ids=str)
def test_what_lycoris_loads_gives_the_velocity_of_the_trained_decoder(
    make_decoder, targets, inputs, train_a_little, original_tree, tmp_path, settings, weight_decompose
):
    settings = LokrSettings(**(vars(settings) | {"weight_decompose": weight_decompose}))
    trained, listener = make_decoder(), make_decoder()
    base = listener(**inputs).sample
    adapter = attach_lokr(trained, targets, settings, bias="none")
    train_a_little(adapter)
    adapter.save(tmp_path, {})
    root = original_tree(listener)
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / "lokr_weights.safetensors"), root)
    network.apply_to()
    for name, weight in effective_weights(root).items():
        listener.get_submodule(original_to_diffusers(name)).weight.data = weight
    velocity = trained(**inputs).sample
    assert (velocity - base).abs().max() > 0.01
    torch.testing.assert_close(listener(**inputs).sample, velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", LOKR, ids=str)
def test_ace_steps_own_loader_rule_gives_the_same_weights(
    make_decoder, targets, train_a_little, original_tree, tmp_path, settings
):
    """It builds a LoKr with the header's settings on every linear layer, and loads what it finds without complaint."""
    adapter = attach_lokr(make_decoder(), targets, settings, bias="none")
    train_a_little(adapter)
    adapter.save(tmp_path, {})
    path = tmp_path / "lokr_weights.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["lokr_config"])
    root = original_tree(make_decoder())
    before = effective_weights(root)
    dim, alpha = config.pop("linear_dim"), config.pop("linear_alpha")
    del config["target_modules"]
    network = create_lycoris(root, 1.0, linear_dim=dim, linear_alpha=alpha, algo="lokr", **config)
    network.apply_to()
    network.load_state_dict(load_file(path), strict=False)
    linears = {name for name, module in root.named_modules() if isinstance(module, nn.Linear)}
    assert {layer.lora_name for layer in network.loras} >= {"lycoris_" + name.replace(".", "_") for name in linears}
    assert_same_change(adapter, before, effective_weights(root))
