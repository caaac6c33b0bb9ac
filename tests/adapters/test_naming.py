"""Names of modules and tensors in every spelling of the field, read back to the original model's name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodshed.adapters.naming import (
    comfyui_module,
    diffusers_module,
    lycoris_module,
    peft_module,
    read_key,
    read_module,
    unflatten,
)
from woodshed.models.keys import original_to_diffusers

PROJECTIONS = [f"{block}.{name}_proj" for block in ("self_attn", "cross_attn") for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
OUTSIDE = [
    *(f"{embed}.{leaf}" for embed in ("time_embed", "time_embed_r") for leaf in ("linear_1", "linear_2", "time_proj")),
    "condition_embedder",
    "proj_in.1",
    "proj_out.1",
]
MODULES = st.one_of(
    st.builds("layers.{}.{}".format, st.integers(0, 99), st.sampled_from(PROJECTIONS + MLP)), st.sampled_from(OUTSIDE)
)


def flat(module):
    return module.replace(".", "_")


SPELLINGS = {
    "PEFT": peft_module,
    "PEFT in diffusers' names": lambda module: "base_model.model." + original_to_diffusers(module),
    "PEFT around a whole model": lambda module: "base_model.model.decoder." + module,
    "ComfyUI": comfyui_module,
    "diffusers": diffusers_module,
    "LyCORIS": lycoris_module,
    "LyCORIS in diffusers' names": lambda module: "lycoris_" + flat(original_to_diffusers(module)),
    "LyCORIS around a whole model": lambda module: "lycoris_decoder_" + flat(module),
    "kohya": lambda module: "lora_unet_" + flat(module),
    "ComfyUI's kohya": lambda module: "lora_unet_decoder_" + flat(module),
    "SimpleTuner's LyCORIS": lambda module: "lora_transformer_" + flat(original_to_diffusers(module)),
    "no prefix": str,
    "a wrapped model": lambda module: "module." + module,
    "a decoder": lambda module: "decoder." + module,
}
PARTS = {
    "lora_A": ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight"),
    "lora_B": ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight"),
    "magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight"),
    "oft_R": ("oft_R.weight", "oft_R.default.weight"),
    "bias": ("bias", "base_layer.bias"),
    **{name: (name,) for name in ("alpha", "dora_scale", "diff", "diff_b")},
    **{f"lokr_w{number}{end}": (f"lokr_w{number}{end}",) for number in "12" for end in ("", "_a", "_b")},
    **{f"hada_w{number}_{end}": (f"hada_w{number}_{end}",) for number in "12" for end in "ab"},
}
SUFFIXES = st.sampled_from([(part, spelled) for part, words in PARTS.items() for spelled in words])


@given(module=MODULES, spelling=st.sampled_from(list(SPELLINGS)), suffix=SUFFIXES)
def test_a_tensor_is_recognised_in_every_spelling(module, spelling, suffix):
    part, spelled = suffix
    assert read_key(f"{SPELLINGS[spelling](module)}.{spelled}") == (module, part)


@given(module=MODULES, other=MODULES, spelling=st.sampled_from(list(SPELLINGS)))
def test_two_modules_never_share_a_name(module, other, spelling):
    spell = SPELLINGS[spelling]
    assert (spell(module) == spell(other)) == (module == other)


@given(st.text(max_size=40), SUFFIXES)
def test_whatever_stands_in_a_file_comes_out_as_a_plain_dotted_name_or_not_at_all(text, suffix):
    for key in (text, f"{text}.{suffix[1]}", f"lycoris_{text}.alpha", f"base_model.model.{text}.bias"):
        found = read_key(key)
        assert found is None or (re.fullmatch(r"[A-Za-z0-9_.]+", found[0]) and found[1] in PARTS)


@pytest.mark.parametrize(
    "key",
    [
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.q_proj.lora_C.weight",
        "layers.0.self_attn.q_proj.lora_A",
        "layers.0.self_attn.q_proj.lora_A.other.weight",
        "layers.0.self_attn.q_proj.lokr_w3",
        "layers.0.self_attn.q_proj.lokr_t2",
        "layers.0.self_attn.q_proj.hada_t1",
        "layers.0.self_attn.q_proj.oft_blocks",
        "layers..q_proj.alpha",
        "../q_proj.alpha",
        "C:\\q_proj.alpha",
        "q_proj\n.alpha",
        "\u0661.alpha",
        ".alpha",
        "alpha",
    ],
)
def test_what_is_no_tensor_of_an_adapter_is_none(key):
    assert read_key(key) is None


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("lycoris_layers_12_self_attn_q_proj", "layers.12.self_attn.q_proj"),
        ("lycoris_layers_1_mlp_gate_proj", "layers.1.mlp.gate_proj"),
        ("lycoris_time_embed_r_time_proj", "time_embed_r.time_proj"),
        ("lycoris_time_embed_linear_2", "time_embed.linear_2"),
        ("lycoris_proj_in_1", "proj_in.1"),
        ("lycoris_proj_in_conv", "proj_in.1"),
        ("lora_transformer_layers_3_cross_attn_to_out_0", "layers.3.cross_attn.o_proj"),
        ("lycoris_of_another_model", "of_another_model"),
        ("text_encoder.layers.0.q_proj", "text_encoder.layers.0.q_proj"),
    ],
)
def test_flattened_names_get_their_dots_back_and_foreign_ones_stay_foreign(name, module):
    assert read_module(name) == module


def test_a_prefix_inside_a_name_is_part_of_the_name():
    assert unflatten("mylayers_0_self") == "mylayers_0_self"
    assert read_module("x.decoder.q_proj") == "x.decoder.q_proj"
