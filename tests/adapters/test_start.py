"""Starting a run from an adapter: the same effect, ranks that can learn, and what cannot be kept refused beforehand."""

from dataclasses import replace

import pytest
import torch

from woodshed.adapters.comfyui_format import fit_for_comfyui, write_comfyui
from woodshed.adapters.content import Content
from woodshed.adapters.families import attach_adapter
from woodshed.adapters.files import save_adapter
from woodshed.adapters.saved import read_adapter
from woodshed.adapters.start import check_start, start_from
from woodshed.adapters.targets import linear_shapes
from woodshed.errors import AdapterError
from woodshed.models.keys import original_to_diffusers
from woodshed.settings.schema import TrainSettings

EMBED = "time_embed.linear_1"  # the target that has a bias
Q = "layers.0.self_attn.q_proj"


@pytest.fixture
def make(make_decoder, targets):
    """A decoder with an untrained adapter, by what differs from a small LoRA."""

    def build(modules=targets, **changes):
        values = {"model": "x", "dataset_dir": "x", "output_dir": "x", "rank": 3, "alpha": 5.0, "dropout": 0}
        settings = TrainSettings(**values | changes)
        decoder = make_decoder()
        torch.manual_seed(3)
        return decoder, attach_adapter(decoder, modules, settings), settings

    return build


@pytest.fixture
def saved_as(make, train_a_little, tmp_path):
    """A trained adapter as it comes back from `final/`."""

    def save(**changes):
        _, adapter, _ = make(**changes)
        train_a_little(adapter)
        save_adapter(adapter, tmp_path / "final", {})
        return read_adapter(tmp_path / "final")

    return save


@pytest.fixture
def start(make, make_decoder):
    """Check and start; return the decoder, the adapter and what was said."""

    def run(saved, **changes):
        decoder, adapter, settings = make(**changes)
        shapes = linear_shapes(make_decoder())
        said = check_start(saved, {name: shapes[name] for name in adapter.modules}, settings)
        start_from(adapter, saved)
        return decoder, adapter, said

    return run


LOKR = {"adapter_type": "lokr", "lokr_linear_dim": 2, "lokr_linear_alpha": 3.0, "lokr_factor": 2}
WIDER = {
    "lora": ({}, {"rank": 5, "alpha": 2.0}),
    "dora": ({"adapter_type": "dora"}, {"adapter_type": "dora", "rank": 6}),
    "loha": ({"adapter_type": "loha", "rank": 2}, {"adapter_type": "loha", "rank": 4, "alpha": 7.0}),
    "lokr": (LOKR, LOKR | {"lokr_linear_dim": 4}),
    "lokr, both decomposed": (
        {"adapter_type": "lokr", "lokr_linear_dim": 1, "lokr_linear_alpha": 3.0, "lokr_decompose_both": True},
        {"adapter_type": "lokr", "lokr_linear_dim": 1, "lokr_linear_alpha": 9.0, "lokr_decompose_both": False},
    ),
    "several ranks": ({"rank": 4, "rank_pattern": ["cross_attn=2", "mlp=6:9"]}, {"rank": 6, "alpha": 3.0}),
    "loha, several ranks": (
        {"adapter_type": "loha", "rank": 2, "rank_pattern": ["cross_attn=1"]},
        {"adapter_type": "loha", "rank": 2},
    ),
}


