import itertools
import json
import subprocess
import sys

import pytest
import torch
from lycoris.modules.lokr import LokrModule
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from woodshed.adapters.lokr import LokrAdapter, attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings, LokrShape, describe_lokr
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.targets import linear_shapes
from woodshed.errors import AdapterError
from woodshed.models.keys import original_to_diffusers

FLAGS = ("decompose_both", "use_tucker", "use_scalar", "weight_decompose")
COMBINATIONS = [
    LokrSettings(linear_dim=dim, linear_alpha=3.0, factor=factor, **dict(zip(FLAGS, switches, strict=True)))
    for dim in (2, 64)
    for factor in (-1, 2)
    for switches in itertools.product((False, True), repeat=len(FLAGS))
]
LOW_RANK = LokrSettings(linear_dim=2, linear_alpha=3.0, factor=2)
REAL = {"q": (2048, 2048), "k": (1024, 2048), "gate": (6144, 2048)}


def attach(decoder, targets, settings=LOW_RANK, bias="none"):
    torch.manual_seed(7)
    return attach_lokr(decoder, targets, settings, bias=bias)


def expected_delta(adapter, module, settings):
    """An independent Kronecker product from the raw parameters and the settings alone, by sums over indices."""
    parts = {
        name.removeprefix(f"{module}."): value.detach().double()
        for name, value in adapter.trainable_parameters().items()
        if adapter.module_of(name) == module
    }
    w1, w2 = (
        parts[name] if name in parts else torch.einsum("ir,rj->ij", parts[f"{name}_a"], parts[f"{name}_b"])
        for name in ("lokr_w1", "lokr_w2")
    )
    is_whole = "lokr_w1" in parts and "lokr_w2" in parts
    scale = 1.0 if is_whole else settings.linear_alpha / settings.linear_dim
    product = torch.einsum("lm,kn->lkmn", w1, w2).reshape(w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1])
    product = product * scale * parts.get("scalar", 1.0)
    if not settings.weight_decompose:
        return product
    weight = adapter.base_weight(module).double()
    return (weight + product) / (weight + product).pow(2).sum(1, keepdim=True).sqrt() * parts["dora_scale"] - weight


