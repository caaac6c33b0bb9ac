import json
import math

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import Parameter

from woodshed.adapters.files import load_adapter
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.targets import linear_shapes, resolve_targets
from woodshed.errors import AdapterError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_decoder
from woodshed.training.optimizers import build_optimizer

BASE_BIASES = 9


def attach(decoder, targets, **changes):
    settings = {"rank": 4, "alpha": 6.0, "dropout": 0.0, "bias": "none"} | changes
    torch.manual_seed(7)
    return attach_lora(decoder, targets, **settings)


def test_an_untrained_adapter_changes_no_bit(make_decoder, targets, inputs):
    decoder = make_decoder()
    before = decoder(**inputs).sample
    attach(decoder, targets)
    assert torch.equal(decoder(**inputs).sample, before)


def test_exactly_the_targets_are_adapted(make_decoder, targets):
    decoder = make_decoder()
    shapes = linear_shapes(decoder)
    adapter = attach(decoder, targets, rank=3)
    assert list(adapter.modules) == targets
    assert sum(isinstance(module, LoraLinear) for module in decoder.modules()) == len(targets)
    sizes = [shapes[name] for name in targets]
    assert adapter.num_parameters == sum(3 * (out + in_) for out, in_ in sizes)
    names = adapter.trainable_parameters()
    assert list(names)[:2] == ["layers.0.self_attn.q_proj.lora_A.weight", "layers.0.self_attn.q_proj.lora_B.weight"]
    assert {adapter.module_of(name) for name in names} == set(targets)


@pytest.mark.parametrize(("attention_type", "count"), [("both", 192), ("self", 96), ("cross", 96)])
def test_the_24_layer_model_is_adapted_192_96_and_96_times(make_decoder, attention_type, count):
    decoder = make_decoder(layers=4)
    decoder.layers.extend(layer for _ in range(5) for layer in make_decoder(layers=4).layers)
    words = "q_proj k_proj v_proj o_proj"
    targets = resolve_targets(linear_shapes(decoder), attention_type=attention_type, target_modules=words)
    assert len(attach(decoder, targets).modules) == count


def test_everything_else_is_frozen(make_decoder, targets):
    decoder = make_decoder()
    adapter = attach(decoder, targets)
    trained = {id(parameter) for parameter in adapter.trainable_parameters().values()}
    assert {id(parameter) for parameter in decoder.parameters() if parameter.requires_grad} == trained


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_the_forward_pass_is_that_of_the_merged_weights(
    make_decoder, targets, inputs, train_a_little, merged_velocity, bias
):
    decoder = make_decoder()
    base = decoder(**inputs).sample
    adapter = attach(decoder, targets, bias=bias)
    train_a_little(adapter)
    velocity = decoder(**inputs).sample
    assert (velocity - base).abs().max() > 0.1
    torch.testing.assert_close(velocity, merged_velocity(adapter), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (8, 4.0), (3, 1.5)])
def test_alpha_over_rank_is_the_strength(make_decoder, targets, train_a_little, rank, alpha):
    adapter = attach(make_decoder(), targets, rank=rank, alpha=alpha)
    train_a_little(adapter)
    parameters = adapter.trainable_parameters()
    for module in targets:
        a, b = (parameters[f"{module}.lora_{part}.weight"].detach() for part in "AB")
        torch.testing.assert_close(adapter.effective_delta(module), alpha / rank * b @ a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_float32_and_the_same_whatever_the_base(make_decoder, targets, dtype):
    one, other = attach(make_decoder(), targets), attach(make_decoder(dtype), targets)
    for name, parameter in other.trainable_parameters().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, one.trainable_parameters()[name])


def test_the_seed_decides_the_first_factor_and_its_range_is_that_of_a_linear_layer(make_decoder, targets):
    one = attach(make_decoder(), targets)
    torch.manual_seed(8)
    other = attach_lora(make_decoder(), targets, rank=4, alpha=6.0, dropout=0.0, bias="none")
    name = "layers.0.mlp.down_proj.lora_A.weight"
    first, second = one.trainable_parameters()[name], other.trainable_parameters()[name]
    assert not torch.equal(first, second)
    bound = 1 / math.sqrt(64)
    assert 0.9 * bound < first.abs().max() <= bound