@pytest.mark.parametrize("case", WIDER)
def test_a_larger_run_starts_with_the_same_effect_and_every_rank_can_learn(case, saved_as, start, inputs):
    small, large = WIDER[case]
    saved = saved_as(**small)
    decoder, adapter, said = start(saved, **large)
    assert said == [f"The weights of {saved.path} are where this run starts; optimizer and schedule begin anew."]
    for module in saved.modules:
        wanted = saved.delta(module, adapter.base_weight(module).double())
        assert (adapter.effective_delta(module) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    parameters = adapter.trainable_parameters()
    with torch.no_grad():
        decoder(**inputs)
    for module in saved.modules:
        for left, right in (("lora_B.weight", "lora_A.weight"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")):
            if f"{module}.{left}" in parameters:
                columns, rows = parameters[f"{module}.{left}"], parameters[f"{module}.{right}"]
                assert (columns.any(dim=0) | rows.any(dim=1)).all()


@pytest.mark.parametrize("case", ["lora", "loha", "lokr"])
def test_the_further_ranks_get_gradients_at_once(case, saved_as, start, inputs):
    small, large = WIDER[case]
    decoder, adapter, _ = start(saved_as(**small), **large)
    decoder(**inputs).sample.square().mean().backward()
    gradients = {name: value.grad for name, value in adapter.trainable_parameters().items() if Q in name}
    first = {"lora": 3, "loha": 2, "lokr": 2}[case]
    columns = {"lora": ["lora_B.weight"], "loha": ["hada_w1_a"], "lokr": []}[case]
    rows = {"lora": [], "loha": ["hada_w2_b"], "lokr": ["lokr_w2_b"]}[case]
    learning = [gradients[f"{Q}.{part}"][:, first:].T for part in columns]
    learning += [gradients[f"{Q}.{part}"][first:] for part in rows]
    assert all(len(gradient) and gradient.any(dim=1).all() for gradient in learning)


def test_a_lokr_whose_factors_are_whole_elsewhere_is_refused_with_both_shapes(saved_as, start):
    with pytest.raises(AdapterError, match=r"holds lokr_w1 2x2, .* where these settings come to lokr_w1 4x4"):
        start(saved_as(**LOKR), adapter_type="lokr")


BIASED = {
    "lora": {"bias": "all"},
    "dora": {"bias": "all", "adapter_type": "dora"},
    "lokr": LOKR | {"bias": "all"},
    "lokr dora": LOKR | {"bias": "all", "lokr_weight_decompose": True},
}


@pytest.mark.parametrize("case", BIASED)
def test_trained_biases_are_trained_on(case, saved_as, start, make, inputs, train_a_little):
    saved = saved_as(**BIASED[case])
    assert len(saved.bias_names) == 9
    decoder, adapter, _ = start(saved, **BIASED[case])
    trained, other, _ = make(**BIASED[case])
    train_a_little(other)
    for name, difference in other.biases.differences().items():
        torch.testing.assert_close(adapter.biases.differences()[name], difference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(decoder(**inputs).sample, trained(**inputs).sample, rtol=1e-4, atol=1e-4)


def test_the_bias_of_a_target_is_enough_where_no_other_was_trained(saved_as, start):
    saved = saved_as(bias="lora_only")
    assert saved.bias_names == [f"{EMBED}.bias"]
    _, adapter, _ = start(saved, bias="lora_only")
    assert torch.equal(adapter.biases.parameters[f"{EMBED}.bias"], saved.biases[f"{EMBED}.bias"])


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_without_biases_starts_a_run_that_trains_them_from_the_base(bias, saved_as, start, make_decoder):
    _, adapter, _ = start(saved_as(), bias=bias)
    assert adapter.biases.parameters
    for name, value in adapter.biases.parameters.items():
        assert torch.equal(value, make_decoder().get_parameter(original_to_diffusers(name)))


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"bias": "none"}, "and this run would leave them as in the base model: add --bias all"),
        ({"bias": "lora_only"}, "and this run would leave them as in the base model: add --bias all"),
    ],
)
def test_biases_that_would_be_lost_are_refused(changes, advice, saved_as, start):
    with pytest.raises(AdapterError, match=rf"holds trained biases such as [\w.]+\.bias, {advice}"):
        start(saved_as(bias="all"), **changes)


