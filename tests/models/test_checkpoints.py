import shutil
from pathlib import Path

import pytest
import torch

from woodshed.errors import CheckpointError
from woodshed.models.checkpoints import choose_model, find_checkpoints, fingerprint, read_checkpoint

WEIGHTS = "model.safetensors"


def copy_model(root: Path, name: str, copy: str) -> Path:
    return Path(shutil.copytree(root / name, root / copy))


def test_every_variant_is_found_and_known_for_what_it_is(checkpoint_root: Path):
    found = find_checkpoints(checkpoint_root)
    assert [(model.name, model.kind, model.is_xl, model.is_official) for model in found.models] == [
        ("acestep-v15-base", "base", False, True),
        ("acestep-v15-sft", "sft", False, True),
        ("acestep-v15-turbo", "turbo", False, True),
        ("acestep-v15-xl-base", "base", True, True),
        ("acestep-v15-xl-turbo", "turbo", True, True),
    ]
    assert found.require_vae() == checkpoint_root / "vae"
    assert found.require_text_encoder() == checkpoint_root / "Qwen3-Embedding-0.6B"
    assert not found.unusable


def test_one_file_and_shards_are_both_found(checkpoint_root: Path):
    files = {
        model.name: [file.name for file in model.weight_files] for model in find_checkpoints(checkpoint_root).models
    }
    assert files["acestep-v15-base"] == [WEIGHTS]
    assert files["acestep-v15-xl-turbo"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_folders_that_are_no_models_are_passed_over(own_root: Path):
    for name in ("acestep-5Hz-lm-1.7B", "Qwen3-Something", "vae-old"):
        copy_model(own_root, "acestep-v15-base", name)
    (own_root / "notes").mkdir()
    (own_root / "notes" / "config.json").write_text('{"model_type": "bert"}')
    (own_root / "readme.txt").write_text("hello")
    assert [model.name for model in find_checkpoints(own_root).models] == ["acestep-v15-base", "acestep-v15-xl-turbo"]


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        ("my-jazz", {"is_turbo": True, "model_version": "base"}, "turbo"),
        ("acestep-v15-base", {"is_turbo": True}, "turbo"),  # is_turbo is the switch, whatever the folder is called
        ("my-jazz", {"is_turbo": ...}, "unknown"),
        ("my-turbo-jazz", {"is_turbo": ...}, "turbo"),
        ("my-turbo-jazz", {"is_turbo": False}, "unknown"),
        ("my-jazz", {"model_version": "sft"}, "sft"),
        ("my_sft_jazz", {}, "sft"),
        ("bassline", {}, "unknown"),
        ("my-base-jazz", {"model_version": "sft"}, "sft"),
        ("acestep-v15-sft", {"model_version": "base"}, "sft"),  # published under this name
        ("my-jazz", {"model_version": "turbo"}, "unknown"),  # the code's default, so it says nothing
    ],
)
def test_a_fine_tune_is_identified_by_its_config_and_then_its_name(own_root: Path, edit_config, name, changes, kind):
    folder = own_root / name
    if not folder.exists():
        copy_model(own_root, "acestep-v15-base", name)
    edit_config(folder, **({"model_version": ...} | changes))
    model = read_checkpoint(folder)
    assert model.kind == kind
    assert model.is_official == name.startswith("acestep-v15-")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("acestep-v15-base", "acestep-v15-base"),
        ("base", "acestep-v15-base"),
        ("sft", "acestep-v15-sft"),
        ("turbo", "acestep-v15-turbo"),
        ("xl-base", "acestep-v15-xl-base"),
        ("xl-turbo", "acestep-v15-xl-turbo"),
    ],
)
def test_a_model_is_chosen_by_its_folder_or_a_short_word(checkpoint_root: Path, word, name):
    assert choose_model(find_checkpoints(checkpoint_root), word).name == name


def test_a_misspelt_model_gets_a_suggestion_and_the_list(checkpoint_root: Path):
    with pytest.raises(CheckpointError, match=r"no model xl-tubro .* mean acestep-v15-xl-turbo\? Found: acestep-v15"):
        choose_model(find_checkpoints(checkpoint_root), "xl-tubro")
    with pytest.raises(CheckpointError) as caught:
        choose_model(find_checkpoints(checkpoint_root), "zzz")
    assert "Did you mean" not in str(caught.value)


def test_a_missing_root_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint folder .*nowhere"):
        find_checkpoints(tmp_path / "nowhere")


