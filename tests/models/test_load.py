"""Loading: each part alone, every tensor accounted for, nothing executed, little memory."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from woodshed.errors import CheckpointError
from woodshed.models.checkpoints import Checkpoint, find_checkpoints, read_checkpoint
from woodshed.models.config import read_model_config
from woodshed.models.decoder import build_decoder
from woodshed.models.keys import diffusers_to_original
from woodshed.models.load import (
    load_condition_encoder,
    load_decoder,
    load_null_condition,
    load_silence,
    load_text_encoder,
    load_vae,
)

PLACE = {"dtype": torch.float32, "device": "cpu"}
BASE = "acestep-v15-base"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"

LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "decoder": lambda root: load_decoder(read_checkpoint(root / BASE), **PLACE),
    "encoder": lambda root: load_condition_encoder(read_checkpoint(root / BASE), **PLACE),
    "text encoder": lambda root: load_text_encoder(root / TEXT_ENCODER, **PLACE),
    "vae": lambda root: load_vae(root / "vae", **PLACE),
}
FILES = {
    "decoder": f"{BASE}/model.safetensors",
    "encoder": f"{BASE}/model.safetensors",
    "text encoder": f"{TEXT_ENCODER}/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
SOME_TENSOR = {
    "decoder": "decoder.layers.1.cross_attn.k_norm.weight",
    "encoder": "encoder.timbre_encoder.special_token",
    "text encoder": "layers.1.mlp.up_proj.weight",
    "vae": "decoder.conv1.weight_g",
}


@pytest.fixture(params=list(LOADERS))
def part(request: pytest.FixtureRequest) -> str:
    return request.param


def problems_of(part: str, root: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        LOADERS[part](root)
    return list(caught.value.problems)


def test_every_part_comes_frozen_ready_and_complete(part, checkpoint_root: Path):
    module = LOADERS[part](checkpoint_root)
    assert not module.training
    for tensor in (*module.parameters(), *module.buffers()):
        assert not tensor.requires_grad
        assert tensor.device.type == "cpu"
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()


def test_decoder_tensors_are_those_of_the_files(checkpoint: Checkpoint):
    stored = {name: tensor for file in checkpoint.weight_files for name, tensor in load_file(file).items()}
    decoder = load_decoder(checkpoint, **PLACE)
    for name, parameter in decoder.named_parameters():
        assert torch.equal(parameter, stored.pop(f"decoder.{diffusers_to_original(name)}").float())
    assert not [name for name in stored if name.startswith("decoder.")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_precision_can_be_asked_for_whatever_is_stored(checkpoint: Checkpoint, dtype):
    decoder = load_decoder(checkpoint, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in decoder.parameters()} == {dtype}
    assert load_null_condition(checkpoint, dtype=dtype, device="cpu").dtype == dtype


def test_the_null_condition_is_the_stored_one(base: Checkpoint):
    stored = load_file(base.weight_files[0])["null_condition_emb"]
    assert torch.equal(load_null_condition(base, **PLACE), stored.float())
    assert stored.shape == (1, 1, base.config.condition_width)


def test_a_part_needs_no_tensor_of_another(own_root: Path, rewrite):
    def keep(beginning: str) -> Callable[[dict[str, Tensor]], object]:
        return lambda tensors: [tensors.pop(name) for name in list(tensors) if not name.startswith(beginning)]

    file = own_root / FILES["decoder"]
    whole = file.read_bytes()
    for part, beginning in (("decoder", "decoder."), ("encoder", ("encoder.", "null_"))):
        file.write_bytes(whole)
        rewrite(file, keep(beginning))
        LOADERS[part](own_root)


def test_a_missing_tensor_is_named(part, own_root: Path, rewrite):
    rewrite(own_root / FILES[part], lambda tensors: tensors.pop(SOME_TENSOR[part]))
    (problem,) = problems_of(part, own_root)
    assert f"1 tensor is missing: {SOME_TENSOR[part]}." in problem


def test_a_wrong_shape_is_shown_beside_the_right_one(part, own_root: Path, rewrite):
    rewrite(own_root / FILES[part], lambda tensors: tensors.update({SOME_TENSOR[part]: torch.zeros(3, 5)}))
    (problem,) = problems_of(part, own_root)
    assert f"1 tensor has another shape than config.json says: {SOME_TENSOR[part]} [3, 5] instead of [" in problem


def test_a_tensor_without_a_place_is_named(part, own_root: Path, rewrite):
    beginning = f"{part}." if part in ("decoder", "encoder") else ""
    rewrite(own_root / FILES[part], lambda tensors: tensors.update({f"{beginning}extra.weight": torch.zeros(1)}))
    (problem,) = problems_of(part, own_root)
    assert f"1 tensor is unexpected: {beginning}extra.weight." in problem


def test_a_tensor_that_belongs_to_no_part_of_the_model_is_named(own_root: Path, rewrite):
    rewrite(own_root / FILES["decoder"], lambda tensors: tensors.update({"transformer.extra": torch.zeros(1)}))
    for part in ("decoder", "encoder"):
        (problem,) = problems_of(part, own_root)
        assert "unexpected: transformer.extra" in problem


def test_whole_numbers_are_no_weights(part, own_root: Path, rewrite):
    name = SOME_TENSOR[part]
    rewrite(own_root / FILES[part], lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    (problem,) = problems_of(part, own_root)
    assert f"holds no floating-point numbers: {name} (I8)" in problem


def test_all_kinds_of_problems_come_at_once_and_long_lists_are_cut(own_root: Path, rewrite):
    def spoil(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("self_attn.q_proj.weight") or ".mlp." in name]:
            tensors.pop(name)
        tensors["decoder.new"] = torch.zeros(1)
        tensors["decoder.norm_out.weight"] = torch.zeros(2)

    rewrite(own_root / FILES["decoder"], spoil)
    missing, unexpected, shape = problems_of("decoder", own_root)
    assert "16 tensors are missing" in missing
    assert "and 8 more." in missing
    assert missing.count("decoder.layers.") == 8
    assert "decoder.new" in unexpected
    assert "decoder.norm_out.weight" in shape


def test_a_config_of_another_size_does_not_fit_the_weights(own_root: Path, edit_config):
    edit_config(own_root / BASE, intermediate_size=48, num_hidden_layers=3)
    problems = problems_of("decoder", own_root)
    assert any("unexpected: decoder.layers.3" in problem for problem in problems)
    assert any("mlp.gate_proj.weight [64, 32] instead of [48, 32]" in problem for problem in problems)


@pytest.mark.parametrize("spoil", ["cut", "empty", "text", "gone"])
def test_a_file_that_is_cut_short_or_no_file_of_weights_is_named(part, own_root: Path, spoil):
    path = own_root / FILES[part]
    content = path.read_bytes()
    if spoil == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>not found</html>"}[spoil])
    (problem,) = problems_of(part, own_root)
    assert str(path) in problem or str(path.parent) in problem


def test_a_spoilt_shard_is_named(own_root: Path):
    model = read_checkpoint(own_root / "acestep-v15-xl-turbo")
    model.weight_files[1].write_bytes(b"oops")
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load_decoder(model, **PLACE)


def test_what_is_loaded_does_not_hang_on_the_file(own_root: Path):
    model = read_checkpoint(own_root / BASE)
    null_condition = load_null_condition(model, dtype=torch.bfloat16, device="cpu")  # as stored: nothing to convert
    before = null_condition.clone()
    size = model.weight_files[0].stat().st_size
    with model.weight_files[0].open("r+b") as file:
        file.write(b"\xff" * size)
    assert torch.equal(null_condition, before)


def test_text_encoder_names_may_begin_with_model_and_may_bring_a_language_head(own_root: Path, rewrite):
    plain = LOADERS["text encoder"](own_root).encode_text("a song")

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"model.{name}"] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(own_root / FILES["text encoder"], rename)
    assert torch.equal(LOADERS["text encoder"](own_root).encode_text("a song"), plain)


def test_a_text_encoder_of_another_family_is_refused(own_root: Path, edit_config):
    edit_config(own_root / TEXT_ENCODER, model_type="bert")
    (problem,) = problems_of("text encoder", own_root)
    assert "'bert' instead of 'qwen3'" in problem


@pytest.mark.parametrize("case", ["odd", "short"])
def test_vae_encodings_equal_those_of_the_original(checkpoint_root: Path, read_golden, assert_equal, case):
    vae, expected = LOADERS["vae"](checkpoint_root), read_golden("vae")
    posterior = vae.encode(expected[f"{case}_wave"].float()).latent_dist
    assert_equal(posterior.mean, expected[f"{case}_mean"])
    assert_equal(posterior.std, expected[f"{case}_std"])
    assert_equal(posterior.mean + posterior.std * expected[f"{case}_eps"], expected[f"{case}_sample"])


def test_vae_decodings_equal_those_of_the_original(checkpoint_root: Path, read_golden, assert_equal):
    vae, expected = LOADERS["vae"](checkpoint_root), read_golden("vae")
    assert_equal(vae.decode(expected["decode_10_latents"]).sample, expected["decode_10_wave"])


def test_silence_is_turned_to_frames_first(base: Checkpoint):
    stored = torch.load(base.folder / "silence_latent.pt", weights_only=True)
    silence = load_silence(base)
    assert silence.shape == (stored.shape[2], base.config.latent_channels)
    assert silence.dtype == torch.float32
    assert torch.equal(silence[7], stored[0, :, 7])


@pytest.mark.parametrize("frames", [1, 15000])
def test_silence_may_have_any_number_of_frames(own_root: Path, frames):
    model = read_checkpoint(own_root / BASE)
    torch.save(torch.randn(1, 16, frames, dtype=torch.bfloat16), model.folder / "silence_latent.pt")
    assert load_silence(model).shape == (frames, 16)


@pytest.mark.parametrize("content", [None, b"", b"junk", torch.zeros(16, 100), torch.zeros(1, 8, 100), {"silence": 1}])
def test_silence_that_is_missing_or_something_else_is_named(own_root: Path, content):
    model = read_checkpoint(own_root / BASE)
    path = model.folder / "silence_latent.pt"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="silence_latent"):
        load_silence(model)


class Canary:
    """Sings when it is unpickled."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.nest,)


