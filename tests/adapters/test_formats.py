"""What each format can hold, what it refuses with the format that can, and what it writes beside the tensors."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.adapters.oracles import effective_weights, play_ace_step
from woodshed.adapters.changes import Difference, LowRank, Norms, Rotation
from woodshed.adapters.comfyui_format import fit_for_comfyui, with_norms_over, write_comfyui
from woodshed.adapters.content import Content
from woodshed.adapters.diffusers_format import write_diffusers, write_diffusers_lokr
from woodshed.adapters.faithful import as_trained
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lycoris_format import write_lycoris
from woodshed.adapters.peft_format import write_peft
from woodshed.adapters.saved import read_adapter
from woodshed.errors import AdapterError

Q = "layers.0.self_attn.q_proj"
K = "layers.0.self_attn.k_proj"
V = "layers.1.self_attn.v_proj"


def problems_of(call, *words, **more):
    with pytest.raises(AdapterError) as caught:
        call(*words, **more)
    return caught.value.problems


@pytest.mark.parametrize(
    ("recipe", "scale", "rank"),
    [
        ({"settings": {"rank": 3, "alpha": 5.0}}, 5 / 3, 3),
        ({"settings": {"rank": 3, "alpha": 5.0, "rank_pattern": ["self_attn=2:8"]}}, 4.0, 3),
        ({"settings": {"rank": 3, "alpha": 5.0, "rank_pattern": ["mlp=2", 7]}}, 5 / 3, 3),
        ({"settings": {"rank": 0, "alpha": 5.0}}, 1.0, 3),
        ({"settings": {"rank": 3, "alpha": 1e9}}, 1.0, 3),
        ({"settings": {"rank": 3, "alpha": -1}}, 1.0, 3),
        ({"settings": {"rank": "3", "alpha": 5.0}}, 1.0, 3),
        ({"settings": [3]}, 1.0, 3),
        ({}, 1.0, 3),
    ],
)
def test_the_faithful_form_takes_back_the_scale_that_the_recipe_names(recipe, scale, rank):
    a, b = torch.randn(3, 8), torch.randn(4, 3)
    padded = LowRank(torch.cat([a, torch.zeros(2, 8)]), torch.cat([b, torch.zeros(4, 2)], dim=1))
    found = as_trained(Content({Q: padded}, recipe)).changes[Q]
    assert (found.scale, found.rank) == (pytest.approx(scale), rank)
    torch.testing.assert_close(found.b * found.scale, b)


def test_the_faithful_form_leaves_alone_what_keeps_its_scale_apart_or_changes_nothing():
    apart = LowRank(torch.ones(2, 3), torch.ones(4, 2), 0.5)
    nothing = LowRank(torch.zeros(2, 3), torch.zeros(4, 2))
    recipe = {"settings": {"rank": 2, "alpha": 4.0}}
    found = as_trained(Content({Q: apart, K: nothing}, recipe)).changes
    assert found[Q] is apart
    assert (found[K].rank, found[K].scale) == (2, 2.0)


def test_a_faithful_folder_has_its_own_rank_and_alpha_for_each_module_in_both_configs(tmp_path):
    sizes = {Q: (4, 1.5), K: (4, 1.5), V: (2, 0.25)}
    changes = {name: LowRank(torch.randn(r, 8), torch.randn(4, r), scale) for name, (r, scale) in sizes.items()}
    write_peft(tmp_path, Content(changes), is_faithful=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 6)
    assert isinstance(config["lora_alpha"], int)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({V: 2}, {V: 0.5})
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert header["transformer.rank_pattern"] == {"layers.1.self_attn.to_v": 2}
    assert header["transformer.target_modules"][0] == "layers.0.self_attn.to_q"


def lokr(w1, w2, dim=None, scale=1.0, norms=None):
    second = (torch.ones(w2),) if dim is None else (torch.ones(w2[0], dim), torch.ones(dim, w2[1]))
    return Kronecker((torch.ones(w1),), second, scale, norms=norms)


ODD_LOKRS = {
    "several dimensions": {Q: lokr((2, 2), (16, 16), 2), K: lokr((2, 2), (8, 16), 3)},
    "several factors": {Q: lokr((2, 2), (16, 16), 2), K: lokr((4, 4), (4, 8), 2)},
    "a first side that is larger": {Q: lokr((16, 2), (2, 16), 2)},
    "whole where a dimension makes it low-rank": {Q: lokr((2, 2), (16, 16), 2), K: lokr((2, 2), (8, 16))},
}


@pytest.mark.parametrize("case", ODD_LOKRS)
def test_a_lokr_that_players_cannot_rebuild_from_one_number_is_refused(case, tmp_path):
    content = Content(ODD_LOKRS[case])
    assert "PEFT cannot build these LoKr shapes" in problems_of(write_peft, tmp_path, content)[0]
    assert "ACE-Step rebuilds a LoKr from one" in problems_of(write_lycoris, tmp_path / "x", content)[0]
    write_comfyui(tmp_path / "comfyui.safetensors", content)
    again = read_adapter(tmp_path / "comfyui.safetensors")
    assert all(
        torch.equal(again.delta(name, torch.zeros(one.shape)), one.product(torch.zeros(one.shape)))
        for name, one in content.changes.items()
    )


def test_lokrs_of_several_strengths_or_kinds_are_refused_where_one_header_counts_for_all(tmp_path):
    for other in (lokr((2, 2), (16, 16), 2, scale=3.0), lokr((2, 2), (16, 16), 2, norms=Norms(torch.ones(32)))):
        content = Content({Q: lokr((2, 2), (16, 16), 2), K: other})
        assert "ACE-Step rebuilds a LoKr from one" in problems_of(write_lycoris, tmp_path / "x", content)[0]


@pytest.mark.parametrize("dim", [None, 2])
def test_the_header_of_a_converted_lokr_gives_back_its_shapes(tmp_path, dim):
    content = Content({Q: lokr((2, 2), (16, 16), dim, 1.5), K: lokr((2, 2), (8, 16), dim, 1.5)})
    write_lycoris(tmp_path / "x.safetensors", content)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        config = json.loads(file.metadata()["lokr_config"])
    assert (config["factor"], config["linear_dim"]) == (2, 2 if dim else 9)
    assert config["linear_alpha"] == (3.0 if dim else 9.0)
    assert not config["bypass_mode"]
    assert config["target_modules"] == ["k_proj", "q_proj"]


def test_diffusers_may_have_a_dimension_for_each_module_but_no_odd_sides(tmp_path):
    content = Content(ODD_LOKRS["several dimensions"])
    assert write_diffusers_lokr(tmp_path / "x.safetensors", content) == 6
    assert not any(name.endswith("alpha") for name in load_file(tmp_path / "x.safetensors"))
    for case in ("several factors", "a first side that is larger"):
        assert "from one factor" in problems_of(write_diffusers_lokr, tmp_path / "y", Content(ODD_LOKRS[case]))[0]
    whole = Content({Q: lokr((2, 2), (16, 16), 12)})
    assert "from one factor" in problems_of(write_diffusers_lokr, tmp_path / "y", whole)[0]


THIN = LowRank(torch.ones(1, 4), torch.ones(4, 1))


@pytest.mark.parametrize(
    ("changes", "write", "said"),
    [
        ({Q: lokr((2, 2), (16, 16)), K: THIN}, write_peft, "cannot mix several kinds"),
        ({Q: lokr((2, 2), (16, 16)), K: THIN}, write_lycoris, "holds LoKr, LoHa or LoRA"),
        ({Q: Difference(torch.ones(4, 4))}, write_peft, "cannot store plain weight differences"),
        ({Q: Difference(torch.ones(4, 4))}, write_lycoris, "holds LoKr, LoHa or LoRA"),
        ({Q: lokr((2, 2), (16, 16), norms=Norms(torch.ones(32)))}, write_peft, "PEFT has no DoRA for this family"),
        ({Q: Rotation(torch.ones(2, 6)), K: Rotation(torch.ones(2, 1))}, write_peft, r"one block size .* \[2, 4\]"),
        ({Q: Rotation(torch.ones(2, 6)), K: Rotation(torch.ones(2, 6), 7)}, write_peft, "one block size"),
        ({Q: lokr((2, 2), (16, 16), norms=Norms(torch.ones(32)))}, write_diffusers_lokr, "no LoKr with DoRA"),
        ({Q: THIN}, write_diffusers_lokr, "is for a LoKr"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_express_is_refused_with_what_can(changes, write, said, tmp_path):
    with pytest.raises(AdapterError, match=said):
        write(tmp_path if write is write_peft else tmp_path / "x.safetensors", Content(changes))


@pytest.mark.parametrize(("terms", "series"), [(0, None), (7, 7)])
def test_an_oft_keeps_the_series_that_it_was_trained_with(tmp_path, terms, series):
    write_peft(tmp_path, Content({Q: Rotation(torch.randn(2, 6), terms)}))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["use_cayley_neumann"], config.get("num_cayley_neumann_terms")) == (bool(terms), series)
    assert read_adapter(tmp_path).changes[Q].terms == terms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("write", [write_comfyui, write_lycoris, write_peft, write_diffusers])
def test_only_factors_are_ever_rounded(tmp_path, dtype, write):
    change = LowRank(torch.randn(3, 4), torch.randn(4, 3), 1.2345678, norms=Norms(torch.rand(4) + 0.1234567))
    write(tmp_path if write is write_peft else tmp_path / "x.safetensors", Content({Q: change}), dtype=dtype)
    (file,) = tmp_path.glob("*.safetensors")
    for name, value in load_file(file).items():
        is_factor = "lora_A" in name or "lora_B" in name or "lora_up" in name or "lora_down" in name
        assert value.dtype == (dtype if is_factor else torch.float32)
        if name.endswith("alpha"):
            assert (value.item(), value.dim()) == (pytest.approx(3 * 1.2345678), 0)


@pytest.mark.parametrize("hint", [{"linear_dim": 40, "factor": 2}, {"linear_dim": 64, "factor": 2}])
def test_a_header_that_is_true_is_kept(tmp_path, hint):
    write_lycoris(tmp_path / "x.safetensors", Content({Q: lokr((2, 2), (16, 16))}, lokr_config=hint))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        config = json.loads(file.metadata()["lokr_config"])
    assert (config["linear_dim"], config["factor"]) == (hint["linear_dim"], 2)


def test_norms_can_be_written_over_one_weight_and_over_the_other():
    weight, values = torch.randn(4, 3), torch.rand(4) + 0.5
    change = LowRank(torch.randn(2, 3), torch.randn(4, 2), norms=Norms(values))
    over = with_norms_over(change, weight, base=True)
    torch.testing.assert_close(over.delta(weight.double()), change.delta(weight.double()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(with_norms_over(over, weight, base=False).norms.values, values)
    assert fit_for_comfyui(Content({Q: over}), "today", lambda _: pytest.fail("not needed")).changes[Q] is over


LIES = [
    {"linear_dim": 7, "factor": 3, "use_scalar": True, "decompose_both": True, "full_matrix": True, "linear_alpha": 99},
    {"linear_dim": -5, "factor": 0, "weight_decompose": True},
    {"linear_dim": "64", "factor": True, "unbalanced_factorization": True, "rs_lora": True},
    {"linear_dim": 10**9, "factor": 10**9, "use_tucker": True, "bypass_mode": True},
    {},
]


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("lie", LIES)
def test_what_a_strangers_header_says_is_kept_only_where_it_is_true(
    make_decoder, targets, train_a_little, original_tree, tmp_path, lie, dim
):
    """A header with use_scalar would give every layer that is not in the file random weights in ACE-Step."""
    adapter = attach_lokr(make_decoder(), targets, LokrSettings(dim, 3.0, factor=2), bias="none")
    train_a_little(adapter)
    (tmp_path / "trained").mkdir()
    adapter.save(tmp_path / "trained", {})
    file = tmp_path / "trained" / "lokr_weights.safetensors"
    save_file(load_file(file), tmp_path / "liar.safetensors", {"lokr_config": json.dumps(lie)})
    written = tmp_path / "honest.safetensors"
    write_lycoris(written, read_adapter(tmp_path / "liar.safetensors"))
    with safe_open(written, "pt") as opened:
        config = json.loads(opened.metadata()["lokr_config"])
    off = (
        "use_scalar",
        "decompose_both",
        "full_matrix",
        "unbalanced_factorization",
        "rs_lora",
        "bypass_mode",
        "use_tucker",
    )
    assert not any(config[name] for name in (*off, "weight_decompose"))
    assert config["linear_alpha"] == (3.0 if dim == 2 else config["linear_dim"])
    played = play_ace_step(original_tree(make_decoder()), written)
    assert not played.skipped
    for name, weight in effective_weights(original_tree(make_decoder())).items():
        change = adapter.effective_delta(name) if name in targets else torch.zeros_like(weight)
        torch.testing.assert_close(played.weights[name] - weight, change, rtol=1e-4, atol=1e-5)
