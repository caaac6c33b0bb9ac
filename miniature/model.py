"""The model that is trained, decoder and condition encoder together, and how it is written.

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from miniature.sizes import FRAMES, MODEL
from miniature.words import Words
from woodshed.models.config import ModelConfig
from woodshed.models.decoder import Decoder, build_decoder
from woodshed.models.encoders import ConditionEncoder
from woodshed.models.keys import diffusers_to_original


@dataclass
class Dataset:
    """Latents of songs, and for each two ways to ask for it."""

    means: Tensor  # (songs, T, C)
    prompts: Tensor  # (2, songs): which of the words ask for a song, in full and with some metadata missing
    words: Words
    silence: Tensor  # (frames, C)

    @property
    def context(self) -> Tensor:
        """What every song's context is: (T, 2 C) silence, and a mask of ones."""
        source = self.silence[:FRAMES]
        return torch.cat([source, torch.ones_like(source)], dim=1)


class Model(nn.Module):
    """Decoder and condition encoder together."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        config = ModelConfig.model_validate(model_config(kind))
        self.decoder: Decoder = build_decoder(config)
        self.encoder = ConditionEncoder(config)
        nn.init.normal_(self.encoder.null_condition_emb, std=0.02)
        self._timbre: Tensor | None = None

    @torch.no_grad()
    def listen_to(self, silence: Tensor) -> None:
        """Compute once what (frames, C) of silence become as a reference: no song has another, so it does not train."""
        order = torch.zeros(1, dtype=torch.long, device=silence.device)
        frames = silence[None, : MODEL["timbre_fix_frame"]]
        self._timbre = self.encoder.timbre_encoder(frames, order)[0]

    def conditions(self, words: Words, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `encode_conditions` makes of each prompt, (B, L, E) with padding at the end, and the lengths.

        Texts are moved to their places before they are projected, so that no gradient has to be scattered, which a GPU
        does in another order each time.

        Args:
            words: of all songs.
            which: (B,) prompts.
        """
        assert self._timbre is not None, "the model has listened to silence"
        encoder, kinds = self.encoder, words.lyrics_of[which]
        slots = torch.arange(words.lyrics.shape[1], device=which.device)
        known = encoder.lyric_encoder(inputs_embeds=words.lyrics, attention_mask=slots < words.lyric_lengths[:, None])
        is_kind = (kinds[:, None] == torch.arange(len(known), device=which.device)).to(known.dtype)
        lyrics = (is_kind @ known.flatten(1)).unflatten(1, known.shape[1:])
        text, lyric_length = words.text[which], words.lyric_lengths[kinds][:, None]
        place = torch.arange(lyrics.shape[1] + 1 + text.shape[1], device=which.device)[None]
        source = (place - lyric_length - 1).clamp(0, text.shape[1] - 1)[..., None].expand(-1, -1, text.shape[2])
        rows = torch.where(
            (place < lyric_length)[..., None],
            F.pad(lyrics, (0, 0, 0, 1 + text.shape[1])),
            encoder.text_projector(text.gather(1, source)),
        )
        lengths = words.lyric_lengths[kinds] + 1 + words.text_lengths[which]
        return torch.where((place == lyric_length)[..., None], self._timbre, rows), lengths

    def velocity(self, noisy: Tensor, t: Tensor, conditions: Tensor, context: Tensor, lengths: Tensor) -> Tensor:
        """Return the decoder's (B, T, C) velocity."""
        found: Tensor = self.decoder(
            noisy,
            timestep=t,
            timestep_r=t,
            encoder_hidden_states=conditions,
            context_latents=context.expand(len(noisy), -1, -1),
            condition_lengths=lengths,
        ).sample
        return found


def model_config(kind: str) -> dict[str, Any]:
    """Return config.json of a variant."""
    return {**MODEL, "is_turbo": kind == "turbo", "model_version": kind}


def write_model(folder: Path, model: Model, kind: str, silence: Tensor) -> None:
    """Write a model folder as ACE-Step publishes them, in bf16.

    Args:
        folder: created.
        model: of any precision, on any device.
        kind: base or turbo.
        silence: (1, C, frames).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model_config(kind), indent=1), encoding="utf-8")
    null = "null_condition_emb"
    tensors = {}
    for part, module in (("decoder", model.decoder), ("encoder", model.encoder)):
        for name, value in module.state_dict().items():
            original = null if name == null else f"{part}.{diffusers_to_original(name)}"
            tensors[original] = value.detach().to("cpu", torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors")
    torch.save(silence.clone(), folder / "silence_latent.pt")
