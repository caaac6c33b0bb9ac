import json

import pytest

from woodshed.adapters.targets import decoder_linear_shapes, linear_shapes, resolve_targets
from woodshed.errors import AdapterError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def make_shapes(layers):
    """The linear layers of the real 2B decoder, as the original code names and orders them."""
    shapes = {}
    for i in range(layers):
        for block in ("self_attn", "cross_attn"):
            for leaf, out in zip(ATTENTION, (2048, 1024, 1024, 2048), strict=True):
                shapes[f"layers.{i}.{block}.{leaf}"] = (out, 2048)
        shapes |= {f"layers.{i}.mlp.{leaf}": (6144, 2048) for leaf in ("gate_proj", "up_proj")}
        shapes[f"layers.{i}.mlp.down_proj"] = (2048, 6144)
    for embed in ("time_embed", "time_embed_r"):
        shapes[f"{embed}.linear_1"] = (2048, 256)
        shapes[f"{embed}.linear_2"] = (2048, 2048)
        shapes[f"{embed}.time_proj"] = (6 * 2048, 2048)
    shapes["condition_embedder"] = (2048, 2048)
    return shapes


REAL = make_shapes(24)


def resolve(words, attention_type="both", shapes=REAL):
    return resolve_targets(shapes, attention_type=attention_type, target_modules=words)


@pytest.mark.parametrize(("attention_type", "count"), [("both", 192), ("self", 96), ("cross", 96)])
def test_the_24_layer_model_gives_the_promised_numbers(attention_type, count):
    found = resolve(ATTENTION, attention_type)
    assert len(found) == len(set(found)) == count
    assert all(attention_type == "both" or f".{attention_type}_attn." in name for name in found)


def test_each_projection_is_itself_only():
    for word in ATTENTION:
        assert resolve([word], "cross") == [f"layers.{i}.cross_attn.{word}" for i in range(24)]


def test_attention_type_filters_neither_the_mlp_nor_full_names():
    words = ["down_proj", "layers.3.self_attn.v_proj", "time_embed.linear_1", "q_proj"]
    found = resolve(words, "cross")
    assert [name for name in found if name.endswith("down_proj")] == [f"layers.{i}.mlp.down_proj" for i in range(24)]
    assert "layers.3.self_attn.v_proj" in found
    assert "time_embed.linear_1" in found
    assert "time_embed_r.linear_1" not in found
    assert "layers.3.self_attn.q_proj" not in found
    assert len(found) == 24 + 1 + 1 + 24


@pytest.mark.parametrize(
    "words",
    [
        ["q_proj", "v_proj"],
        ("v_proj", "q_proj", "q_proj"),
        "q_proj v_proj",
        "q_proj,v_proj",
        " q_proj,  v_proj, ",
        ["q_proj, v_proj"],
    ],
)
def test_lists_spaces_and_commas_mean_the_same(words):
    assert resolve(words) == [name for name in REAL if name.endswith(("q_proj", "v_proj"))]


def test_a_full_name_means_one_layer_although_others_begin_or_end_like_it():
    assert resolve("layers.1.cross_attn.q_proj") == ["layers.1.cross_attn.q_proj"]


def test_every_bad_word_is_named_with_a_suggestion_and_what_there_is():
    with pytest.raises(AdapterError) as caught:
        resolve("q_porj v_proj decoder.layers.3.self_attn.v_proj layers.24.mlp.up_proj xyz")
    assert caught.value.problems == (
        "There is no layer called 'q_porj' to adapt. Did you mean q_proj?",
        "There is no layer called 'decoder.layers.3.self_attn.v_proj' to adapt. "
        "Did you mean layers.3.self_attn.v_proj?",
        "There is no layer called 'layers.24.mlp.up_proj' to adapt. Did you mean layers.4.mlp.up_proj?",
        "There is no layer called 'xyz' to adapt.",
        "Targets are q_proj k_proj v_proj o_proj in the attention, gate_proj up_proj down_proj in the MLP, "
        "and full names from layers.0.self_attn.q_proj to layers.23.mlp.down_proj, time_embed.linear_1, "
        "time_embed.linear_2, time_embed.time_proj, time_embed_r.linear_1, time_embed_r.linear_2, "
        "time_embed_r.time_proj, condition_embedder.",
    )


@pytest.mark.parametrize("words", [[], "", " , "])
def test_no_word_at_all_is_an_error(words):
    with pytest.raises(AdapterError, match="No layer to adapt is named"):
        resolve(words)


@pytest.mark.parametrize("word", ["layers", "self_attn", "to_q", "proj_in.1", "linear_1", "0", ".*"])
def test_what_is_no_linear_layer_of_the_original_is_refused(word):
    with pytest.raises(AdapterError):
        resolve(word)


@pytest.mark.parametrize("name", ["acestep-v15-base", "acestep-v15-xl-base"])
def test_shapes_come_from_the_config_alone_and_are_those_of_the_built_model(configs, make_decoder, name):
    config = configs[name]
    shapes = decoder_linear_shapes(config)
    heads, kv_heads = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    assert shapes["layers.0.self_attn.k_proj"] == (kv_heads, config.hidden_size)
    assert shapes["layers.0.cross_attn.o_proj"] == (config.hidden_size, heads)
    assert shapes["condition_embedder"] == (config.hidden_size, config.condition_width)
    if name == "acestep-v15-base":
        assert shapes == linear_shapes(make_decoder(layers=4))


@pytest.mark.parametrize("name", ["2b", "xl"])
def test_the_real_checkpoints_have_exactly_these_linear_layers(golden, config, name):
    """Against the list of tensors in the real files: every matrix of the decoder, and no other, can be a target."""
    patterns = json.loads((golden / f"keys_real_{name}.json").read_text())["patterns"]
    real = {}
    for pattern, entry in patterns.items():
        tensor = pattern.removeprefix("decoder.")
        if pattern.startswith("decoder.") and tensor.endswith(".weight") and len(entry["shape"]) == 2:
            count = entry["count"] if "{i}" in tensor else 1
            real |= {tensor.replace("{i}", str(i)).removesuffix(".weight"): tuple(entry["shape"]) for i in range(count)}
    hidden, condition = real["condition_embedder"]
    heads, kv_heads = (real[f"layers.0.self_attn.{leaf}"][0] // 128 for leaf in ("q_proj", "k_proj"))
    real_config = config.model_copy(
        update={
            "hidden_size": hidden,
            "encoder_hidden_size": condition,
            "intermediate_size": real["layers.0.mlp.up_proj"][0],
            "num_hidden_layers": sum(name.endswith("mlp.up_proj") for name in real),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 128,
            "layer_types": ("full_attention",) * 40,
        }
    )
    assert decoder_linear_shapes(real_config) == real
