import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from woodshed.errors import CheckpointError
from woodshed.models.config import ModelConfig, read_model_config, read_vae_config


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        read_model_config(folder)
    return list(caught.value.problems)


def test_sizes_are_read_and_not_assumed(checkpoint_root: Path):
    config = read_model_config(checkpoint_root / "acestep-v15-xl-turbo")
    assert (config.hidden_size, config.latent_channels, config.text_hidden_dim, config.sliding_window) == (
        40,
        16,
        24,
        8,
    )
    assert (config.timestep_mu, config.timestep_sigma, config.sliding_window) == (-0.4, 1.0, 8)
    assert config.head_dim * config.num_attention_heads == 64  # not hidden_size
    assert config.layer_types == ("sliding_attention", "full_attention") * 2


def test_a_condition_encoder_of_its_own_width_makes_an_xl_model(checkpoint_root: Path, own_root: Path, edit_config):
    assert read_model_config(checkpoint_root / "acestep-v15-base").condition_width == 32
    assert read_model_config(checkpoint_root / "acestep-v15-xl-base").condition_width == 32
    assert not read_model_config(checkpoint_root / "acestep-v15-base").is_xl
    assert read_model_config(checkpoint_root / "acestep-v15-xl-base").is_xl
    edit_config(own_root / "acestep-v15-base", encoder_hidden_size=32)  # as files converted to diffusers have it
    assert not read_model_config(own_root / "acestep-v15-base").is_xl


@pytest.mark.parametrize("name", [name for name, field in ModelConfig.model_fields.items() if field.is_required()])
def test_every_required_field_is_missed_by_name(own_root: Path, edit_config, name):
    folder = own_root / "acestep-v15-base"
    edit_config(folder, **{name: ...})
    assert problems_of(folder) == [f"{folder / 'config.json'}: {name} is missing."]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 0}, "hidden_size: input should be greater than 0; got 0."),
        ({"hidden_size": "32"}, "hidden_size: input should be a valid integer; got '32'."),
        ({"hidden_size": 32.0}, "hidden_size: input should be a valid integer; got 32.0."),
        ({"timestep_sigma": 0}, "timestep_sigma: input should be greater than 0; got 0."),
        ({"is_turbo": "yes"}, "is_turbo: input should be a valid boolean; got 'yes'."),
        ({"hidden_act": "gelu"}, "hidden_act: input should be 'silu'; got 'gelu'."),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: input should be None; got {'type': 'yarn'}."),
        ({"use_sliding_window": False}, "use_sliding_window: input should be True; got False."),
        ({"layer_types": ["sliding_attention"]}, "layer_types has 1 entries for 4 layers."),
        ({"in_channels": 40}, "in_channels is 40, not 3 * 16."),
        ({"timbre_hidden_dim": 8}, "timbre_hidden_dim is 8, not 16 as the latents."),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads."),
    ],
)
def test_a_wrong_field_is_quoted(own_root: Path, edit_config, changes, said):
    folder = own_root / "acestep-v15-base"
    edit_config(folder, **changes)
    assert problems_of(folder) == [f"{folder / 'config.json'}: {said}"]


def test_an_unknown_kind_of_layer_is_quoted(own_root: Path, edit_config):
    edit_config(own_root / "acestep-v15-base", layer_types=["sliding_attention"] * 3 + ["linear_attention"])
    (problem,) = problems_of(own_root / "acestep-v15-base")
    assert "layer_types.3" in problem
    assert "got 'linear_attention'" in problem


def test_all_problems_come_at_once(own_root: Path, edit_config):
    edit_config(own_root / "acestep-v15-base", hidden_size=..., head_dim=-1, timestep_mu="low")
    assert len(problems_of(own_root / "acestep-v15-base")) == 3


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\udcff"])
def test_a_config_that_is_no_json_object_is_named(own_root: Path, text):
    path = own_root / "acestep-v15-base" / "config.json"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    (problem,) = problems_of(path.parent)
    assert str(path) in problem


def test_the_turbo_switch_falls_back_to_the_folder_name(own_root: Path, edit_config):
    for name, is_turbo in (("acestep-v15-xl-turbo", True), ("acestep-v15-base", False)):
        edit_config(own_root / name, is_turbo=...)
        assert read_model_config(own_root / name).is_turbo == is_turbo


def test_a_config_cannot_be_changed_by_accident(checkpoint_root: Path):
    config = read_model_config(checkpoint_root / "acestep-v15-base")
    with pytest.raises(ValidationError):
        config.hidden_size = 1


def test_the_vae_config_is_read_as_strictly(own_root: Path):
    path = own_root / "vae" / "config.json"
    assert read_vae_config(path.parent).downsampling_ratios == [2, 4, 4, 6, 10]
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"sampling_rate": "48k", "downsampling_ratios": []}))
    with pytest.raises(CheckpointError) as caught:
        read_vae_config(path.parent)
    assert len(caught.value.problems) == 2