@pytest.mark.parametrize("settings", COMBINATIONS, ids=str)
def test_every_combination_of_switches_is_what_the_formula_says(
    make_decoder, targets, inputs, train_a_little, merged_velocity, settings
):
    decoder = make_decoder()
    base = decoder(**inputs).sample
    adapter = attach(decoder, targets, settings)
    torch.testing.assert_close(decoder(**inputs).sample, base, rtol=1e-5, atol=1e-5)
    train_a_little(adapter)
    for module in targets:
        expected = expected_delta(adapter, module, settings)
        error = (adapter.effective_delta(module) - expected).abs().max() / expected.abs().max()
        assert error < 1e-5
    velocity = decoder(**inputs).sample
    assert (velocity - base).abs().max() > 0.01
    torch.testing.assert_close(velocity, merged_velocity(adapter), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", COMBINATIONS, ids=str)
def test_the_description_is_that_of_the_built_adapter(make_decoder, targets, settings):
    decoder = make_decoder()
    shapes = linear_shapes(decoder)
    description = describe_lokr({name: shapes[name] for name in targets}, settings)
    adapter = attach(decoder, targets, settings)
    assert description.num_parameters == adapter.num_parameters
    for name, layer in adapter.layers.items():
        shape = description.shapes[name]
        assert (shape.is_w1_whole, shape.is_w2_whole, shape.scale) == (layer.use_w1, layer.use_w2, layer.scale)
        assert shape.num_parameters == sum(parameter.numel() for parameter in layer.parameters())
        w1, w2 = (
            layer.get_parameter(part)
            if is_whole
            else layer.get_parameter(f"{part}_a") @ layer.get_parameter(f"{part}_b")
            for part, is_whole in (("lokr_w1", shape.is_w1_whole), ("lokr_w2", shape.is_w2_whole))
        )
        assert (tuple(w1.shape), tuple(w2.shape)) == (shape.w1, shape.w2)


@pytest.mark.parametrize(("out_features", "in_features"), [*REAL.values(), (2560, 2560), (127, 48), (96, 250), (1, 7)])
@pytest.mark.parametrize("dim", [1, 15, 16, 31, 32, 48, 64, 2000])
@pytest.mark.parametrize("factor", [-1, 1, 3, 4, 8, 16, 512])
def test_the_description_follows_lycoris_on_layers_of_any_size(out_features, in_features, dim, factor):
    settings = LokrSettings(linear_dim=dim, linear_alpha=2.0 * dim, factor=factor, decompose_both=True)
    with torch.device("meta"):
        layer = LokrModule(
            "x", nn.Linear(in_features, out_features), 1.0, dim, 2.0 * dim, factor=factor, decompose_both=True
        )
    shape = LokrShape.of(out_features, in_features, settings)
    assert (shape.is_w1_whole, shape.is_w2_whole, shape.scale) == (layer.use_w1, layer.use_w2, layer.scale)
    assert shape.num_parameters == sum(parameter.numel() for parameter in layer.parameters())


def test_the_defaults_come_to_whole_factors_on_the_real_model():
    """The figures measured with LyCORIS itself on the real shapes."""
    description = describe_lokr(REAL, LokrSettings(linear_dim=64, linear_alpha=128.0))
    assert [shape.num_parameters for shape in description.shapes.values()] == [5120, 3072, 8192]
    assert description.lines() == [
        "1 x w1 32x32 whole, w2 64x64 whole, scale 1, 5,120 parameters",
        "1 x w1 32x32 whole, w2 32x64 whole, scale 1, 3,072 parameters",
        "1 x w1 64x32 whole, w2 96x64 whole, scale 1, 8,192 parameters",
    ]
    assert set(description.inert) == {
        "lokr_use_tucker",
        "lokr_decompose_both",
        "lokr_linear_dim",
        "lokr_linear_alpha",
    }
    assert "below 48" in description.inert["lokr_linear_dim"]
    assert "below 32" in description.inert["lokr_decompose_both"]


@pytest.mark.parametrize(("factor", "counts"), [(8, [32832, 24640, 65600]), (4, [65552, 49168, 131088])])
def test_a_smaller_factor_gives_the_dimension_its_meaning_back(factor, counts):
    description = describe_lokr(REAL, LokrSettings(linear_dim=64, linear_alpha=128.0, factor=factor))
    assert [shape.num_parameters for shape in description.shapes.values()] == counts
    assert {shape.scale for shape in description.shapes.values()} == {2.0}
    assert set(description.inert) == {"lokr_use_tucker", "lokr_decompose_both"}


def test_nothing_is_called_inert_that_changes_the_adapter(make_decoder, targets):
    """Each setting is changed alone: what is named inert changes no tensor, what is not changes shapes or scale."""
    decoder = make_decoder()
    shapes = {name: linear_shapes(decoder)[name] for name in targets}
    for settings in (
        LOW_RANK,
        LokrSettings(linear_dim=2, linear_alpha=3.0),
        LokrSettings(linear_dim=64, linear_alpha=3.0),
    ):
        description = describe_lokr(shapes, settings)
        for name, value in {
            "linear_dim": settings.linear_dim * 2,
            "linear_alpha": settings.linear_alpha * 2,
            "decompose_both": not settings.decompose_both,
            "use_tucker": not settings.use_tucker,
        }.items():
            changed = describe_lokr(shapes, LokrSettings(**(vars(settings) | {name: value})))
            assert (changed.shapes == description.shapes) == (f"lokr_{name}" in description.inert), (settings, name)


def test_the_kronecker_product_is_never_built_in_the_forward_pass(make_decoder, targets, inputs, monkeypatch):
    decoder = make_decoder()
    attach(decoder, targets, LokrSettings(linear_dim=2, linear_alpha=3.0, decompose_both=True, use_scalar=True))
    monkeypatch.setattr(torch, "kron", lambda *_: pytest.fail("the product was built"))
    decoder(**inputs).sample.sum().backward()


@pytest.mark.parametrize("settings", COMBINATIONS[:: len(COMBINATIONS) // 8], ids=str)
def test_gradients_are_those_of_lycoris_own_forward(make_decoder, targets, settings):
    module = "layers.0.self_attn.k_proj"
    adapter = attach(make_decoder(), targets, settings)
    layer = adapter.layers[module]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    linear = nn.Linear(32, 16, bias=False)
    linear.weight.data = adapter.base_weight(module)
    x = torch.randn(3, 5, 32)
    layer.org_module[0](x).square().sum().backward()
    ours = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    layer.org_forward = linear.forward  # without our hook
    layer(x).square().sum().backward()
    for mine, theirs in zip(ours, [parameter.grad for parameter in layer.parameters()], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("weight_decompose", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_compute_follows_autocast_with_float32_parameters(
    make_decoder, targets, inputs, train_a_little, merged_velocity, monkeypatch, dtype, weight_decompose
):
    settings = LokrSettings(linear_dim=2, linear_alpha=3.0, factor=2, weight_decompose=weight_decompose)
    decoder = make_decoder(dtype)
    adapter = attach(decoder, targets, settings)
    assert {parameter.dtype for parameter in adapter.trainable_parameters().values()} == {torch.float32}
    train_a_little(adapter)
    seen = []
    linear = nn.functional.linear
    monkeypatch.setattr("woodshed.adapters.lokr_forward.F.linear", lambda *call: seen.append(linear(*call)) or seen[-1])
    with torch.autocast("cpu", torch.bfloat16):
        velocity = decoder(**inputs).sample
    assert {tensor.dtype for tensor in seen} == {torch.bfloat16}
    velocity.float().square().mean().backward()
    assert {parameter.grad.dtype for parameter in adapter.trainable_parameters().values()} == {torch.float32}
    expected = merged_velocity(adapter)
    assert 0 < (velocity - expected).norm() / expected.norm() < 0.05


def test_a_bf16_base_works_without_autocast_too(make_decoder, targets, inputs):
    decoder = make_decoder(torch.bfloat16)
    attach(decoder, targets)
    changed = {name: value.bfloat16() for name, value in inputs.items() if "timestep" not in name}
    assert decoder(**inputs | changed).sample.dtype == torch.bfloat16


def test_weight_decomposition_does_not_drown_in_bf16(make_decoder):
    """A change far below the resolution of the bf16 weights still reaches the output."""
    module = "layers.0.self_attn.q_proj"
    settings = LokrSettings(linear_dim=64, linear_alpha=1.0, weight_decompose=True)
    adapter = attach(make_decoder(torch.bfloat16), [module], settings)
    adapter.trainable_parameters()[f"{module}.lokr_w2"].data.fill_(1e-4)
    delta = adapter.effective_delta(module)
    assert 0 < delta.abs().max() < adapter.base_weight(module).abs().mean() / 256
    linear = adapter.layers[module].org_module[0]
    (hook,) = linear._forward_hooks.values()
    x = torch.randn(64, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        added = hook(linear, (x,), torch.zeros_like(x)).float()
    assert (added - x.float() @ delta.T).norm() < 0.02 * added.norm()


def test_seed_base_and_device_of_the_draw(make_decoder, targets):
    one, other = attach(make_decoder(), targets), attach(make_decoder(torch.bfloat16), targets)
    for name, parameter in one.trainable_parameters().items():
        assert torch.equal(parameter, other.trainable_parameters()[name])


def test_exactly_the_targets_are_adapted_and_all_else_is_frozen(make_decoder, targets):
    decoder = make_decoder()
    adapter = attach(decoder, targets, LokrSettings(2, 3.0, factor=2, use_scalar=True, weight_decompose=True), "all")
    assert list(adapter.modules) == targets
    assert list(adapter.trainable_parameters())[:5] == [
        f"layers.0.self_attn.q_proj.{part}" for part in ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "dora_scale", "scalar")
    ]
    trained = {id(parameter) for parameter in adapter.trainable_parameters().values()}
    assert {id(parameter) for parameter in decoder.parameters() if parameter.requires_grad} == trained
    norms = {id(value) for name, value in adapter.trainable_parameters().items() if name.endswith("dora_scale")}
    assert {id(value) for value in adapter.undecayed} == norms | {id(v) for v in adapter.biases.parameters.values()}
    hooked = {name for name, module in decoder.named_modules() if module._forward_hooks}
    assert hooked == {original_to_diffusers(name) for name in targets}


def test_the_module_set_is_that_of_a_lora(make_decoder, targets):
    lora = attach_lora(make_decoder(), targets, rank=2, alpha=4.0, dropout=0.0, bias="none")
    assert attach(make_decoder(), targets).modules == lora.modules


def test_a_target_the_model_does_not_have_is_an_error(make_decoder):
    with pytest.raises(AdapterError, match=r"no linear layer layers\.7"):
        attach(make_decoder(), ["layers.7.self_attn.q_proj"])


def test_raw_parameters_come_back_with_the_scalar_apart(make_decoder, targets, train_a_little):
    settings = LokrSettings(2, 3.0, factor=2, use_scalar=True)
    adapter, other = attach(make_decoder(), targets, settings), attach(make_decoder(), targets, settings)
    train_a_little(adapter)
    values = {name: value.detach() for name, value in adapter.trainable_parameters().items()}
    assert values["layers.0.self_attn.q_proj.scalar"].shape == ()
    other.load_parameters(values)
    assert all(torch.equal(value, values[name]) for name, value in other.trainable_parameters().items())
    del values["layers.0.self_attn.q_proj.scalar"]
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn\.q_proj\.scalar is missing"):
        other.load_parameters(values)


@pytest.mark.parametrize("settings", COMBINATIONS, ids=str)
def test_the_file_is_one_that_every_player_reads(make_decoder, targets, train_a_little, tmp_path, settings):
    """Whole first factor, scale as alpha over the file's dimension, alpha F32 without dimensions, nothing unfolded."""
    adapter = attach(make_decoder(), targets, settings)
    train_a_little(adapter)
    adapter.save(tmp_path, {"shift": 3.0})
    (path,) = tmp_path.iterdir()
    assert path.name == "lokr_weights.safetensors"
    tensors = load_file(path)
    assert {key.split(".")[1] for key in tensors} <= {
        "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha", "dora_scale",
    }  # fmt: skip
    with safe_open(path, "pt") as file:
        header = file.metadata()
    config = json.loads(header["lokr_config"])
    assert json.loads(header["woodshed"]) == {"shift": 3.0}
    assert (header["algo"], header["format"]) == ("lokr", "lycoris")
    assert config["use_scalar"] is config["decompose_both"] is config["rs_lora"] is config["bypass_mode"] is False
    assert (config["linear_dim"], config["factor"]) == (settings.linear_dim, settings.factor)
    for module in targets:
        flat = "lycoris_" + module.replace(".", "_")
        alpha = tensors[f"{flat}.alpha"]
        assert alpha.dtype == torch.float32
        assert alpha.shape == ()
        is_whole = f"{flat}.lokr_w2" in tensors
        assert alpha.item() == (settings.linear_dim if is_whole else settings.linear_alpha)


def test_lycoris_says_nothing_on_the_terminal(make_decoder, targets, capfd, caplog):
    settings = LokrSettings(linear_dim=4321, linear_alpha=1.0, weight_decompose=True)  # it warns once for each size
    attach(make_decoder(torch.bfloat16), targets, settings)
    assert capfd.readouterr() == ("", "")
    # diffusers writes to the terminal as it was when the library was imported, which a test does not see.
    assert not [record for record in caplog.records if record.name.startswith("diffusers")]


@pytest.mark.slow
def test_lycoris_says_nothing_in_a_fresh_process():
    program = (
        "import torch\n"
        "from woodshed.adapters import lokr, lokr_shape\n"
        "root = torch.nn.Module()\n"
        "root.condition_embedder = torch.nn.Linear(8, 8)\n"
        "lokr.attach_lokr(root, ['condition_embedder'], lokr_shape.LokrSettings(64, 128.0), bias='none')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_lycoris_says_can_be_heard_by_the_programs_own_handlers(caplog, make_decoder, targets):
    attach(make_decoder(), targets, LokrSettings(linear_dim=1234, linear_alpha=1.0))
    assert "using full matrix mode" in caplog.text


def test_the_layers_move_with_the_decoder(make_decoder, targets):
    decoder = make_decoder()
    adapter = attach(decoder, targets)
    assert isinstance(adapter, LokrAdapter)
    names = {id(parameter) for parameter in decoder.parameters()}
    assert all(id(parameter) in names for parameter in adapter.trainable_parameters().values())
