"""DoRA, LoHa and OFT on a decoder: what they compute, what an untrained one leaves alone, and what trains."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from woodshed.adapters.dora import attach_dora
from woodshed.adapters.files import load_adapter, save_adapter
from woodshed.adapters.loha import attach_loha
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.oft import attach_oft
from woodshed.errors import AdapterError
from woodshed.models.keys import original_to_diffusers

PATTERN = ("cross_attn=2", "mlp=6:9")
FAMILIES = {
    "lora, several ranks": lambda decoder, targets: attach_lora(
        decoder, targets, rank=4, alpha=6.0, dropout=0.0, bias="none", rank_pattern=PATTERN
    ),
    "dora": lambda decoder, targets: attach_dora(decoder, targets, rank=4, alpha=6.0, dropout=0.0, bias="all"),
    "dora, several ranks": lambda decoder, targets: attach_dora(
        decoder, targets, rank=4, alpha=6.0, dropout=0.0, bias="none", rank_pattern=PATTERN
    ),
    "loha": lambda decoder, targets: attach_loha(decoder, targets, rank=2, alpha=3.0),
    "loha, several ranks": lambda decoder, targets: attach_loha(
        decoder, targets, rank=3, alpha=2.0, rank_pattern=PATTERN
    ),
    "oft": lambda decoder, targets: attach_oft(decoder, targets, block_size=8),
}


@pytest.fixture(params=FAMILIES)
def attach(request):
    torch.manual_seed(4)
    return FAMILIES[request.param]


def test_an_untrained_adapter_changes_next_to_nothing(attach, make_decoder, targets, inputs):
    decoder = make_decoder()
    before = decoder(**inputs).sample
    attach(decoder, targets)
    torch.testing.assert_close(decoder(**inputs).sample, before, rtol=1e-6, atol=1e-6)


def test_the_forward_pass_is_that_of_the_merged_weights(
    attach, make_decoder, targets, inputs, train_a_little, merged_velocity
):
    decoder = make_decoder()
    base = decoder(**inputs).sample
    adapter = attach(decoder, targets)
    train_a_little(adapter)
    velocity = decoder(**inputs).sample
    assert (velocity - base).abs().max() > 0.1
    torch.testing.assert_close(velocity, merged_velocity(adapter), rtol=1e-4, atol=1e-4)


def test_everything_else_is_frozen_and_names_are_the_originals(attach, make_decoder, targets):
    decoder = make_decoder(torch.bfloat16)
    adapter = attach(decoder, targets)
    assert list(adapter.modules) == targets
    trained = {id(parameter) for parameter in adapter.trainable_parameters().values()}
    assert {id(parameter) for parameter in decoder.parameters() if parameter.requires_grad} == trained
    assert {parameter.dtype for parameter in adapter.trainable_parameters().values()} == {torch.float32}
    assert all(name.startswith(tuple(targets)) or "bias" in name for name in adapter.trainable_parameters())


def test_the_draw_does_not_depend_on_the_base(attach, make_decoder, targets):
    values = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(9)
        values.append(attach(make_decoder(dtype), targets).trainable_parameters())
    factors = [name for name in values[0] if "magnitude" not in name and not name.endswith("bias")]
    assert all(torch.equal(values[0][name], values[1][name]) for name in factors)


def test_the_compute_follows_autocast_with_float32_gradients(
    attach, make_decoder, targets, inputs, train_a_little, merged_velocity
):
    decoder = make_decoder(torch.bfloat16)
    adapter = attach(decoder, targets)
    train_a_little(adapter)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = decoder(**inputs).sample
    velocity.float().square().mean().backward()
    gradients = [parameter.grad for parameter in adapter.trainable_parameters().values()]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert all(gradient.any() for gradient in gradients)
    expected = merged_velocity(adapter)
    assert (velocity - expected).norm() < 0.06 * expected.norm()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_a_saved_adapter_plays_as_trained_at_any_strength(
    attach, make_decoder, targets, inputs, train_a_little, tmp_path, strength
):
    decoder = make_decoder()
    adapter = attach(decoder, targets)
    train_a_little(adapter)
    report = save_adapter(adapter, tmp_path / "final", {})
    assert (report.modules, report.is_live) == (len(targets), True)
    assert report.max_relative_error < 1e-5
    assert report.strength == pytest.approx(1, abs=1e-5)
    listener = make_decoder()
    played = load_adapter(listener, tmp_path / "final", strength)
    for module in targets:
        torch.testing.assert_close(
            played.effective_delta(module), strength * adapter.effective_delta(module), rtol=1e-4, atol=1e-5
        )
    if strength == 1:
        torch.testing.assert_close(listener(**inputs).sample, decoder(**inputs).sample, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_dora_are_those_of_peft(make_decoder, train_a_little):
    module = "time_embed.linear_1"  # a layer with a bias
    decoder = make_decoder()
    linear = copy.deepcopy(decoder.get_submodule(original_to_diffusers(module)))
    adapter = attach_dora(decoder, [module], rank=4, alpha=6.0, dropout=0.0, bias="none")
    train_a_little(adapter)
    theirs = get_peft_model(
        nn.Sequential(linear), LoraConfig(r=4, lora_alpha=6.0, target_modules=["0"], use_dora=True)
    ).base_model.model[0]
    ours = adapter.trainable_parameters()
    pairs = [
        (ours[f"{module}.lora_A.weight"], theirs.lora_A["default"].weight),
        (ours[f"{module}.lora_B.weight"], theirs.lora_B["default"].weight),
        (ours[f"{module}.lora_magnitude_vector"], theirs.lora_magnitude_vector["default"].weight),
    ]
    for mine, other in pairs:
        other.data.copy_(mine.detach())
    x = torch.randn(3, 5, linear.in_features)
    outputs = [layer(x) for layer in (decoder.get_submodule(original_to_diffusers(module)), theirs)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_an_untrained_dora_changes_no_bit_of_a_bf16_model(make_decoder, targets, inputs):
    """PEFT's own moves every row, because it takes the norms in the precision of the activations."""
    decoder = make_decoder(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        before = decoder(**inputs).sample
        FAMILIES["dora, several ranks"](decoder, targets)
        assert torch.equal(decoder(**inputs).sample, before)


def test_norms_and_rotations_do_not_decay_towards_zero(make_decoder, targets):
    adapter = FAMILIES["dora"](make_decoder(), targets)
    spared = {id(parameter) for parameter in adapter.undecayed}
    names = {name for name, value in adapter.trainable_parameters().items() if id(value) in spared}
    assert {name for name in names if "magnitude" in name} == {f"{module}.lora_magnitude_vector" for module in targets}


def test_an_oft_that_does_not_divide_its_inputs_is_refused(make_decoder, targets):
    with pytest.raises(AdapterError, match="oft_block_size 24 does not divide the inputs of"):
        attach_oft(make_decoder(), targets, block_size=24)


def test_several_ranks_say_that_the_file_is_filled_up(make_decoder, targets):
    for family, ranks in (("lora, several ranks", "2, 4, 6"), ("dora, several ranks", "2, 4, 6")):
        (notice,) = FAMILIES[family](make_decoder(), targets).notices
        assert notice.startswith(f"The modules have ranks {ranks}; in a PEFT folder zeros fill them up to 6")
    (notice,) = FAMILIES["loha, several ranks"](make_decoder(), targets).notices
    assert notice.startswith("The modules have ranks 2, 3, 6;")
    assert FAMILIES["loha"](make_decoder(), targets).notices == ()


def test_a_rank_for_no_module_is_refused(make_decoder, targets):
    with pytest.raises(AdapterError, match=r"rank_pattern names layers\.9\., and no adapted layer"):
        attach_loha(make_decoder(), targets, rank=2, alpha=2.0, rank_pattern=["layers.9.=4"])
