"""Base and turbo: the decoder and condition encoder learn from songs; turbo then learns from base.

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from miniature.sizes import FRAMES, MODEL, SEED, Budget
from miniature.stage import Log, Trainer, steps_in_time
from miniature.words import Words
from woodshed.models.config import ModelConfig
from woodshed.models.decoder import Decoder, build_decoder
from woodshed.models.encoders import ConditionEncoder
from woodshed.models.keys import diffusers_to_original
from woodshed.toy.filterbank import POSTERIOR_STD
from woodshed.training.flow import drop_conditions, flow_matching_loss, mix_with_noise
from woodshed.training.timesteps import TURBO_TIMESTEPS, sample_timesteps

CFG_RATIO = 0.15
TEACHER_GUIDANCE = 2.5
TEACHER_STEPS = 3
"""Turbo learns to reach in one step where base, guided, gets in so many."""


@dataclass
class Dataset:
    """Latents of songs, and for each two ways to ask for it.

    Prompts i and i + len(means) belong to song i.
    """

    means: Tensor  # (songs, T, C)
    words: Words
    silence: Tensor  # (frames, C)

    @property
    def context(self) -> Tensor:
        """What every song's context is: (T, 2 C) silence, and a mask of ones."""
        source = self.silence[:FRAMES]
        return torch.cat([source, torch.ones_like(source)], dim=1)


class Model(nn.Module):
    """Decoder and condition encoder together."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
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

        Args:
            words: of all songs.
            which: (B,) prompts.
        """
        assert self._timbre is not None, "the model has listened to silence"
        encoder, kinds = self.encoder, words.lyrics_of[which]
        slots = torch.arange(words.lyrics.shape[1], device=which.device)
        lyrics = encoder.lyric_encoder(inputs_embeds=words.lyrics, attention_mask=slots < words.lyric_lengths[:, None])[
            kinds
        ]
        text = encoder.text_projector(words.text[which])
        rows = torch.cat([lyrics, self._timbre.expand(len(which), -1, -1), text], dim=1)
        lyric_length, first_free = words.lyric_lengths[kinds][:, None], lyrics.shape[1]
        place = torch.arange(rows.shape[1], device=which.device)[None]
        source = torch.where(place < lyric_length, place, place - lyric_length + first_free)
        lengths = words.lyric_lengths[kinds] + 1 + words.text_lengths[which]
        source = source.clamp(max=rows.shape[1] - 1)[..., None].expand(-1, -1, rows.shape[2])
        return rows.gather(1, source), lengths

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


