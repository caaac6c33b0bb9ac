"""What a PEFT config says of strength: the same numbers as PEFT's own layers get out of it."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.utils.other import get_pattern_key
from torch import nn

from woodshed.adapters.peft_config import parse_config, parse_diffusers_header
from woodshed.errors import AdapterError
from woodshed.models.keys import original_to_diffusers

HERE = Path("adapter_config.json")
LEAVES = ("q_proj", "k_proj", "o_proj", "gate_proj")
NAMES = [f"layers.{layer}.{block}.{leaf}" for layer in (0, 1, 10) for block in ("self_attn", "mlp") for leaf in LEAVES]
ENDS = [*LEAVES, "self_attn.q_proj", "mlp.gate_proj", "layers.0.self_attn.q_proj", "^layers.1.mlp.o_proj", "^q_proj"]
PATTERNS = st.dictionaries(st.sampled_from([*ENDS, *NAMES]), st.integers(1, 8), max_size=4)


@given(pattern=PATTERNS, module=st.sampled_from(NAMES))
def test_a_pattern_concerns_the_modules_that_peft_says(pattern, module):
    config = parse_config({"peft_type": "LORA", "r": 3, "lora_alpha": 99, "alpha_pattern": pattern}, HERE)
    theirs = pattern.get(get_pattern_key(pattern, module), 99)
    assert config.scale_of(module, 1) == theirs


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.o_proj = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(8, 6)


@given(
    rank=st.integers(1, 4),
    alpha=st.one_of(st.integers(1, 9), st.floats(0.25, 9)),
    ranks=st.dictionaries(st.sampled_from(["q_proj", "^k_proj"]), st.integers(1, 4)),
    alphas=st.dictionaries(st.sampled_from(["q_proj", "o_proj"]), st.floats(0.5, 9)),
    is_rslora=st.booleans(),
)
def test_the_scale_of_every_module_is_that_of_pefts_own_layer(rank, alpha, ranks, alphas, is_rslora):
    own = {"r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas, "use_rslora": is_rslora}
    config = parse_config({"peft_type": "LORA", **own}, HERE)
    model = inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "k_proj", "o_proj"], **own), Tiny())
    for name in ("q_proj", "k_proj", "o_proj"):
        layer = model.get_submodule(name)
        assert config.rank_of(name) == layer.r["default"]
        assert config.scale_of(name, layer.r["default"]) == pytest.approx(layer.scaling["default"])


@pytest.mark.parametrize(("kind", "config"), [("LOKR", LoKrConfig), ("LOHA", LoHaConfig)])
def test_alpha_of_the_other_families_is_called_alpha(kind, config):
    own = {"r": 2, "alpha": 5, "alpha_pattern": {"k_proj": 3}, "rank_pattern": {"o_proj": 4}}
    model = inject_adapter_in_model(config(target_modules=["q_proj", "k_proj", "o_proj"], **own), Tiny())
    parsed = parse_config({"peft_type": kind, **own}, HERE)
    for name in ("q_proj", "k_proj", "o_proj"):
        assert parsed.scale_of(name, parsed.rank_of(name)) == model.get_submodule(name).scaling["default"]


@pytest.mark.parametrize("key", ["to_q", "self_attn.to_out.0", "^layers.1.self_attn.to_k"])
def test_patterns_in_the_names_of_diffusers_concern_the_same_modules(key):
    """As PEFT writes them that was put on the decoder of diffusers."""
    config = parse_config({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": {key: 1}}, HERE)
    for module in NAMES:
        theirs = original_to_diffusers(module)
        met = theirs == key[1:] if key.startswith("^") else theirs.endswith(f".{key}")
        assert config.scale_of(module, 4) == (0.25 if met else 1.0)


@pytest.mark.parametrize("key", ["decoder.layers.0.mlp.gate_proj", "^decoder.layers.0.mlp.gate_proj"])
def test_patterns_of_a_model_around_the_decoder_concern_the_same_modules(key):
    config = parse_config({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": {key: 1}}, HERE)
    assert [name for name in NAMES if config.scale_of(name, 4) != 1] == ["layers.0.mlp.gate_proj"]


def test_a_missing_rank_counts_as_one_because_the_tensors_show_it():
    config = parse_config({"peft_type": "LORA", "lora_alpha": 6}, HERE)
    assert (config.rank_of("q_proj"), config.scale_of("q_proj", 4)) == (1, 1.5)


@pytest.mark.parametrize(
    ("fields", "terms"),
    [({}, 5), ({"use_cayley_neumann": False}, 0), ({"num_cayley_neumann_terms": 7}, 7), ({"coft": False}, 5)],
)
def test_an_oft_says_which_series_its_rotations_are(fields, terms):
    assert parse_config({"peft_type": "OFT", **fields}, HERE).terms == terms


@pytest.mark.parametrize("terms", [3, 101, -1, 4.5, "5", None])
def test_a_series_that_cannot_be_summed_is_refused(terms):
    with pytest.raises(AdapterError, match=f"has {terms!r} num_cayley_neumann_terms; 4 to 100 can be read"):
        parse_config({"peft_type": "OFT", "num_cayley_neumann_terms": terms}, HERE)


@pytest.mark.parametrize("switch", ["coft", "block_share"])
def test_an_oft_of_another_kind_is_refused_by_name(switch):
    with pytest.raises(AdapterError, match=f"has {switch} set, which cannot be read"):
        parse_config({"peft_type": "OFT", switch: True}, HERE)


def test_the_header_of_diffusers_is_the_same_config_with_a_prefix():
    header = {"transformer.r": 4, "transformer.lora_alpha": 6, "transformer.alpha_pattern": {"^layers.0.x.to_q": 3}}
    config = parse_diffusers_header(header, HERE)
    assert config is not None
    assert (config.scale_of("layers.0.x.q_proj", 4), config.scale_of("layers.1.x.q_proj", 4)) == (0.75, 1.5)
    assert parse_diffusers_header({}, HERE) is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "1", None, [], False])
def test_no_number_but_a_number_is_an_alpha(value):
    with pytest.raises(AdapterError, match="no usable lora_alpha"):
        parse_config({"peft_type": "LORA", "r": 1, "lora_alpha": value}, HERE)


def test_a_config_that_says_alpha_zero_switches_the_adapter_off_as_in_peft():
    layer = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2, lora_alpha=0), Tiny()).q_proj
    assert parse_config({"peft_type": "LORA", "r": 2, "lora_alpha": 0}, HERE).scale_of("q_proj", 2) == 0
    torch.testing.assert_close(layer.scaling["default"], 0.0)
