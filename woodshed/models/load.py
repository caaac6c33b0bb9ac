"""Load one part of a model at a time, from the original ACE-Step files into diffusers and transformers classes.

Every tensor of the part must be there, in the right shape, and nothing unknown beside it. Memory stays near the size of
what is loaded, see `weights`.
"""

import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit, Snake1d
from torch import Tensor, nn

from woodshed.errors import CheckpointError
from woodshed.models.checkpoints import Checkpoint, find_weight_files
from woodshed.models.config import read_json, read_vae_config
from woodshed.models.decoder import Decoder, build_decoder
from woodshed.models.encoders import ConditionEncoder, TextEncoder, build_text_model, read_tokenizer
from woodshed.models.frozen import FrozenLinear
from woodshed.models.keys import diffusers_to_original
from woodshed.models.vae import fold_weight_norm
from woodshed.models.weights import StoredTensor, check_tensors, fill_module, read_headers
from woodshed.storage import DAMAGE

NULL_CONDITION = "null_condition_emb"
PARTS = ("decoder.", "encoder.", "tokenizer.", "detokenizer.")  # beginnings of the names in a model's weights

IDLE_FREQUENCY = -15.0  # the logarithm of an activation's frequency: x + sin(a x) ** 2 / b is x far beyond rounding

Device = torch.device | str


def load_decoder(checkpoint: Checkpoint, *, dtype: torch.dtype, device: Device, packed: str | None = None) -> Decoder:
    """Return the decoder, frozen and in eval mode.

    Args:
        checkpoint: of the model.
        dtype: of the weights, and what they compute in.
        device: where they stay.
        packed: how the linear layers of its blocks are held in fewer bits, a key of `frozen.BITS`; None for not so.

    Raises:
        CheckpointError: when the files cannot be read or do not hold exactly the decoder's tensors.
    """
    with torch.device("meta"):
        decoder = build_decoder(checkpoint.config)
    _fill_part(decoder, checkpoint, "decoder", dtype=dtype, device=device, packed=packed)
    return decoder


def load_condition_encoder(checkpoint: Checkpoint, *, dtype: torch.dtype, device: Device) -> ConditionEncoder:
    """Return the condition encoder, frozen and in eval mode; call it through `encode_conditions`.

    Raises:
        CheckpointError: when the files cannot be read or do not hold exactly the encoder's tensors.
    """
    with torch.device("meta"):
        encoder = ConditionEncoder(checkpoint.config)
    _fill_part(encoder, checkpoint, "encoder", dtype=dtype, device=device)
    return encoder


def _fill_part(
    module: nn.Module,
    checkpoint: Checkpoint,
    part: str,
    *,
    dtype: torch.dtype,
    device: Device,
    packed: str | None = None,
) -> None:
    """Fill a module from those tensors of the original model whose names begin with the part's."""
    stored = read_headers(checkpoint.weight_files)
    names = {name: f"{part}.{diffusers_to_original(name)}" for name in module.state_dict()}
    if NULL_CONDITION in names:
        names[NULL_CONDITION] = NULL_CONDITION  # the original keeps it beside the encoder, diffusers inside
    known = {*names.values(), NULL_CONDITION}
    unexpected = [
        name for name in stored if name not in known and (name.startswith(f"{part}.") or not name.startswith(PARTS))
    ]
    title = f"the {part} of {checkpoint.folder}"
    _fill(module, names, stored, unexpected, title, dtype=dtype, device=device, packed=packed)


def _fill(
    module: nn.Module,
    names: Mapping[str, str],
    stored: Mapping[str, StoredTensor],
    unexpected: Iterable[str],
    title: str,
    *,
    dtype: torch.dtype,
    device: Device,
    packed: str | None = None,
) -> None:
    """Check that the files hold exactly what a module needs, then read it. `names`: in the module -> in the files."""
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_tensors(title, shapes, stored, unexpected)
    sources = {name: stored[original] for name, original in names.items()}
    if packed is not None:
        _pack_blocks(module, sources, packed, dtype=dtype, device=device)
    fill_module(module, sources, dtype=dtype, device=device)


