import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed.adapters.files import load_adapter, save_adapter, verify_saved
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lora import attach_lora
from woodshed.errors import AdapterError
from woodshed.models.decoder import build_decoder
from woodshed.models.keys import original_to_diffusers

WHOLE = LokrSettings(linear_dim=64, linear_alpha=3.0)
LOW_RANK = LokrSettings(linear_dim=2, linear_alpha=3.0, factor=2, decompose_both=True, use_scalar=True)
DECOMPOSED = LokrSettings(linear_dim=2, linear_alpha=3.0, weight_decompose=True)
FAMILIES = {
    "lora": lambda decoder, targets, bias: attach_lora(decoder, targets, rank=3, alpha=5.0, dropout=0.2, bias=bias),
    "lokr whole": lambda decoder, targets, bias: attach_lokr(decoder, targets, WHOLE, bias=bias),
    "lokr low-rank": lambda decoder, targets, bias: attach_lokr(decoder, targets, LOW_RANK, bias=bias),
    "lokr decomposed": lambda decoder, targets, bias: attach_lokr(decoder, targets, DECOMPOSED, bias=bias),
}


@pytest.fixture(params=FAMILIES)
def attach(request):
    return FAMILIES[request.param]


@pytest.fixture(params=["none", "all"])
def trained(request, attach, make_decoder, targets, train_a_little):
    """A decoder with a trained adapter, and the adapter."""
    decoder = make_decoder()
    adapter = attach(decoder, targets, request.param)
    train_a_little(adapter)
    return decoder, adapter