def test_a_root_without_models_says_what_it_saw(own_root: Path, tmp_path: Path):
    for name in ("acestep-v15-base", "acestep-v15-xl-turbo"):
        shutil.rmtree(own_root / name)
    with pytest.raises(CheckpointError, match=r"saw Qwen3-Embedding-0\.6B, vae"):
        find_checkpoints(own_root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="saw no folder at all"):
        find_checkpoints(tmp_path / "empty")


def test_a_model_given_as_the_root_is_answered_with_the_right_flags(own_root: Path):
    with pytest.raises(CheckpointError, match=f"--checkpoint-dir {own_root} --model acestep-v15-base"):
        find_checkpoints(own_root / "acestep-v15-base")


def test_a_spoilt_model_hides_no_other_and_is_explained_when_chosen(own_root: Path, edit_config):
    edit_config(own_root / "acestep-v15-base", hidden_size=..., sliding_window=-1)
    found = find_checkpoints(own_root)
    assert [model.name for model in found.models] == ["acestep-v15-xl-turbo"]
    for word in ("base", "acestep-v15-base"):
        with pytest.raises(CheckpointError) as caught:
            choose_model(found, word)
        assert len(caught.value.problems) == 2
    shutil.rmtree(own_root / "acestep-v15-xl-turbo")
    with pytest.raises(CheckpointError, match="hidden_size is missing"):
        find_checkpoints(own_root)


def test_missing_weights_and_config_problems_are_told_together(own_root: Path, edit_config):
    edit_config(own_root / "acestep-v15-base", head_dim=...)
    (own_root / "acestep-v15-base" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(own_root / "acestep-v15-base")
    assert "head_dim is missing" in caught.value.problems[0]
    assert "has no weights" in caught.value.problems[1]


def test_a_missing_shard_is_named(own_root: Path):
    (own_root / "acestep-v15-xl-turbo" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.safetensors"):
        read_checkpoint(own_root / "acestep-v15-xl-turbo")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../acestep-v15-base/model.safetensors"}}']
)
def test_an_index_that_names_no_shards_in_the_folder_is_refused(own_root: Path, text):
    (own_root / "acestep-v15-xl-turbo" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_checkpoint(own_root / "acestep-v15-xl-turbo")


def test_a_missing_vae_or_text_encoder_matters_only_to_who_needs_it(own_root: Path):
    shutil.rmtree(own_root / "vae")
    shutil.rmtree(own_root / "Qwen3-Embedding-0.6B")
    found = find_checkpoints(own_root)
    with pytest.raises(CheckpointError, match="has no folder vae"):
        found.require_vae()
    with pytest.raises(CheckpointError, match=r"has no folder Qwen3-Embedding-0\.6B"):
        found.require_text_encoder()


def test_fingerprints_tell_the_variants_apart(checkpoint_root: Path):
    digests = [fingerprint(model) for model in find_checkpoints(checkpoint_root).models]
    assert len(set(digests)) == len(digests) == 5
    assert digests == [fingerprint(model) for model in find_checkpoints(checkpoint_root).models]


@pytest.mark.parametrize(
    ("name", "is_changed"),
    [
        ("encoder.text_projector.weight", True),
        ("encoder.lyric_encoder.layers.1.input_layernorm.weight", True),
        ("encoder.timbre_encoder.special_token", True),
        ("null_condition_emb", True),
        ("decoder.condition_embedder.weight", False),
        ("decoder.norm_out.weight", False),
    ],
)
def test_a_fingerprint_follows_the_condition_encoder_and_not_the_decoder(own_root: Path, rewrite, name, is_changed):
    model = read_checkpoint(own_root / "acestep-v15-base")
    before = fingerprint(model)
    rewrite(model.weight_files[0], lambda tensors: tensors[name].add_(1))
    assert (fingerprint(model) != before) == is_changed


def test_a_fingerprint_knows_no_precision_and_no_folder_name(own_root: Path, rewrite):
    copy = copy_model(own_root, "acestep-v15-base", "elsewhere")
    rewrite(copy / WEIGHTS, lambda tensors: tensors.update({name: t.to(torch.float32) for name, t in tensors.items()}))
    assert fingerprint(read_checkpoint(copy)) == fingerprint(read_checkpoint(own_root / "acestep-v15-base"))


def test_weights_without_a_condition_encoder_have_no_fingerprint(own_root: Path, rewrite):
    model = read_checkpoint(own_root / "acestep-v15-base")
    rewrite(model.weight_files[0], lambda tensors: tensors.pop("null_condition_emb"))
    with pytest.raises(CheckpointError, match="lack null_condition_emb"):
        fingerprint(model)
