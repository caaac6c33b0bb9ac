import json
from pathlib import Path

import pytest
import torch

from woodshed.models.config import read_model_config
from woodshed.models.decoder import build_decoder
from woodshed.models.encoders import ConditionEncoder
from woodshed.models.keys import (
    DIFFUSERS_TO_ORIGINAL,
    ORIGINAL_TO_DIFFUSERS,
    diffusers_to_original,
    original_to_diffusers,
)


@pytest.fixture(params=["2b", "xl"])
def real_keys(request: pytest.FixtureRequest, golden: Path) -> dict:
    """Every tensor of a real checkpoint: pattern -> count, shape, name in diffusers."""
    return json.loads((golden / f"keys_real_{request.param}.json").read_text())


@pytest.fixture
def real_config(real_keys: dict, checkpoint_root: Path):
    """The config.json of the real model: the toy's fields with the published sizes."""
    name = "acestep-v15-base" if real_keys["variant"] == "2b" else "acestep-v15-xl-base"
    toy = read_model_config(checkpoint_root / name)
    sizes = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "in_channels": 192,
        "audio_acoustic_hidden_dim": 64,
        "timbre_hidden_dim": 64,
        "text_hidden_dim": 1024,
        "num_lyric_encoder_hidden_layers": 8,
        "num_timbre_encoder_hidden_layers": 4,
        "layer_types": ("sliding_attention", "full_attention") * 16,
        "sliding_window": 128,
    }
    xl_sizes = {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "encoder_hidden_size": 2048,
        "encoder_intermediate_size": 6144,
        "encoder_num_attention_heads": 16,
        "encoder_num_key_value_heads": 8,
    }
    return toy.model_copy(update=sizes | (xl_sizes if real_keys["variant"] == "xl" else {}))


def spell_out(real_keys: dict, beginning: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return original name -> shape and name in diffusers, for one part of the model."""
    return {
        pattern.replace("{i}", str(index)): (tuple(entry["shape"]), entry["diffusers_key"].replace("{i}", str(index)))
        for pattern, entry in real_keys["patterns"].items()
        if pattern.startswith(beginning)
        for index in range(entry["count"])
    }


def test_the_decoder_has_exactly_the_tensors_of_the_real_checkpoints(real_keys, real_config):
    with torch.device("meta"):
        decoder = build_decoder(real_config)
    ours = {f"decoder.{diffusers_to_original(name)}": tuple(t.shape) for name, t in decoder.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in spell_out(real_keys, "decoder.").items()}
    assert sum(t.numel() for t in decoder.parameters()) == real_keys["params"]["decoder."]


def test_the_condition_encoder_has_exactly_the_tensors_of_the_real_checkpoints(real_keys, real_config):
    with torch.device("meta"):
        encoder = ConditionEncoder(real_config)
    ours = {f"encoder.{diffusers_to_original(name)}": tuple(t.shape) for name, t in encoder.state_dict().items()}
    null_condition = ours.pop("encoder.null_condition_emb")
    assert ours == {name: shape for name, (shape, _) in spell_out(real_keys, "encoder.").items()}
    assert null_condition == spell_out(real_keys, "null_condition_emb")["null_condition_emb"][0]


def test_every_real_name_translates_to_the_name_in_diffusers_and_back(real_keys):
    for part in ("decoder.", "encoder.", "tokenizer.", "detokenizer."):
        for original, (_, diffusers) in spell_out(real_keys, part).items():
            assert original_to_diffusers(original.removeprefix(part)) == diffusers
            assert diffusers_to_original(diffusers) == original.removeprefix(part)


@pytest.mark.parametrize(
    ("original", "diffusers"),
    [
        ("q_proj", "to_q"),
        ("layers.3.cross_attn.o_proj", "layers.3.cross_attn.to_out.0"),
        ("layers.0.self_attn.k_proj.lora_A.default.weight", "layers.0.self_attn.to_k.lora_A.default.weight"),
        (
            "base_model.model.layers.0.self_attn.v_proj.lora_B.weight",
            "base_model.model.layers.0.self_attn.to_v.lora_B.weight",
        ),
        ("proj_in.1.lora_A.weight", "proj_in_conv.lora_A.weight"),
        ("proj_out.1", "proj_out_conv"),
    ],
)
def test_modules_and_adapter_keys_translate_like_tensors(original, diffusers):
    assert original_to_diffusers(original) == diffusers
    assert diffusers_to_original(diffusers) == original


@pytest.mark.parametrize(
    "name", ["layers.0.mlp.gate_proj.weight", "proj_out.weight", "my_q_proj", "q_projection", "proj_in.10"]
)
def test_a_name_that_only_resembles_one_in_the_table_stays(name):
    assert original_to_diffusers(name) == name
    assert diffusers_to_original(name) == name


def test_the_table_reads_the_same_in_both_directions():
    assert len(DIFFUSERS_TO_ORIGINAL) == len(ORIGINAL_TO_DIFFUSERS)