def rewrite(path, change):
    """Alter the tensors of a file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def weight_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_a_loaded_adapter_plays_as_the_trained_one(trained, make_decoder, inputs, tmp_path):
    decoder, adapter = trained
    report = save_adapter(adapter, tmp_path / "final", {})
    assert (report.modules, report.is_live) == (len(adapter.modules), True)
    assert report.max_relative_error < 1e-6
    listener = make_decoder()
    before = listener(**inputs).sample
    load_adapter(listener, tmp_path / "final")
    velocity = decoder.eval()(**inputs).sample
    assert (velocity - before).abs().max() > 0.1
    torch.testing.assert_close(listener(**inputs).sample, velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -1.0, 2.0])
def test_strength_multiplies_every_difference(trained, make_decoder, inputs, tmp_path, strength):
    _, adapter = trained
    save_adapter(adapter, tmp_path / "final", {})
    listener, base = make_decoder(), make_decoder()
    loaded = load_adapter(listener, tmp_path / "final", strength)
    for module in adapter.modules:
        torch.testing.assert_close(loaded.effective_delta(module), strength * adapter.effective_delta(module))
    biases = {name.replace(".base_layer", ""): value for name, value in listener.named_parameters()}
    for name, difference in adapter.biases.differences().items():
        found = biases[original_to_diffusers(name)] - base.get_parameter(original_to_diffusers(name))
        torch.testing.assert_close(found, strength * difference, rtol=1e-5, atol=1e-6)
    if strength == 0:
        torch.testing.assert_close(listener(**inputs).sample, base(**inputs).sample, rtol=1e-5, atol=1e-5)


def test_nothing_of_a_loaded_adapter_trains(trained, make_decoder, tmp_path):
    _, adapter = trained
    save_adapter(adapter, tmp_path / "final", {})
    decoder = make_decoder()
    load_adapter(decoder, tmp_path / "final")
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_ranks_may_differ_between_the_layers_of_a_lora(make_decoder, tmp_path):
    torch.manual_seed(3)
    sizes = {"layers.0.self_attn.q_proj": (2, 32), "layers.1.mlp.down_proj": (5, 32)}
    tensors = {}
    for name, (rank, out) in sizes.items():
        in_ = 64 if "mlp" in name else 32
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, in_)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 3}))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    adapter = load_adapter(make_decoder(), tmp_path)
    for name, (rank, _) in sizes.items():
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(adapter.effective_delta(name), 3 / rank * b @ a)


def test_an_untrained_adapter_is_reported_as_not_live(attach, make_decoder, targets, tmp_path):
    report = save_adapter(attach(make_decoder(), targets, "none"), tmp_path / "final", {})
    assert not report.is_live
    assert report.max_relative_error < 1e-5


def test_a_change_of_nothing_but_a_bias_is_live(make_decoder, targets, tmp_path):
    adapter = FAMILIES["lora"](make_decoder(), targets, "all")
    adapter.biases.parameters["proj_in.1.bias"].data[0] += 0.1
    assert save_adapter(adapter, tmp_path / "final", {}).is_live


def test_a_file_that_does_not_hold_what_was_trained_is_found_out(trained, tmp_path):
    _, adapter = trained
    folder = tmp_path / "final"
    save_adapter(adapter, folder, {})
    path = weight_file(folder)
    whole = path.read_bytes()
    for key, value in load_file(path).items():
        if key.endswith(".alpha") and value == 64:
            continue  # two whole factors have scale 1 whatever alpha says
        rewrite(path, lambda tensors, key=key: tensors[key].mul_(1.001))
        with pytest.raises(AdapterError, match="does not hold what was trained; the relative error is in"):
            verify_saved(adapter, folder)
        path.write_bytes(whole)
    assert verify_saved(adapter, folder).is_live


def test_a_scale_that_was_lost_is_found_out(make_decoder, targets, train_a_little, tmp_path):
    """The mistake of the field: alpha over rank written nowhere."""
    adapter = FAMILIES["lora"](make_decoder(), targets, "none")
    train_a_little(adapter)
    save_adapter(adapter, tmp_path / "final", {})
    adapter.scales = {module: 2 * scale for module, scale in adapter.scales.items()}
    with pytest.raises(AdapterError, match="relative error"):
        verify_saved(adapter, tmp_path / "final")


def test_a_file_without_one_of_the_layers_is_found_out(trained, tmp_path):
    _, adapter = trained
    save_adapter(adapter, tmp_path / "final", {})
    gone = adapter.modules[0]

    def drop(tensors):
        for key in [key for key in tensors if gone in key or gone.replace(".", "_") in key]:
            del tensors[key]

    rewrite(weight_file(tmp_path / "final"), drop)
    with pytest.raises(AdapterError, match="does not hold the layers that were trained"):
        verify_saved(adapter, tmp_path / "final")


def test_a_save_replaces_an_older_adapter_whole(trained, tmp_path):
    _, adapter = trained
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "leftover.safetensors").write_bytes(b"older")
    save_adapter(adapter, folder, {})
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_save_that_fails_leaves_the_older_adapter_and_nothing_else(trained, tmp_path):
    _, adapter = trained
    folder = tmp_path / "final"
    save_adapter(adapter, folder, {"take": 1})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        save_adapter(adapter, folder, {"take": object()})
    adapter.trainable_parameters()[
        f"{adapter.modules[0]}.{'lora_B.weight' if adapter.family == 'lora' else 'lokr_w1'}"
    ].data.fill_(torch.nan)
    with pytest.raises(AdapterError, match="no finite number"):
        save_adapter(adapter, folder, {"take": 2})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_an_adapter_for_another_model_is_refused_before_anything_changes(trained, configs, tmp_path):
    _, adapter = trained
    save_adapter(adapter, tmp_path / "final", {})
    config = configs["acestep-v15-base"]
    wider = build_decoder(config.model_copy(update={"hidden_size": 48, "num_hidden_layers": 1}))
    before = {name: id(value) for name, value in wider.named_parameters()}
    with pytest.raises(AdapterError) as caught:
        load_adapter(wider, tmp_path / "final")
    unknown, misfit = caught.value.problems
    assert "is for another model: this one has no " in unknown
    assert "layers" in unknown
    assert "is for another model: the shapes differ in " in misfit
    assert {name: id(value) for name, value in wider.named_parameters()} == before
    assert not any(module._forward_hooks for module in wider.modules())