def test_a_loha_cannot_start_with_biases_because_it_trains_none(make, targets, make_decoder, train_a_little, tmp_path):
    _, adapter, settings = make(adapter_type="loha")
    train_a_little(adapter)
    content = Content(
        {module: adapter.change(module) for module in targets}, bias_differences={"proj_in.1.bias": torch.ones(32)}
    )
    write_comfyui(tmp_path / "x.safetensors", content)
    saved, shapes = read_adapter(tmp_path / "x.safetensors"), linear_shapes(make_decoder())
    with pytest.raises(AdapterError, match=r"such as proj_in\.1\.bias, and a LoHa trains none, so they would be lost"):
        check_start(saved, {name: shapes[name] for name in targets}, settings)


def test_a_bias_of_another_model_is_refused_by_name(make, targets, train_a_little, tmp_path):
    _, adapter, _ = make(bias="all")
    train_a_little(adapter)
    changes = {module: adapter.change(module) for module in targets}
    write_comfyui(tmp_path / "x.safetensors", Content(changes, bias_differences={"proj_mid.bias": torch.ones(32)}))
    with pytest.raises(AdapterError, match=r"is for another model: this run trains no proj_mid\.bias"):
        start_from(adapter, read_adapter(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_a_smaller_run_is_refused_before_the_model_is_loaded(kind, saved_as, start):
    saved = saved_as(adapter_type=kind, rank=4, rank_pattern=["cross_attn=5"])
    with pytest.raises(AdapterError, match=r"has rank 5 in .*, more than this run; raise --rank to 5\."):
        start(saved, adapter_type=kind, rank=3, rank_pattern=["mlp=9", "self_attn=4"])


def test_everything_that_does_not_fit_is_said_at_once(saved_as, make):
    saved = saved_as(bias="all", adapter_type="dora")
    _, _, settings = make(modules=[Q], rank=2)
    with pytest.raises(AdapterError) as caught:
        check_start(saved, {Q: (32, 16)}, settings)
    words = " ".join(caught.value.problems)
    for said in ("its norms would be lost", "trained biases", "has rank 3", "no targets of this run", "another model"):
        assert said in words
    assert len(caught.value.problems) == 5


def test_modules_that_are_not_in_the_file_start_untrained_and_are_counted(saved_as, start, targets):
    saved = saved_as(modules=targets[:2])
    _, adapter, said = start(saved)
    assert said[1] == f"{len(targets) - 2} of {len(targets)} modules are not in it and start untrained."
    assert not any(adapter.effective_delta(module).any() for module in targets[2:])


def test_norms_that_were_written_for_todays_comfyui_are_translated(make, targets, start, train_a_little, tmp_path):
    _, adapter, _ = make(adapter_type="dora")
    train_a_little(adapter)
    content = Content({module: adapter.change(module) for module in targets})
    write_comfyui(tmp_path / "x.safetensors", fit_for_comfyui(content, "today", adapter.base_weight))
    _, again, _ = start(read_adapter(tmp_path / "x.safetensors"), adapter_type="dora")
    for module in targets:
        torch.testing.assert_close(again.effective_delta(module), adapter.effective_delta(module), rtol=1e-4, atol=1e-5)


def test_a_start_with_another_effect_is_found_out(saved_as, make):
    saved = saved_as()
    _, adapter, _ = make()
    adapter.scales = {module: 1.001 * scale for module, scale in adapter.scales.items()}
    whole = adapter.change
    adapter.change = lambda module: replace(whole(module), scale=whole(module).scale / 1.001)
    with pytest.raises(AdapterError, match="the relative error is in"):
        start_from(adapter, saved)


def test_a_scalar_starts_at_one_because_files_have_it_inside(saved_as, start):
    _, adapter, _ = start(saved_as(**LOKR, lokr_use_scalar=True), **LOKR, lokr_use_scalar=True)
    scalars = [value.item() for name, value in adapter.trainable_parameters().items() if name.endswith("scalar")]
    assert scalars == [1.0] * len(adapter.modules)
