"""The decoder: diffusers' ACE-Step transformer with a forward pass that is exact for batches of different lengths.

Letters: B songs, T latent frames, N = ceil(T / patch_size) tokens, L condition tokens, C latent channels, E condition
width.

The original model attends to padding as if it were music, so padding has to be hidden here, everywhere that a frame can
see another: in the patches, in both kinds of self attention and in cross attention. Sizes, names and weights are those
of the library's class; adapters made for one fit the other.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AceStepTransformer1DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.ace_step_transformer import AceStepTimestepEmbedding
from diffusers.utils.peft_utils import apply_lora_scale
from torch import Tensor, nn

from woodshed.models.attention import WindowedAttnProcessor
from woodshed.models.config import ModelConfig
from woodshed.models.sights import Layout, Lengths, SightMaker, by_blocks

Inputs = tuple[Any, ...]
"""What a block is called with, the tokens first."""


class Decoder(AceStepTransformer1DModel):  # type: ignore[misc] # the library has no types
    """Predicts the velocity that leads from noise to a song.

    Args:
        sizes: those of `AceStepTransformer1DModel`.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        for layer in self.layers:
            layer.self_attn.set_processor(WindowedAttnProcessor())
            layer.cross_attn.set_processor(WindowedAttnProcessor())
        self.sight_of: SightMaker = by_blocks
        self.run_block: Callable[[int, nn.Module, Inputs], Tensor] = self._run_block

    def to(self, *args: Any, **kwargs: Any) -> "Decoder":
        """Move or cast as every torch module does.

        The library's version warns at every cast that some layers should stay float32, and then lists none: what has to
        be computed in float32 here is so whatever the weights are.
        """
        return nn.Module.to(self, *args, **kwargs)

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        timestep_r: Tensor,
        encoder_hidden_states: Tensor,
        context_latents: Tensor,
        frame_lengths: Tensor | None = None,
        condition_lengths: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 - read by the decorator
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the velocity of noisy latents.

        Args:
            hidden_states: (B, T, C) noisy latents, in the weights' precision unless under autocast.
            timestep: (B,) t in [0, 1], where 1 is noise; float32 whatever the weights are.
            timestep_r: (B,) r, equal to t in training and sampling.
            encoder_hidden_states: (B, L, E) conditions.
            context_latents: (B, T, 2 C) source latents and chunk mask.
            frame_lengths: (B,) how many frames of each song are real, the others being padding at its end; None when
                all are. Padding has no influence on real frames.
            condition_lengths: (B,) the same for the conditions, each at least 1.
            attention_kwargs: `{"scale": x}` multiplies the strength of LoRA layers.
            return_dict: whether to return an object with `sample` or a tuple of one.

        Returns:
            (B, T, C) velocity, zero at padded frames.
        """
        temb, modulation = self._embed_timesteps(timestep, timestep_r)
        frames = torch.cat([context_latents, hidden_states], dim=-1)
        is_frame = _is_real(frame_lengths, frames.shape[1])
        tokens = self._patchify(frames, is_frame)
        conditions = self.condition_embedder(encoder_hidden_states)
        heads = self.config.num_attention_heads // self.config.num_key_value_heads
        token_lengths = None if frame_lengths is None else -(-frame_lengths // self.patch_size)
        sight = self.sight_of(
            tokens, conditions, Lengths(token_lengths, condition_lengths), Layout(self.config.sliding_window, heads)
        )
        rotary = self._rotary_table(tokens)
        for index, (layer, kind) in enumerate(zip(self.layers, self.layer_types, strict=True)):
            own = sight.full if kind == "full_attention" else sight.sliding
            tokens = self.run_block(index, layer, (tokens, rotary, modulation, own, conditions, sight.cross))
        velocity = self._unpatchify(tokens, temb)[:, : frames.shape[1]]
        if is_frame is not None:
            velocity = velocity.masked_fill(~is_frame[..., None], 0)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _embed_timesteps(self, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, width) for the output and (B, 6, width) for the layers."""
        temb, modulation = _embed_timestep(self.time_embed, t.float())
        temb_r, modulation_r = _embed_timestep(self.time_embed_r, t.float() - r.float())
        return temb + temb_r, modulation + modulation_r

    def _patchify(self, frames: Tensor, is_frame: Tensor | None) -> Tensor:
        """Turn (B, T, 3 C) frames into (B, N, width) tokens; what fills up a song's last patch is zero."""
        if is_frame is not None:
            frames = frames.masked_fill(~is_frame[..., None], 0)
        frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % self.patch_size))
        tokens: Tensor = self.proj_in_conv(frames.transpose(1, 2)).transpose(1, 2)
        return tokens.contiguous()  # else every layer inherits the transposed layout, and matmuls fall to slow kernels

    def _run_block(self, _index: int, layer: nn.Module, inputs: Inputs) -> Tensor:
        """Run a block, with `gradient_checkpointing` so that the backward pass computes it again."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            tokens: Tensor = self._gradient_checkpointing_func(layer, *inputs)
        else:
            tokens = layer(*inputs)
        return tokens

    def _rotary_table(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (N, head width) each, in float32 whatever the tokens are."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        cosines, sines = get_1d_rotary_pos_embed(
            self.head_dim, positions, theta=self.rope_theta, use_real=True, repeat_interleave_real=False
        )
        return cosines, sines

    def _unpatchify(self, tokens: Tensor, temb: Tensor) -> Tensor:
        """Turn tokens into (B, N * patch_size, C)."""
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        tokens = (self.norm_out(tokens) * (1 + scale) + shift).type_as(tokens)
        frames: Tensor = self.proj_out_conv(tokens.transpose(1, 2)).transpose(1, 2)
        return frames


def _is_real(lengths: Tensor | None, longest: int) -> Tensor | None:
    """Return (B, longest): true before each song's length."""
    return None if lengths is None else torch.arange(longest, device=lengths.device) < lengths[:, None]


def _embed_timestep(embedder: AceStepTimestepEmbedding, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embedding (B, width) and its projection (B, 6, width) of float32 timesteps.

    The library's own forward computes the sinusoid in the precision of t and then needs weights of that precision;
    1000 t in bf16 would be off by up to 2.
    """
    sinusoid = embedder.time_sinusoid(t * embedder.scale).to(embedder.linear_1.weight.dtype)
    temb = embedder.linear_2(embedder.act1(embedder.linear_1(sinusoid)))
    return temb, embedder.time_proj(embedder.act2(temb)).unflatten(1, (6, -1))


def build_decoder(config: ModelConfig) -> Decoder:
    """Return a decoder with random weights, of the sizes that a config.json gives."""
    return Decoder(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        in_channels=config.in_channels,
        audio_acoustic_hidden_dim=config.audio_acoustic_hidden_dim,
        patch_size=config.patch_size,
        rope_theta=config.rope_theta,
        attention_bias=config.attention_bias,
        attention_dropout=config.attention_dropout,
        rms_norm_eps=config.rms_norm_eps,
        sliding_window=config.sliding_window,
        layer_types=list(config.layer_types[: config.num_hidden_layers]),
        encoder_hidden_size=config.condition_width,
        is_turbo=config.is_turbo,
        model_version=config.model_version,
    )
