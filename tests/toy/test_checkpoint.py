"""The builder writes what ACE-Step publishes: names, shapes, layout; and what it writes loads."""

import json
import warnings

import pytest
import torch
from diffusers import AutoencoderOobleck
from safetensors import safe_open
from safetensors.torch import load_file

from woodshed.models.checkpoints import choose_model, find_checkpoints, fingerprint
from woodshed.models.config import ModelConfig
from woodshed.models.encoders import END_OF_TEXT, build_text_model, encode_conditions
from woodshed.models.load import (
    load_condition_encoder,
    load_decoder,
    load_null_condition,
    load_silence,
    load_text_encoder,
    load_vae,
)
from woodshed.toy.checkpoint import (
    REAL_2B,
    REAL_TEXT,
    REAL_VAE,
    REAL_XL,
    SILENCE_FRAMES,
    TOY,
    RandomWeights,
    _original_tensors,
    build_model,
    build_toy_root,
    byte_tokenizer,
)

PLACE = {"dtype": torch.float32, "device": "cpu"}


class ShapesOnly:
    """Stands in for random weights where only names and shapes matter: real sizes take no memory."""

    def draw(self, _name, shape):
        return torch.empty(shape, device="meta")


def as_published(config):
    layers = config["num_hidden_layers"]
    return ModelConfig.model_validate(
        {**config, "layer_types": ["sliding_attention", "full_attention"] * (layers // 2)}
    )


@pytest.mark.parametrize(("config", "keys"), [(REAL_2B, "2b"), (REAL_XL, "xl")])
def test_real_sizes_have_exactly_the_published_names_and_shapes(golden, config, keys):
    known = json.loads((golden / f"keys_real_{keys}.json").read_text())
    parts = ("decoder.", "encoder.", "null_condition_emb")
    expected = {
        pattern.replace("{i}", str(number)): tuple(entry["shape"])
        for pattern, entry in known["patterns"].items()
        if pattern.startswith(parts)
        for number in range(entry["count"])
    }
    built = {name: tuple(tensor.shape) for name, tensor in _original_tensors(as_published(config), ShapesOnly())}
    assert built == expected
    sizes = {
        part: sum(torch.Size(shape).numel() for name, shape in built.items() if name.startswith(part)) for part in parts
    }
    assert sizes["decoder."] == known["params"]["decoder."]
    assert sizes["encoder."] == known["params"]["encoder."]


def test_the_real_vae_and_text_encoder_have_the_published_number_of_parameters():
    """Source: the sizes of the published files, 16 bit a weight."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses the older form of weight norm
        vae = AutoencoderOobleck(**REAL_VAE)
    assert sum(tensor.numel() for tensor in vae.state_dict().values()) == pytest.approx(168_695_426, rel=1e-4)
    text = build_text_model({**REAL_TEXT, "vocab_size": 151_669})
    assert sum(tensor.numel() for tensor in text.state_dict().values()) == pytest.approx(595.8e6, rel=1e-3)


def test_a_toy_root_holds_base_and_turbo_vae_and_text_encoder(toy_root):
    assert {(model.name, model.kind, model.is_xl) for model in toy_root.models} == {
        ("acestep-v15-base", "base", False),
        ("acestep-v15-turbo", "turbo", False),
    }
    assert toy_root.unusable == {}
    assert toy_root.require_vae().is_dir()
    assert toy_root.require_text_encoder().is_dir()
    assert fingerprint(toy_root.models[0]) != fingerprint(toy_root.models[1])


@pytest.mark.parametrize("name", ["base", "turbo"])
@torch.no_grad()
def test_a_toy_model_goes_from_words_to_velocity(toy_root, name):
    checkpoint = choose_model(toy_root, name)
    texts = load_text_encoder(toy_root.require_text_encoder(), **PLACE)
    encoder, silence = load_condition_encoder(checkpoint, **PLACE), load_silence(checkpoint)
    channels, width = checkpoint.config.latent_channels, checkpoint.config.condition_width
    assert silence.shape == (SILENCE_FRAMES, channels)
    prompt, lyrics = texts.encode_text("a flute"), texts.embed_lyrics("la la")
    conditions = encode_conditions(encoder, prompt, lyrics, silence[None, : checkpoint.config.timbre_fix_frame])
    assert conditions.shape == (1, prompt.shape[1] + lyrics.shape[1] + 1, width)
    null = load_null_condition(checkpoint, **PLACE)
    t = torch.tensor([0.5])
    noise = torch.randn(1, 30, channels, generator=torch.Generator().manual_seed(0))
    context = torch.cat([silence[None, :30], torch.ones(1, 30, channels)], dim=2)
    decoder = load_decoder(checkpoint, **PLACE)
    velocities = [
        decoder(noise, timestep=t, timestep_r=t, encoder_hidden_states=states, context_latents=context).sample
        for states in (conditions, null.expand_as(conditions))
    ]
    for velocity in velocities:
        assert velocity.shape == noise.shape
        assert velocity.isfinite().all()
        assert 0.05 < velocity.std() < 50  # weights that neither die out nor explode
    assert (velocities[0] - velocities[1]).abs().max() > 0.01  # it listens to its conditions


@torch.no_grad()
def test_a_toy_vae_makes_a_frame_of_1920_samples(toy_root):
    vae = load_vae(toy_root.require_vae(), **PLACE)
    sound = torch.randn(1, 2, 5 * 1920, generator=torch.Generator().manual_seed(0))
    latents = vae.encode(sound).latent_dist.mean
    assert latents.shape == (1, TOY["audio_acoustic_hidden_dim"], 5)
    assert vae.decode(latents).sample.shape == sound.shape


def test_a_byte_tokenizer_reads_every_letter_and_ends_its_texts():
    tokenizer = byte_tokenizer()
    text = "Größe 音楽 🎵\n"
    encoded = tokenizer.encode(text)
    assert len(encoded.ids) == len(text.encode()) + 1
    assert encoded.tokens[-1] == END_OF_TEXT
    assert tokenizer.decode(encoded.ids) == text


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture
def config():
    return TOY | {"is_turbo": False, "model_version": "base", "num_hidden_layers": 2}


@pytest.mark.parametrize("shard_bytes", [40_000, 200_000])
def test_shards_hold_what_one_file_holds_and_load_alike(tmp_path, config, shard_bytes):
    one, many = tmp_path / "root" / "one", tmp_path / "root" / "many"
    build_model(one, config, dtype=torch.float32, seed=3)
    build_model(many, config, dtype=torch.float32, seed=3, shard_bytes=shard_bytes)
    files = sorted(many.glob("*.safetensors"))
    assert len(files) > 2
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    where = json.loads((many / "model.safetensors.index.json").read_text())["weight_map"]
    for file in files:
        with safe_open(file, "pt") as opened:
            held = list(opened.keys())
            assert {name for name, place in where.items() if place == file.name} == set(held)
            size = sum(opened.get_tensor(name).nbytes for name in held)
            assert size <= shard_bytes or len(held) == 1
    assert tensors_of(one).keys() == tensors_of(many).keys()
    found = find_checkpoints(tmp_path / "root")
    loaded = [load_decoder(choose_model(found, name), **PLACE).state_dict() for name in ("one", "many")]
    assert all(torch.equal(tensor, loaded[1][name]) for name, tensor in loaded[0].items())


def test_an_xl_model_with_its_own_encoder_width_loads(tmp_path, config):
    build_model(tmp_path / "acestep-v15-xl-base", config | {"encoder_hidden_size": 32}, dtype=torch.float32)
    (checkpoint,) = find_checkpoints(tmp_path).models
    assert checkpoint.is_xl
    assert load_null_condition(checkpoint, **PLACE).shape == (1, 1, 32)
    load_decoder(checkpoint, **PLACE)
    load_condition_encoder(checkpoint, **PLACE)


def test_the_same_seed_gives_the_same_root_and_another_one_other_weights(toy_root, tmp_path):
    build_toy_root(tmp_path / "same")
    files = [path for path in toy_root.root.rglob("*") if path.is_file()]
    assert len(files) == 3 + 3 + 2 + 3
    for path in files:
        assert path.read_bytes() == (tmp_path / "same" / path.relative_to(toy_root.root)).read_bytes(), path.name
    build_model(tmp_path / "other", TOY, dtype=torch.bfloat16, seed=5)
    assert not torch.equal(
        tensors_of(tmp_path / "other")["decoder.layers.0.self_attn.q_proj.weight"],
        tensors_of(toy_root.models[0].folder)["decoder.layers.0.self_attn.q_proj.weight"],
    )


def test_random_weights_fit_what_they_are_for():
    weights = RandomWeights(0, torch.float32)
    assert (weights.draw("layers.0.self_attn.q_norm.weight", torch.Size([8])) == 1).all()
    assert (weights.draw("embed_tokens.bias", torch.Size([8])) == 0).all()
    matrix = weights.draw("q_proj.weight", torch.Size([300, 400]))
    assert matrix.std() == pytest.approx(400**-0.5, rel=0.05)
    larger_than_the_block = weights.draw("up_proj.weight", torch.Size([5000, 1000]))
    assert larger_than_the_block.std() == pytest.approx(1000**-0.5, rel=0.05)
    assert not torch.equal(matrix, weights.draw("k_proj.weight", torch.Size([300, 400])))