@pytest.mark.parametrize("bias", ["none", "all"])
def test_the_compute_follows_autocast_and_the_gradients_stay_float32(
    make_decoder, targets, inputs, train_a_little, merged_velocity, bias
):
    decoder = make_decoder(torch.bfloat16)
    adapter = attach(decoder, targets, bias=bias)
    train_a_little(adapter)
    seen = []
    layer = next(module for module in decoder.modules() if isinstance(module, LoraLinear))
    layer.lora_B["default"].register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        velocity = decoder(**inputs).sample
    velocity.float().square().mean().backward()
    assert seen == [torch.bfloat16]
    assert {parameter.grad.dtype for parameter in adapter.trainable_parameters().values()} == {torch.float32}
    expected = merged_velocity(adapter)
    assert 0 < (velocity - expected).norm() / expected.norm() < 0.05


def test_dropout_acts_in_training_only_and_on_the_adapters_path_only(make_decoder, targets, inputs, train_a_little):
    decoder = make_decoder()
    adapter = attach(decoder, targets, dropout=0.5)
    decoder.train()
    untrained = [decoder(**inputs).sample for _ in range(2)]
    assert torch.equal(*untrained)
    train_a_little(adapter)
    assert not torch.equal(decoder(**inputs).sample, decoder(**inputs).sample)
    decoder.eval()
    assert torch.equal(decoder(**inputs).sample, decoder(**inputs).sample)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.4])
def test_dropout_zeroes_the_share_it_is_told(make_decoder, targets, dropout):
    decoder = make_decoder()
    attach(decoder, targets, dropout=dropout)
    layer = next(module for module in decoder.train().modules() if isinstance(module, LoraLinear))
    dropped = layer.lora_dropout["default"](torch.ones(40_000))
    assert (dropped == 0).float().mean().item() == pytest.approx(dropout, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("words", "bias", "count", "notice"),
    [
        ("q_proj", "none", 0, None),
        ("q_proj", "lora_only", 0, "Bias mode lora_only trains no bias: none of the adapted layers has one."),
        ("q_proj time_embed.linear_1", "lora_only", 1, "Bias mode lora_only trains 1 bias tensors; "),
        ("q_proj", "all", BASE_BIASES, "Bias mode all trains 9 bias tensors; "),
    ],
)
def test_bias_modes_say_how_many_biases_train(make_decoder, words, bias, count, notice):
    decoder = make_decoder(torch.bfloat16)
    targets = resolve_targets(linear_shapes(decoder), attention_type="both", target_modules=words)
    adapter = attach(decoder, targets, bias=bias)
    biases = adapter.biases.parameters
    assert len(biases) == count
    assert set(biases) <= set(adapter.trainable_parameters())
    assert {id(p) for p in adapter.undecayed} == {id(p) for p in biases.values()}
    assert all(p.requires_grad and p.dtype == torch.float32 for p in biases.values())
    assert [text[: len(notice)] for text in adapter.notices] == [notice] if notice else adapter.notices == ()


def test_the_nine_biases_are_those_of_the_original_model(make_decoder, targets):
    adapter = attach(make_decoder(), targets, bias="all")
    embeds = [f"{e}.{leaf}" for e in ("time_embed", "time_embed_r") for leaf in ("linear_1", "linear_2", "time_proj")]
    expected = {f"{name}.bias" for name in (*embeds, "condition_embedder", "proj_in.1", "proj_out.1")}
    assert set(adapter.biases.parameters) == expected
    assert adapter.module_of("proj_in.1.bias") == "proj_in.1"
    assert adapter.module_of("time_embed.linear_1.bias") == "time_embed.linear_1"


def test_a_target_the_model_does_not_have_is_an_error(make_decoder):
    with pytest.raises(AdapterError, match=r"no linear layer layers\.7\.self_attn\.q_proj"):
        attach(make_decoder(), ["layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj"])


def test_parameters_can_be_put_back(make_decoder, targets, train_a_little):
    adapter, other = attach(make_decoder(), targets, bias="all"), attach(make_decoder(), targets, bias="all")
    train_a_little(adapter)
    other.load_parameters({name: value.detach() for name, value in adapter.trainable_parameters().items()})
    for name, value in other.trainable_parameters().items():
        assert torch.equal(value, adapter.trainable_parameters()[name])


def test_parameters_that_do_not_fit_change_nothing_and_are_listed(make_decoder, targets):
    adapter = attach(make_decoder(), targets)
    values = {name: value.detach() + 1 for name, value in adapter.trainable_parameters().items()}
    before = {name: value.detach().clone() for name, value in adapter.trainable_parameters().items()}
    gone, bent, *_ = values
    del values[gone]
    values[bent] = values[bent][:, :2]
    values["layers.9.x"] = torch.zeros(1)
    with pytest.raises(AdapterError) as caught:
        adapter.load_parameters(values)
    assert caught.value.problems == (
        f"In the saved adapter {gone} is missing.",
        "In the saved adapter layers.9.x is unknown.",
        f"In the saved adapter {bent} (32, 2) for (32, 4) has another shape.",
    )
    assert all(torch.equal(value, before[name]) for name, value in adapter.trainable_parameters().items())