def _pack_blocks(
    decoder: nn.Module, sources: dict[str, StoredTensor], kind: str, *, dtype: torch.dtype, device: Device
) -> None:
    """Put packed layers in the places of a decoder's linear layers, one weight at a time; take these from `sources`."""
    for name, layer in [*decoder.named_modules()]:
        if isinstance(layer, nn.Linear) and name.startswith("layers."):
            weight = sources.pop(f"{name}.weight").read(dtype=dtype, device=device)
            decoder.set_submodule(name, FrozenLinear(weight, layer.bias, kind))


def load_null_condition(checkpoint: Checkpoint, *, dtype: torch.dtype, device: Device) -> Tensor:
    """Return the (1, 1, E) embedding that stands for "no condition".

    Raises:
        CheckpointError: when the files cannot be read or do not hold it.
    """
    stored = read_headers(checkpoint.weight_files)
    shape = (1, 1, checkpoint.config.condition_width)
    check_tensors(f"the weights of {checkpoint.folder}", {NULL_CONDITION: shape}, stored)
    return stored[NULL_CONDITION].read(dtype=dtype, device=device)


def load_silence(checkpoint: Checkpoint) -> Tensor:
    """Return the latents of silence, (frames, C) in float32: the source of every song and the reference of most.

    Raises:
        CheckpointError: when silence_latent.pt is missing, unreadable or of another shape.
    """
    path = checkpoint.folder / "silence_latent.pt"
    try:
        if not zipfile.is_zipfile(path):  # what torch.load does with other content is anybody's guess
            raise CheckpointError(
                f"{path} is missing or no file of tensors. It comes with the model: download it again."
            )
        silence = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read as a tensor ({error}). Download it again.") from error
    channels = checkpoint.config.latent_channels
    if not isinstance(silence, Tensor) or silence.dim() != 3 or silence.shape[:2] != (1, channels):
        found = list(silence.shape) if isinstance(silence, Tensor) else type(silence).__name__
        raise CheckpointError(f"{path} holds {found} instead of a tensor of shape [1, {channels}, frames].")
    return silence[0].T.contiguous().float()


def load_text_encoder(folder: Path, *, dtype: torch.dtype, device: Device) -> TextEncoder:
    """Return tokenizer and text model, frozen and in eval mode.

    Raises:
        CheckpointError: when a file cannot be read, the weights are not exactly the model's, or the tokenizer does not
            end a text as the model was trained.
    """
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    model = build_text_model(read_json(folder / "config.json"))
    stored = read_headers(find_weight_files(folder))
    prefix = "model." if any(name.startswith("model.") for name in stored) else ""
    names = {name: prefix + name for name in model.state_dict()}
    unexpected = stored.keys() - names.values() - {"lm_head.weight"}  # the head of the language model it once was
    _fill(model, names, stored, sorted(unexpected), f"the text encoder {folder}", dtype=dtype, device=device)
    model.rotary_emb.to(device)
    return TextEncoder(tokenizer, model).eval()


def load_vae(folder: Path, *, dtype: torch.dtype, device: Device) -> AutoencoderOobleck:
    """Return the VAE, frozen and in eval mode.

    Raises:
        CheckpointError: when a file cannot be read or the weights are not exactly the model's.
    """
    config = read_vae_config(folder)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses the older form of weight norm
        vae = AutoencoderOobleck(**config.model_dump())
    stored = read_headers([folder / "diffusion_pytorch_model.safetensors"])
    names = {name: name for name in vae.state_dict()}
    _fill(vae, names, stored, sorted(stored.keys() - names.keys()), f"the VAE {folder}", dtype=dtype, device=device)
    _leave_out_idle_layers(vae)
    fold_weight_norm(vae)
    return vae


def _leave_out_idle_layers(vae: AutoencoderOobleck) -> None:
    """Take out residual units that add nothing and activations that change nothing, as a linear VAE has them.

    At the highest rate they are nearly all of the work. Published VAEs have none.
    """
    idle = [
        name
        for name, module in vae.named_modules()
        if (isinstance(module, OobleckResidualUnit) and not module.conv2.weight_g.any() and not module.conv2.bias.any())
        or (isinstance(module, Snake1d) and (module.alpha < IDLE_FREQUENCY).all())
    ]
    for name in idle:
        *path, leaf = name.split(".")
        if not any(".".join(path[:end]) in idle for end in range(len(path) + 1)):
            setattr(vae.get_submodule(".".join(path)), leaf, nn.Identity())