def test_no_code_beside_the_weights_ever_runs(own_root: Path, edit_config, tmp_path: Path):
    nest = tmp_path / "sang"
    song = f"from pathlib import Path\nPath({str(nest)!r}).touch()\n"
    for folder in (own_root / BASE, own_root / "vae", own_root / TEXT_ENCODER):
        edit_config(folder, auto_map={"AutoConfig": "canary.Config", "AutoModel": "canary.Model"})
        for name in ("canary", "configuration_acestep_v15", "modeling_acestep_v15_base", "__init__"):
            (folder / f"{name}.py").write_text(song)
    find_checkpoints(own_root)
    for load in LOADERS.values():
        load(own_root)
    torch.save(Canary(nest), own_root / BASE / "silence_latent.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a tensor"):
        load_silence(read_checkpoint(own_root / BASE))
    assert not nest.exists()


MEASURE = """
import sys
from pathlib import Path
import torch
from woodshed.models.checkpoints import read_checkpoint
from woodshed.models.load import load_decoder

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

torch.set_num_threads(1)
toy, large = (read_checkpoint(Path(folder)) for folder in sys.argv[1:])
kept = [load_decoder(toy, dtype=torch.bfloat16, device="cpu")]  # nothing is freed, so nothing is used twice
for dtype in (torch.bfloat16, torch.float32):
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    kept.append(load_decoder(large, dtype=dtype, device="cpu"))
    print(resident("VmHWM") - before, sum(p.numel() * p.element_size() for p in kept[-1].parameters()))
"""


