"""What turns words and a reference song into the conditions that the decoder reads.

Letters: Lt prompt tokens, Ll lyric tokens, F latent frames, C latent channels, Dt width of the text encoder, E width of
the conditions.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder, AceStepTimbreEncoder
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from woodshed.errors import CheckpointError
from woodshed.models.config import ModelConfig, read_json
from woodshed.storage import DAMAGE

END_OF_TEXT = "<|endoftext|>"
MAX_PROMPT_TOKENS = 256
MAX_LYRIC_TOKENS = 2048
MOST_OF_TEXT_MODEL = {
    "num_hidden_layers": 1000,
    "num_attention_heads": 1000,
    "num_key_value_heads": 1000,
} | dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "vocab_size", "max_position_embeddings"), 10_000_000)
"""Sizes that no text model comes near."""


class ConditionEncoder(AceStepConditionEncoder):  # type: ignore[misc] # the library has no types
    """Packs lyrics, timbre and prompt into one sequence, as the original does for every variant.

    It differs from the library's class in three points: XL's timbre encoder begins with its learned token, the timbre
    encoder's layers follow `layer_types`, and there is no fixed buffer of silence; callers pass the reference.
    """

    def __init__(self, config: ModelConfig) -> None:
        sizes = _encoder_sizes(config)
        super().__init__(
            **sizes,
            text_hidden_dim=config.text_hidden_dim,
            timbre_hidden_dim=config.timbre_hidden_dim,
            num_lyric_encoder_hidden_layers=config.num_lyric_encoder_hidden_layers,
            num_timbre_encoder_hidden_layers=config.num_timbre_encoder_hidden_layers,
            layer_types=list(config.layer_types[: config.num_lyric_encoder_hidden_layers]),
        )
        self.timbre_encoder = AceStepTimbreEncoder(
            **sizes,
            timbre_hidden_dim=config.timbre_hidden_dim,
            num_timbre_encoder_hidden_layers=config.num_timbre_encoder_hidden_layers,
            layer_types=list(config.layer_types[: config.num_timbre_encoder_hidden_layers]),
        )
        del self.silence_latent
        if config.is_xl:
            self.timbre_encoder.embed_tokens.register_forward_hook(self._prepend_special_token)

    def _prepend_special_token(self, _layer: nn.Module, _inputs: Any, frames: Tensor) -> Tensor:
        """Put XL's learned token before (songs, F, E) embedded frames; the encoder's result is what it becomes.

        The 2B models carry such a token too, but their code never used it.
        """
        token = self.timbre_encoder.special_token.expand(len(frames), -1, -1)
        return torch.cat([token, frames], dim=1)


def _encoder_sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.condition_width,
        "intermediate_size": config.encoder_intermediate_size or config.intermediate_size,
        "num_attention_heads": config.encoder_num_attention_heads or config.num_attention_heads,
        "num_key_value_heads": config.encoder_num_key_value_heads or config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "attention_bias": config.attention_bias,
        "attention_dropout": config.attention_dropout,
        "rms_norm_eps": config.rms_norm_eps,
        "sliding_window": config.sliding_window,
    }


def encode_conditions(encoder: ConditionEncoder, text: Tensor, lyrics: Tensor, timbre: Tensor) -> Tensor:
    """Return the conditions of one song: lyrics, timbre, prompt, without any padding.

    Args:
        text: (1, Lt, Dt) from `TextEncoder.encode_text`.
        lyrics: (1, Ll, Dt) from `TextEncoder.embed_lyrics`.
        timbre: (1, F, C) latents of the reference; silence when there is none.

    Returns:
        (1, Ll + 1 + Lt, E) in the encoder's precision.
    """
    return encode_padded_conditions(encoder, text, lyrics, timbre, text.shape[1], lyrics.shape[1])[0]


@torch.no_grad()
def encode_padded_conditions(
    encoder: ConditionEncoder, text: Tensor, lyrics: Tensor, timbre: Tensor, text_tokens: int, lyric_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return conditions whose texts may end in padding: what is valid comes first, in the same order.

    Args:
        text, lyrics, timbre: as for `encode_conditions`.
        text_tokens, lyric_tokens: how many of each text are valid.

    Returns:
        (1, Ll + 1 + Lt, E) conditions and (1, Ll + 1 + Lt) bool, which of them are valid.
    """
    place = {"device": encoder.device, "dtype": encoder.dtype}
    conditions, mask = encoder(
        text_hidden_states=text.to(**place),
        text_attention_mask=_valid(text, text_tokens).to(encoder.device),
        lyric_hidden_states=lyrics.to(**place),
        lyric_attention_mask=_valid(lyrics, lyric_tokens).to(encoder.device),
        refer_audio_acoustic_hidden_states_packed=timbre.to(**place),
        refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=encoder.device),
    )
    return conditions, mask.bool()


