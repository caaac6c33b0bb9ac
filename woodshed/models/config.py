"""A model's config.json: the sizes and constants that Woodshed reads, checked."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from woodshed.errors import CheckpointError

LayerType = Literal["sliding_attention", "full_attention"]
Size = Annotated[int, Field(gt=0, le=2**20)]
"""Nothing in a model is larger; a file that says so is answered before anybody tries to build it."""
VaeWidth = Annotated[int, Field(gt=0, le=2**14)]
VaeFactor = Annotated[int, Field(gt=0, le=2**10)]
Config = TypeVar("Config", bound=BaseModel)


class ModelConfig(BaseModel):
    """The fields of a model's config.json that Woodshed uses, under the names they have there; the rest is ignored.

    Source: config.json of acestep-v15-base and of the XL models.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", protected_namespaces=())

    hidden_size: Size  # of the decoder
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size  # never hidden_size / num_attention_heads: XL has 4,096 = 32 * 128 beside 2,560
    encoder_hidden_size: Size | None = None  # only XL's condition encoder differs in size from its decoder
    encoder_intermediate_size: Size | None = None
    encoder_num_attention_heads: Size | None = None
    encoder_num_key_value_heads: Size | None = None
    num_lyric_encoder_hidden_layers: Size
    num_timbre_encoder_hidden_layers: Size
    layer_types: tuple[LayerType, ...] = Field(strict=False)  # JSON has lists; the encoders index the same one
    use_sliding_window: Literal[True]
    sliding_window: Size  # in tokens (patches), to either side, inclusive
    rms_norm_eps: Annotated[float, Field(gt=0)]
    rope_theta: Annotated[float, Field(gt=0)]
    rope_scaling: None = None  # no published model stretches its positions
    hidden_act: Literal["silu"]
    attention_bias: bool
    attention_dropout: Annotated[float, Field(ge=0, lt=1)]
    in_channels: Size
    audio_acoustic_hidden_dim: Size
    timbre_hidden_dim: Size
    text_hidden_dim: Size
    patch_size: Size
    timbre_fix_frame: Size  # frames of silence that stand for "no reference song"
    timestep_mu: float
    timestep_sigma: Annotated[float, Field(gt=0)]
    is_turbo: bool = False
    model_version: str | None = None

    @property
    def latent_channels(self) -> int:
        """C: channels of a latent frame."""
        return self.audio_acoustic_hidden_dim

    @property
    def condition_width(self) -> int:
        """E: width of the conditions that the decoder reads."""
        return self.encoder_hidden_size or self.hidden_size

    @property
    def is_xl(self) -> bool:
        """Whether the condition encoder has its own width, as in XL."""
        return self.condition_width != self.hidden_size

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "ModelConfig":
        layers = max(
            self.num_hidden_layers, self.num_lyric_encoder_hidden_layers, self.num_timbre_encoder_hidden_layers
        )
        problems = []
        if len(self.layer_types) < layers:
            problems.append(f"layer_types has {len(self.layer_types)} entries for {layers} layers")
        if self.in_channels != 3 * self.latent_channels:
            problems.append(f"in_channels is {self.in_channels}, not 3 * {self.latent_channels}")
        if self.timbre_hidden_dim != self.latent_channels:
            problems.append(f"timbre_hidden_dim is {self.timbre_hidden_dim}, not {self.latent_channels} as the latents")
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"{self.num_attention_heads} attention heads cannot share {self.num_key_value_heads} key-value heads"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class VaeConfig(BaseModel):
    """What a VAE's config.json says; the names are those of `AutoencoderOobleck`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    encoder_hidden_size: VaeWidth
    downsampling_ratios: Annotated[list[VaeFactor], Field(min_length=1)]  # their product: samples in a latent frame
    channel_multiples: Annotated[list[VaeFactor], Field(min_length=1)]
    decoder_channels: VaeWidth
    decoder_input_channels: VaeWidth  # C: channels of a latent frame
    audio_channels: VaeWidth
    sampling_rate: Size


def read_model_config(folder: Path) -> ModelConfig:
    """Read a model folder's config.json.

    Raises:
        CheckpointError: naming every field that is missing or wrong.
    """
    path = folder / "config.json"
    fields = read_json(path)
    # Only turbo models are sure to say it; the name decides for a folder that says nothing.
    fields.setdefault("is_turbo", "turbo" in folder.name.lower())
    return _parse(ModelConfig, path, fields)


def read_vae_config(folder: Path) -> VaeConfig:
    """Read the VAE folder's config.json.

    Raises:
        CheckpointError: naming every field that is missing or wrong.
    """
    path = folder / "config.json"
    return _parse(VaeConfig, path, read_json(path))


def _parse(kind: type[Config], path: Path, fields: dict[str, Any]) -> Config:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(*(_problem(path, details) for details in error.errors())) from error


def _problem(path: Path, details: Any) -> str:
    name = ".".join(map(str, details["loc"]))
    if details["type"] == "missing":
        return f"{path}: {name} is missing."
    if details["type"] == "value_error":  # from our own check, which names the fields itself
        return f"{path}: {details['ctx']['error']}."
    message = details["msg"][0].lower() + details["msg"][1:]
    return f"{path}: {name}: {message}; got {details['input']!r}."


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object.

    Raises:
        CheckpointError: when the file is missing, unreadable, no JSON, or JSON but no object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Download it again.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no JSON object. Download it again.")
    return fields