def test_the_files_have_the_scale_in_b_and_a_config_every_peft_reads(make_decoder, targets, train_a_little, tmp_path):
    adapter = attach(make_decoder(), targets, rank=4, alpha=6.0)
    train_a_little(adapter)
    adapter.save(tmp_path, {"shift": 3.0, "custom_tag": "zydeco"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config["task_type"]) == (4, 4, "none", None)
    assert config["target_modules"] == targets
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(targets)
    parameters = adapter.trainable_parameters()
    name = "layers.0.self_attn.k_proj"
    assert torch.equal(tensors[f"base_model.model.{name}.lora_A.weight"], parameters[f"{name}.lora_A.weight"])
    assert torch.equal(tensors[f"base_model.model.{name}.lora_B.weight"], 1.5 * parameters[f"{name}.lora_B.weight"])
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["woodshed"]) == {"shift": 3.0, "custom_tag": "zydeco"}


@pytest.mark.parametrize("name", ["lora_r4", "lora_r4_rslora", "lora_r2_mlp", "dora_r4"])
def test_adapters_of_the_original_code_sound_the_same_here(checkpoint_root, golden, read_golden, name):
    """Folders written by PEFT on the original decoder, alpha other than rank, and the velocity it had with them."""
    base = choose_model(find_checkpoints(checkpoint_root), "acestep-v15-base")
    decoder = load_decoder(base, dtype=torch.float32, device="cpu")
    load_adapter(decoder, golden / "adapters" / name)
    case = {key.split("/")[2]: value for key, value in read_golden("dit_base").items() if "/T37" in key}
    velocity = decoder(
        hidden_states=case["x"],
        timestep=case["t"],
        timestep_r=case["r"],
        encoder_hidden_states=case["enc"],
        context_latents=case["context"],
    ).sample
    expected = read_golden("adapters_base")[f"{name}/velocity"]
    assert (velocity - expected).abs().max() < 1e-5 * expected.abs().max()


def test_six_steps_of_training_follow_those_of_the_original_code(checkpoint_root, golden, read_golden):
    base = choose_model(find_checkpoints(checkpoint_root), "acestep-v15-base")
    decoder = load_decoder(base, dtype=torch.float32, device="cpu")
    targets = resolve_targets(
        linear_shapes(decoder), attention_type="both", target_modules="q_proj k_proj v_proj o_proj"
    )
    adapter = attach(decoder, targets, rank=4, alpha=8.0)
    known, case = read_golden("adapters_base"), read_golden("dit_base")
    prefix = "traj/init/base_model.model."
    adapter.load_parameters({key[len(prefix) :]: value for key, value in known.items() if key.startswith(prefix)})
    case = {key.split("/")[2]: value for key, value in case.items() if key.startswith("train/b2_T40/")}
    parameters = list(adapter.trainable_parameters().values())
    optimizer = build_optimizer("adamw", parameters, learning_rate=1e-3, weight_decay=0.01, warmup_steps=0)
    t = case["t"]
    noisy = t[:, None, None] * case["noise"] + (1 - t[:, None, None]) * case["x0"]
    losses, norms = [], []
    for _ in range(6):
        velocity = decoder(noisy, t, t, case["encoder_hidden_states"], case["context_latents"]).sample
        loss = (velocity - (case["noise"] - case["x0"])).square().mean()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    facts = json.loads((golden / "adapters_base.json").read_text())["training_trajectory"]
    assert losses == pytest.approx(facts["loss_before_each_step"], rel=1e-5)
    assert norms == pytest.approx(facts["grad_norm_before_clip"], rel=1e-4)
    final = {key.split("base_model.model.")[1]: value for key, value in known.items() if key.startswith("traj/final/")}
    for key, value in final.items():
        torch.testing.assert_close(adapter.trainable_parameters()[key].detach(), value, rtol=1e-4, atol=1e-6)


def test_parameters_are_leaves_that_an_optimizer_accepts(make_decoder, targets):
    adapter = attach(make_decoder(), targets, bias="all")
    assert all(isinstance(p, Parameter) and p.is_leaf for p in adapter.trainable_parameters().values())