@pytest.fixture(scope="module")
def large_folder(checkpoint_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 300 MB in float32, in two shards, as XL is stored."""
    folder = tmp_path_factory.mktemp("large") / "acestep-v15-xl-base"
    folder.mkdir()
    fields = json.loads((checkpoint_root / BASE / "config.json").read_text())
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 6}
    sizes |= {"head_dim": 64, "num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}
    (folder / "config.json").write_text(json.dumps(fields | sizes))
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in build_decoder(read_model_config(folder)).state_dict().items()}
    names = list(shapes)
    weight_map = {}
    for shard, chosen in enumerate((names[::2], names[1::2])):
        tensors = {f"decoder.{diffusers_to_original(name)}": torch.full(shapes[name], 0.5) for name in chosen}
        save_file(tensors, folder / f"model-{shard}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"model-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own account of resident memory")
def test_loading_needs_little_more_memory_than_what_is_loaded(large_folder: Path, checkpoint_root: Path):
    """The largest tensor has 14 MB; one shard read as a whole would be 150 MB."""
    command = [sys.executable, "-c", MEASURE, checkpoint_root / BASE, large_folder]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        grown, size = map(int, line.split())
        assert size > 140_000_000
        assert 0.9 * size < grown < size + 40_000_000


def test_a_damaged_silence_is_a_sentence_whichever_byte_is_wrong(checkpoint_root, tmp_path):
    folder = tmp_path / BASE
    shutil.copytree(checkpoint_root / BASE, folder)
    checkpoint = read_checkpoint(folder)
    path = folder / "silence_latent.pt"
    good = path.read_bytes()
    refused = 0
    for place in [*range(0, 400, 7), *range(-700, 0, 7)]:
        content = bytearray(good)
        content[place] ^= 0xFF
        path.write_bytes(content)
        try:
            load_silence(checkpoint)
        except CheckpointError:
            refused += 1
    assert refused > 20
