"""Merging as functions: every family, several at once, in shards and in bf16, and what must not be written."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed.adapters import merge as merge_module
from woodshed.adapters.comfyui_format import fit_for_comfyui, write_comfyui
from woodshed.adapters.content import Content
from woodshed.adapters.dora import attach_dora
from woodshed.adapters.files import load_adapter, save_adapter
from woodshed.adapters.loha import attach_loha
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.merge import merge_adapters, read_parts
from woodshed.adapters.oft import attach_oft
from woodshed.errors import AdapterError, UserError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.keys import original_to_diffusers
from woodshed.models.load import load_decoder

BASE = "acestep-v15-base"
FAMILIES = {
    "lora": lambda decoder, targets: attach_lora(decoder, targets, rank=3, alpha=5.0, dropout=0.0, bias="all"),
    "dora": lambda decoder, targets: attach_dora(decoder, targets, rank=3, alpha=5.0, dropout=0.0, bias="none"),
    "lokr": lambda decoder, targets: attach_lokr(decoder, targets, LokrSettings(2, 3.0, factor=2), bias="all"),
    "lokr dora": lambda decoder, targets: attach_lokr(
        decoder, targets, LokrSettings(2, 3.0, factor=2, weight_decompose=True), bias="none"
    ),
    "loha": lambda decoder, targets: attach_loha(decoder, targets, rank=2, alpha=3.0),
    "oft": lambda decoder, targets: attach_oft(decoder, targets, block_size=8),
}


def find(root, name=BASE):
    return choose_model(find_checkpoints(root), name)


def decoder_of(checkpoint):
    return load_decoder(checkpoint, dtype=torch.float32, device="cpu")


def tensors_of(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.fixture
def root(checkpoint_root, tmp_path):
    """A checkpoint root with a copy of the toy base model in float32, which a test may change."""
    for name in (BASE, "vae", "Qwen3-Embedding-0.6B"):
        shutil.copytree(checkpoint_root / name, tmp_path / "root" / name)
    file = tmp_path / "root" / BASE / "model.safetensors"
    save_file({name: value.float() for name, value in load_file(file).items()}, file, {"format": "pt"})
    return tmp_path / "root"


@pytest.fixture
def recast(root):
    """Store the model in another number format and in several files."""

    def change(dtype, shards=1):
        folder = root / BASE
        tensors = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
        (folder / "model.safetensors").unlink()
        names = list(tensors)
        files = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
            files |= dict.fromkeys(names[shard::shards], file)
            save_file({name: tensors[name] for name in names[shard::shards]}, folder / file, {"format": "pt"})
        if shards > 1:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
        return find(root)

    return change


@pytest.fixture
def make(checkpoint_root, targets, train_a_little, tmp_path):
    """Train a family on the toy model and save it."""

    def build(family):
        decoder = decoder_of(find(checkpoint_root))
        torch.manual_seed(1)
        adapter = FAMILIES[family](decoder, targets)
        train_a_little(adapter)
        save_adapter(adapter, tmp_path / family, {"shift": 3.0})
        return decoder, adapter, tmp_path / family

    return build


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_the_model_with_the_adapter(family, make, root, inputs):
    trained, adapter, path = make(family)
    base = find(root)
    done = merge_adapters(base, read_parts([path], [1.0], base), root / "merged")
    assert done.changed == len(adapter.modules) + len(adapter.biases.parameters)
    assert done.kept == pytest.approx(1, abs=1e-5)
    merged = find(root, "merged")
    assert merged.kind == base.kind
    torch.testing.assert_close(decoder_of(merged)(**inputs).sample, trained(**inputs).sample, rtol=1e-4, atol=1e-4)
    before, after = tensors_of(base.folder), tensors_of(merged.folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    modules = {f"decoder.{name}.weight" for name in adapter.modules}
    assert changed == modules | {f"decoder.{name}" for name in adapter.biases.parameters}


@pytest.mark.parametrize("strength", [0.5, -1.0, 2.0])
def test_a_merge_at_a_strength_is_what_playing_at_it_sounds_like(strength, make, root):
    paths = [make("lora")[2], make("dora")[2]]
    base = find(root)
    merge_adapters(base, read_parts(paths, [strength, 0.25], base), root / "merged")
    played = decoder_of(base)
    deltas = [(strength, load_adapter(decoder_of(base), paths[0])), (0.25, load_adapter(decoder_of(base), paths[1]))]
    weights = dict(decoder_of(find(root, "merged")).named_parameters())
    with torch.no_grad():
        for name, value in played.named_parameters():
            module = name.removesuffix(".weight")
            for share, one in deltas:
                for original in one.changes:
                    if original_to_diffusers(original) == module:
                        value += share * one.effective_delta(original)
            if name.endswith(".weight"):
                torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_and_half_precision_keep_their_layout_and_round_once(dtype, make, recast, root):
    _, adapter, path = make("lora")
    base = recast(dtype, shards=3)
    done = merge_adapters(base, read_parts([path], [0.7], base), root / "merged")
    assert 0.9 < done.kept < 1.1
    assert f"{done.kept:.6f} of the change is left" in str(done)
    merged = root / "merged"
    assert {path.name for path in merged.iterdir()} == {path.name for path in base.folder.iterdir()} | {
        "woodshed_merge.json"
    }
    for file in base.folder.glob("*.safetensors"):
        one, other = file.read_bytes(), (merged / file.name).read_bytes()
        length = 8 + int.from_bytes(one[:8], "little")
        assert one[:length] == other[:length]  # names, shapes, order and formats
    before, after = tensors_of(base.folder), tensors_of(merged)
    for name, value in before.items():
        module = name.removeprefix("decoder.").removesuffix(".weight")
        wanted = value.double()
        if module in adapter.modules and name.endswith(".weight"):
            wanted = wanted + 0.7 * adapter.effective_delta(module).double()
        bias = adapter.biases.parameters.get(name.removeprefix("decoder."))
        if bias is not None:
            wanted = wanted + 0.7 * (bias.detach().double() - wanted)
        step = torch.finfo(dtype).eps
        assert ((after[name].double() - wanted).abs() <= step * wanted.abs() + 1e-6).all(), name


def test_what_cancels_out_leaves_the_base_bit_for_bit(make, root):
    _, _, path = make("loha")
    base = find(root)
    done = merge_adapters(base, read_parts([path, path], [1.0, -1.0], base), root / "merged")
    assert done.kept == 1.0
    before, after = tensors_of(base.folder), tensors_of(root / "merged")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_order_of_the_adapters_does_not_matter(make, root):
    base = find(root)
    paths = [make("dora")[2], make("oft")[2]]
    for name, order in (("one", (0, 1)), ("other", (1, 0))):
        merge_adapters(base, read_parts([paths[i] for i in order], [(0.5, 0.8)[i] for i in order], base), root / name)
    one, other = tensors_of(root / "one"), tensors_of(root / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_record_says_what_is_in_the_model(make, root):
    base = find(root)
    merge_adapters(base, read_parts([make("loha")[2]], [0.5], base), root / "merged")
    record = json.loads((root / "merged" / "woodshed_merge.json").read_text())
    assert record["base_model"] == BASE
    assert record["adapters"][0]["file"].endswith("/loha/adapter_model.safetensors")
    assert record["adapters"][0]["file"].count("/") == 2  # enough to know it by, and no more of the disk
    assert record["adapters"] == [{"file": record["adapters"][0]["file"], "strength": 0.5, "recipe": {"shift": 3.0}}]


def test_norms_for_todays_comfyui_are_merged_as_they_play(make, root, tmp_path):
    _, adapter, _ = make("dora")
    content = Content({module: adapter.change(module) for module in adapter.modules})
    write_comfyui(tmp_path / "x.safetensors", fit_for_comfyui(content, "today", adapter.base_weight))
    base = find(root)
    merge_adapters(base, read_parts([tmp_path / "x.safetensors"], [1.0], base), root / "merged")
    before, after = tensors_of(base.folder), tensors_of(root / "merged")
    for module in adapter.modules:
        found = after[f"decoder.{module}.weight"] - before[f"decoder.{module}.weight"]
        torch.testing.assert_close(found, adapter.effective_delta(module), rtol=1e-4, atol=1e-5)


def test_folders_and_links_in_the_model_become_files(make, root, tmp_path):
    _, _, path = make("loha")
    folder = root / BASE
    (folder / "notes" / "more").mkdir(parents=True)
    (folder / "notes" / "more" / "a.txt").write_text("hm")
    shutil.move(folder / "model.safetensors", tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    before = (tmp_path / "blob").read_bytes()
    base = find(root)
    merge_adapters(base, read_parts([path], [1.0], base), root / "merged")
    assert (root / "merged" / "notes" / "more" / "a.txt").read_text() == "hm"
    assert not (root / "merged" / "model.safetensors").is_symlink()
    assert (tmp_path / "blob").read_bytes() == before


def test_a_place_inside_the_model_is_refused(make, root):
    base = find(root)
    parts = read_parts([make("loha")[2]], [1.0], base)
    for place in (root / BASE / "merged", root / BASE / "deep" / "er", root / "vae" / ".." / BASE / "x"):
        with pytest.raises(UserError, match="lies in the model that is to be copied"):
            merge_adapters(base, parts, place)
    assert not (root / BASE / "merged").exists()


def test_weights_in_a_format_that_cannot_hold_a_difference_are_refused(make, recast, root):
    _, _, path = make("loha")
    base = recast(torch.float8_e4m3fn)
    with pytest.raises(AdapterError, match="in a format that cannot be changed in place"):
        merge_adapters(base, read_parts([path], [1.0], base), root / "merged")
    assert not (root / "merged").exists()


def test_a_strength_that_bursts_the_number_format_is_refused(make, recast, root):
    _, _, path = make("loha")
    base = recast(torch.float16)
    with pytest.raises(AdapterError, match=r"too large for the model's number format.* smaller --strength"):
        merge_adapters(base, read_parts([path], [1e6], base), root / "merged")
    assert sorted(entry.name for entry in root.iterdir()) == sorted([BASE, "vae", "Qwen3-Embedding-0.6B"])


def test_a_file_that_does_not_hold_what_was_written_is_found_out(make, root, monkeypatch):
    _, _, path = make("loha")
    base = find(root)
    parts = read_parts([path], [1.0], base)
    rewrite = merge_module._rewrite
    monkeypatch.setattr(merge_module, "_rewrite", lambda file, name, value: rewrite(file, name, value * 1.1))
    with pytest.raises(AdapterError, match=r"does not hold what was written into layers\."):
        merge_adapters(base, parts, root / "merged")
    assert not (root / "merged").exists()


def test_all_that_is_wrong_with_the_adapters_is_said_at_once(make, tmp_path, checkpoint_root):
    _, _, path = make("loha")
    with pytest.raises(UserError) as caught:
        read_parts([path, tmp_path / "nowhere"], [1.0, 2.0, 3.0], find(checkpoint_root, "acestep-v15-xl-base"))
    words = " ".join(caught.value.problems)
    assert "There are 2 adapters and 3 strengths" in words
    assert "is for another model" in words
    assert "There is no adapter at" in words


def test_one_strength_counts_for_all_and_several_for_each(make, root):
    path = make("loha")[2]
    base = find(root)
    assert [part.strength for part in read_parts([path, path], [0.5], base)] == [0.5, 0.5]
    assert [part.strength for part in read_parts([path, path], [0.5, 2.0], base)] == [0.5, 2.0]
    (part,) = read_parts([path], [0.5], base)
    assert replace(part, strength=1.0).saved is part.saved