def _valid(states: Tensor, tokens: int) -> Tensor:
    return (torch.arange(states.shape[1]) < tokens)[None]


class TextEncoder(nn.Module):
    """Tokenizer and text model; `load_text_encoder` makes one."""

    def __init__(self, tokenizer: Tokenizer, model: Qwen3Model) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, the one that ends it included."""
        return len(self.tokenizer.encode(text).ids)

    @torch.no_grad()
    def encode_text(self, prompt: str, max_tokens: int = MAX_PROMPT_TOKENS, *, padded: bool = False) -> Tensor:
        """Return the model's last hidden states, (1, Lt, Dt), Lt <= max_tokens; Lt = max_tokens where padded."""
        ids = self._token_ids(prompt, max_tokens, padded=padded)
        states: Tensor = self.model(ids, use_cache=False).last_hidden_state
        return states

    @torch.no_grad()
    def embed_lyrics(self, text: str, max_tokens: int = MAX_LYRIC_TOKENS, *, padded: bool = False) -> Tensor:
        """Return the embeddings of the tokens alone, (1, Ll, Dt), Ll <= max_tokens: lyrics have their own encoder."""
        embeddings: Tensor = self.model.embed_tokens(self._token_ids(text, max_tokens, padded=padded))
        return embeddings

    def _token_ids(self, text: str, max_tokens: int, *, padded: bool = False) -> Tensor:
        """Return (1, L) ids; a text that is too long is cut before the token that ends it, which pads a short one."""
        ids = self.tokenizer.encode(text).ids
        if len(ids) > max_tokens:
            ids = [*ids[: max_tokens - 1], ids[-1]]
        if padded:
            ids = [*ids, *([ids[-1]] * (max_tokens - len(ids)))]
        return torch.tensor([ids], device=self.model.device)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json as it is; the classes of transformers may rebuild it and lose the token that ends a text.

    Raises:
        CheckpointError: when the file cannot be read or appends no end-of-text token.
    """
    if "model" not in read_json(path):
        raise CheckpointError(f"{path} describes no tokenizer. Download it again.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        if type(error) is not Exception:  # the library has no kind of its own; any other kind is a bug
            raise
        raise CheckpointError(f"{path} describes no tokenizer ({str(error)[:200]}). Download it again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.encode("").tokens != [END_OF_TEXT]:
        raise CheckpointError(
            f"{path} does not append {END_OF_TEXT} to a text, as the models were trained. Use the tokenizer.json of "
            f"Qwen/Qwen3-Embedding-0.6B."
        )
    return tokenizer


def build_text_model(fields: dict[str, Any]) -> Qwen3Model:
    """Return a text model without weights (on the meta device) from what its config.json says.

    Raises:
        CheckpointError: when it is no Qwen3 model.
    """
    if fields.get("model_type") != "qwen3":
        raise CheckpointError(
            f"The text encoder's config.json has model_type {fields.get('model_type')!r} instead of 'qwen3'."
        )
    refuse_sizes(fields)
    try:
        config = Qwen3Config.from_dict(fields)
        with torch.device("meta"):
            model = Qwen3Model(config)
        model.rotary_emb = type(model.rotary_emb)(config)  # computed, not stored: it needs real memory at once
    except (*DAMAGE, ArithmeticError, StrictDataclassError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"The text encoder's config.json describes no model ({reason}).") from error
    return model


def refuse_sizes(fields: dict[str, Any]) -> None:
    """Refuse sizes of a text model that nothing could be built with, before anybody tries.

    Raises:
        CheckpointError: naming them.
    """
    wrong = [
        f"{name} {str(fields[name])[:40]!r}"
        for name, most in MOST_OF_TEXT_MODEL.items()
        if name in fields and not (type(fields[name]) is int and 0 < fields[name] <= most)
    ]
    if wrong:
        raise CheckpointError(f"The text encoder's config.json cannot be right: {', '.join(wrong)}. Download it again.")
