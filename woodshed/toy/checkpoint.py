"""Random checkpoints in the original ACE-Step layout: tiny ones to try everything, and real-size ones to measure."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderOobleck
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn

from woodshed.models.config import ModelConfig
from woodshed.models.decoder import build_decoder
from woodshed.models.encoders import END_OF_TEXT, ConditionEncoder, build_text_model
from woodshed.models.keys import diffusers_to_original

SILENCE_FRAMES = 15_000
NULL = "null_condition_emb"

_COMMON = {
    "architectures": ["AceStepConditionGenerationModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "data_proportion": 0.5,
    "hidden_act": "silu",
    "model_type": "acestep",
    "patch_size": 2,
    "pool_window_size": 5,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "timbre_fix_frame": 750,
    "timestep_mu": -0.4,
    "timestep_sigma": 1.0,
    "use_sliding_window": True,
}
TOY = _COMMON | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "in_channels": 24,
    "audio_acoustic_hidden_dim": 8,
    "timbre_hidden_dim": 8,
    "text_hidden_dim": 32,
    "num_lyric_encoder_hidden_layers": 2,
    "num_timbre_encoder_hidden_layers": 2,
}
REAL_2B = _COMMON | {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": 128,
    "in_channels": 192,
    "audio_acoustic_hidden_dim": 64,
    "timbre_hidden_dim": 64,
    "text_hidden_dim": 1024,
    "num_lyric_encoder_hidden_layers": 8,
    "num_timbre_encoder_hidden_layers": 4,
}
REAL_XL = REAL_2B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "encoder_hidden_size": 2048,
    "encoder_intermediate_size": 6144,
    "encoder_num_attention_heads": 16,
    "encoder_num_key_value_heads": 8,
}
"""Sizes of the published models. Source: their config.json."""

TOY_VAE = {
    "audio_channels": 2,
    "channel_multiples": [1, 1, 1, 1, 1],
    "decoder_channels": 8,
    "decoder_input_channels": 8,
    "downsampling_ratios": [2, 4, 4, 6, 10],
    "encoder_hidden_size": 16,  # the encoder's mean and deviation share it: twice the latent channels
    "sampling_rate": 48_000,
}
REAL_VAE = TOY_VAE | {
    "channel_multiples": [1, 2, 4, 8, 16],
    "decoder_channels": 128,
    "decoder_input_channels": 64,
    "encoder_hidden_size": 128,
}
TOY_TEXT = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 32_768,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
}
REAL_TEXT = TOY_TEXT | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


class RandomWeights:
    """Draws weights that keep activations near one, from one block of random numbers, so that 20 GB take seconds.

    Args:
        seed: of the block.
        dtype: of the weights.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._block = torch.randn(1 << 22, generator=self._generator)
        self._dtype = dtype

    def draw(self, name: str, shape: torch.Size) -> Tensor:
        """Return a weight: ones for norms, zeros for biases, normal numbers scaled by the inputs for the rest."""
        if "norm" in name:
            return torch.ones(shape, dtype=self._dtype)
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=self._dtype)
        fan_in = max(shape[1:].numel(), 1)
        values = torch.empty(shape.numel(), dtype=self._dtype)
        for start in range(0, len(values), len(self._block)):
            part = values[start : start + len(self._block)]
            offset = int(torch.randint(len(self._block), (1,), generator=self._generator))
            part.copy_(self._block.roll(offset)[: len(part)] * fan_in**-0.5)
        return values.reshape(shape)


def build_toy_root(root: Path, seed: int = 0) -> None:
    """Write a complete toy checkpoint root: base and turbo, VAE, text encoder."""
    for number, kind in enumerate(("base", "turbo")):
        config = TOY | {"is_turbo": kind == "turbo", "model_version": kind}
        build_model(root / f"acestep-v15-{kind}", config, dtype=torch.bfloat16, seed=seed + number)
    build_vae(root / "vae", TOY_VAE, seed=seed)
    build_text_encoder(root / "Qwen3-Embedding-0.6B", TOY_TEXT, seed=seed)


def build_model(
    folder: Path, config: Mapping[str, Any], *, dtype: torch.dtype, seed: int = 0, shard_bytes: int | None = None
) -> None:
    """Write a model folder with random weights, one tensor in memory at a time beside the shard being filled.

    Args:
        folder: created.
        config: one of the dictionaries above, or like them.
        dtype: of the weights.
        seed: of the weights.
        shard_bytes: start a new file beyond this size, with an index; one file without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers = config["num_hidden_layers"]
    kinds = ["sliding_attention" if index % 2 == 0 else "full_attention" for index in range(layers)]
    full = {**config, "layer_types": kinds}
    (folder / "config.json").write_text(json.dumps(full, indent=1), encoding="utf-8")
    parsed = ModelConfig.model_validate(full)
    tensors = _original_tensors(parsed, RandomWeights(seed, dtype))
    if shard_bytes is None:
        save_file(dict(tensors), folder / "model.safetensors")
    else:
        _write_shards(folder, tensors, shard_bytes)
    generator = torch.Generator().manual_seed(seed)
    silence = 0.1 * torch.randn(1, parsed.latent_channels, 1, generator=generator).repeat(1, 1, SILENCE_FRAMES)
    torch.save(silence, folder / "silence_latent.pt")


def _original_tensors(config: ModelConfig, weights: RandomWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of decoder and condition encoder under its original name."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"decoder": build_decoder(config), "encoder": ConditionEncoder(config)}
    for part, module in parts.items():
        for name, tensor in module.state_dict().items():
            original = NULL if name == NULL else f"{part}.{diffusers_to_original(name)}"
            yield original, weights.draw(original, tensor.shape)


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = []
    where: dict[str, int] = {}
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            save_file(held, folder / f"part-{len(shards)}.safetensors")
            shards.append({})
            held, size = {}, 0
        held[name] = tensor
        where[name] = len(shards)
        size += tensor.nbytes
    save_file(held, folder / f"part-{len(shards)}.safetensors")
    count = len(shards) + 1
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    for number, name in enumerate(names):
        (folder / f"part-{number}.safetensors").rename(folder / name)
    index = {"metadata": {}, "weight_map": {name: names[number] for name, number in where.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def build_vae(folder: Path, config: Mapping[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a VAE folder with the library's own initial weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses the older form of weight norm
        vae = AutoencoderOobleck(**config)
    save_file(
        {name: tensor.to(dtype) for name, tensor in vae.state_dict().items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    described = {"_class_name": "AutoencoderOobleck", **config}
    (folder / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def build_text_encoder(
    folder: Path, config: Mapping[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a text encoder folder: a tokenizer that knows bytes only, and random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    full = {**config, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(full, indent=1), encoding="utf-8")
    weights = RandomWeights(seed, dtype)
    shapes = {name: tensor.shape for name, tensor in build_text_model(full).state_dict().items()}
    save_file({name: weights.draw(name, shape) for name, shape in shapes.items()}, folder / "model.safetensors")


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token a byte, which ends every text as the models were trained."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    end = tokenizer.token_to_id(END_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)]
    )
    return tokenizer