def precision(device: torch.device) -> torch.autocast:
    """Return the context in which models are trained: bf16 on a GPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def train_base(data: Dataset, budget: Budget, log: Log) -> Model:
    """Train as the real models were: flow matching, the larger of two logit-normal timesteps, CFG dropout."""
    device = data.means.device
    torch.manual_seed(SEED + 1)
    model = Model(ModelConfig.model_validate(model_config("base"))).to(device)
    random, generator = torch.Generator().manual_seed(SEED + 1), torch.Generator(device).manual_seed(SEED + 1)
    size, context = budget.base_batch, data.context
    model.listen_to(data.silence)
    song, prompt = (torch.zeros(size, dtype=torch.long, device=device) for _ in range(2))
    dropped, t = torch.zeros(size, dtype=torch.bool, device=device), torch.zeros(size, device=device)
    noise, scatter = (torch.zeros(size, *data.means.shape[1:], device=device) for _ in range(2))

    def compute_loss() -> tuple[Tensor, Tensor]:
        latents = data.means[song] + POSTERIOR_STD * scatter
        with precision(device):
            conditions, lengths = model.conditions(data.words, prompt)
            conditions = drop_conditions(conditions, model.encoder.null_condition_emb, dropped)
            velocity = model.velocity(mix_with_noise(latents, noise, t), t, conditions, context, lengths)
        losses = flow_matching_loss(velocity, latents, noise, None)
        return losses.mean(), losses.mean()[None]

    trainer = Trainer(compute_loss, list(model.parameters()), [model], peak=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    recent = torch.zeros(1, device=device)
    for step, progress in steps_in_time(budget.base_steps, budget.base_seconds):
        song.copy_(torch.randint(len(data.means), (size,), generator=random))
        prompt.copy_(song + len(data.means) * torch.randint(2, (size,), generator=random).to(device))
        dropped.copy_(torch.rand(size, generator=random) < CFG_RATIO)
        sigma, mu = MODEL["timestep_sigma"], MODEL["timestep_mu"]
        t.copy_(sample_timesteps(size, mu=mu, sigma=sigma, generator=random))
        noise.normal_(generator=generator)
        scatter.normal_(generator=generator)
        recent = torch.lerp(recent, trainer.step(step, progress), 0.02 if step > 50 else 0.5)
        if step % 100 == 0 or step == budget.base_steps - 1:
            log("base", step=step, loss=recent.item())
    trainer.use_average()
    return model.eval()


@torch.no_grad()
def _guided_walk(model: Model, noisy: Tensor, start: Tensor, end: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Walk from t = start to t = end, (B,) each, by a few guided steps of base."""
    size = (start - end) / TEACHER_STEPS
    null = model.encoder.null_condition_emb.expand_as(inputs["conditions"])
    both = torch.cat([inputs["conditions"], null.to(inputs["conditions"].dtype)])
    lengths = inputs["lengths"].repeat(2)
    for number in range(TEACHER_STEPS):
        t = (start - number * size).repeat(2)
        velocity = model.velocity(noisy.repeat(2, 1, 1), t, both, inputs["context"], lengths).float()
        conditioned, free = velocity.chunk(2)
        noisy = noisy - (free + TEACHER_GUIDANCE * (conditioned - free)) * size[:, None, None]
    return noisy


def train_turbo(base: Model, data: Dataset, budget: Budget, log: Log) -> Model:
    """Teach a copy of base to go from each of turbo's eight timesteps to the next in one step, guidance included."""
    device = data.means.device
    turbo = Model(ModelConfig.model_validate(model_config("turbo"))).to(device)
    turbo.load_state_dict(base.state_dict())
    random, generator = torch.Generator().manual_seed(SEED + 2), torch.Generator(device).manual_seed(SEED + 2)
    size, context = budget.turbo_batch, data.context
    for model in (base, turbo):
        model.listen_to(data.silence)
    song, prompt = (torch.zeros(size, dtype=torch.long, device=device) for _ in range(2))
    start, end = (torch.zeros(size, device=device) for _ in range(2))
    noise = torch.zeros(size, *data.means.shape[1:], device=device)
    levels = torch.tensor([*TURBO_TIMESTEPS, 0.0])

    def compute_loss() -> tuple[Tensor, Tensor]:
        noisy = mix_with_noise(data.means[song], noise, start)
        with precision(device):
            with torch.no_grad():
                conditions, lengths = base.conditions(data.words, prompt)
                inputs = {"conditions": conditions, "lengths": lengths, "context": context}
                reached = _guided_walk(base, noisy, start, end, inputs)
                meant = (noisy - reached) / (start - end)[:, None, None]
            velocity = turbo.velocity(noisy, start, conditions, context, lengths)
        loss = (velocity.float() - meant).square().mean()
        return loss, loss[None]

    trainer = Trainer(
        compute_loss, list(turbo.decoder.parameters()), [turbo], peak=5e-4, betas=(0.9, 0.98), weight_decay=0.0
    )
    recent = torch.zeros(1, device=device)
    for step, progress in steps_in_time(budget.turbo_steps, budget.turbo_seconds):
        song.copy_(torch.randint(len(data.means), (size,), generator=random))
        prompt.copy_(song + len(data.means) * torch.randint(2, (size,), generator=random).to(device))
        level = torch.randint(len(TURBO_TIMESTEPS), (size,), generator=random)
        start.copy_(levels[level])
        end.copy_(levels[level + 1])
        noise.normal_(generator=generator)
        recent = torch.lerp(recent, trainer.step(step, progress), 0.02 if step > 50 else 0.5)
        if step % 250 == 0 or step == budget.turbo_steps - 1:
            log("turbo", step=step, loss=recent.item())
    trainer.use_average()
    return turbo.eval()


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
