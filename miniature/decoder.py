"""Base and turbo: the decoder and condition encoder learn from songs; turbo then learns from base.

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from miniature.model import Dataset, Model
from miniature.sizes import MODEL, SEED, Budget
from miniature.stage import Log, Trainer, run
from woodshed.toy.filterbank import POSTERIOR_STD
from woodshed.training.flow import drop_conditions, flow_matching_loss, mix_with_noise
from woodshed.training.timesteps import sample_timesteps, sample_turbo_timesteps, timestep_quantiles

CFG_RATIO = 0.15
TEACHER_GUIDANCE = 2.5
TEACHER_STEPS = 3
"""Turbo learns to reach in one step where base, guided, gets in so many."""
LOT = 100
"""Steps whose lots are drawn at once: on the processor, whatever trains, and copied together."""


class Batch:
    """What a step trains on, in tensors that stay where they are, so that a step can be recorded.

    Args:
        data: to draw songs from.
        size: B.
        seed: of everything.
        draw_times: so many timesteps.
    """

    def __init__(
        self, data: Dataset, size: int, seed: int, draw_times: Callable[[int, torch.Generator], Tensor]
    ) -> None:
        self._data, self._size, self._draw_times = data, size, draw_times
        self._random = torch.Generator().manual_seed(seed)
        self._generator = torch.Generator(data.means.device).manual_seed(seed)
        place = {"device": data.means.device}
        self.song, self.prompt = (torch.zeros(size, dtype=torch.long, **place) for _ in range(2))
        self.is_dropped, self.t = torch.zeros(size, dtype=torch.bool, **place), torch.zeros(size, **place)
        self.noise, self.scatter = (torch.zeros(size, *data.means.shape[1:], **place) for _ in range(2))
        self._lots: list[Tensor] = []

    def fill(self, step: int) -> None:
        """Put the songs, words, timesteps and noise of a step in place."""
        if step % LOT == 0:
            self._lots = self._draw_lots()
        for place, lots in zip((self.song, self.prompt, self.is_dropped, self.t), self._lots, strict=True):
            place.copy_(lots[step % LOT])
        for values in (self.noise, self.scatter):
            values.normal_(generator=self._generator)

    def _draw_lots(self) -> list[Tensor]:
        shape, random = (LOT, self._size), self._random
        song = torch.randint(len(self._data.means), shape, generator=random).to(self.song.device)
        way = torch.randint(2, shape, generator=random).to(self.song.device)
        is_dropped = torch.rand(shape, generator=random) < CFG_RATIO
        t = self._draw_times(LOT * self._size, random).reshape(shape)
        return [song, self._data.prompts[way, song], is_dropped.to(song.device), t.to(song.device)]


def train_base(data: Dataset, held_out: Dataset, budget: Budget, log: Log) -> Model:
    """Train as the real models were: flow matching, the larger of two logit-normal timesteps, CFG dropout."""
    torch.manual_seed(SEED + 1)
    model = Model("base").to(data.means.device)
    model.listen_to(data.silence)
    shape = {"mu": MODEL["timestep_mu"], "sigma": MODEL["timestep_sigma"]}
    batch = Batch(data, budget.base_batch, SEED + 1, lambda n, random: sample_timesteps(n, **shape, generator=random))

    def compute_loss() -> Tensor:
        latents = data.means[batch.song] + POSTERIOR_STD * batch.scatter
        conditions, lengths = model.conditions(data.words, batch.prompt)
        conditions = drop_conditions(conditions, model.encoder.null_condition_emb, batch.is_dropped)
        noisy = mix_with_noise(latents, batch.noise, batch.t)
        velocity = model.velocity(noisy, batch.t, conditions, data.context, lengths)
        return flow_matching_loss(velocity, latents, batch.noise, None).mean()

    trainer = Trainer(compute_loss, list(model.parameters()), model, peak=2e-3, weight_decay=0.01)
    run("base", trainer, batch.fill, budget.base_steps, log, lambda: held_out_loss(model, held_out))
    return model.eval()


@torch.no_grad()
def held_out_loss(model: Model, held_out: Dataset) -> float:
    """Return the loss on songs that are not trained on, always at the same timesteps and noise."""
    latents = held_out.means
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED)).to(latents.device)
    t = timestep_quantiles(len(latents), mu=MODEL["timestep_mu"], sigma=MODEL["timestep_sigma"]).to(latents.device)
    conditions, lengths = model.conditions(held_out.words, held_out.prompts[0])
    velocity = model.velocity(mix_with_noise(latents, noise, t), t, conditions, held_out.context, lengths)
    return flow_matching_loss(velocity, latents, noise, None).mean().item()


def next_turbo_timestep(t: Tensor) -> Tensor:
    """Return where turbo goes from each of its timesteps: an eighth less before they are shifted by 3."""
    even = t / (3 - 2 * t) - 1 / 8
    return 3 * even / (1 + 2 * even)


@torch.no_grad()
def guided_walk(model: Model, noisy: Tensor, start: Tensor, end: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Walk from t = start to t = end, (B,) each, by a few guided steps of base."""
    size = (start - end) / TEACHER_STEPS
    null = model.encoder.null_condition_emb.expand_as(inputs["conditions"])
    both = torch.cat([inputs["conditions"], null])
    lengths = inputs["lengths"].repeat(2)
    for number in range(TEACHER_STEPS):
        t = (start - number * size).repeat(2)
        velocity = model.velocity(noisy.repeat(2, 1, 1), t, both, inputs["context"], lengths)
        conditioned, free = velocity.chunk(2)
        noisy = noisy - (free + TEACHER_GUIDANCE * (conditioned - free)) * size[:, None, None]
    return noisy


def train_turbo(base: Model, data: Dataset, budget: Budget, log: Log) -> Model:
    """Teach a copy of base to go from each of turbo's eight timesteps to the next in one step, guidance included."""
    turbo = Model("turbo").to(data.means.device)
    turbo.load_state_dict(base.state_dict())
    base.listen_to(data.silence)
    batch = Batch(data, budget.turbo_batch, SEED + 2, lambda n, random: sample_turbo_timesteps(n, generator=random))

    def compute_loss() -> Tensor:
        start, end = batch.t, next_turbo_timestep(batch.t)
        noisy = mix_with_noise(data.means[batch.song], batch.noise, start)
        with torch.no_grad():
            conditions, lengths = base.conditions(data.words, batch.prompt)
        inputs = {"conditions": conditions, "lengths": lengths, "context": data.context}
        reached = guided_walk(base, noisy, start, end, inputs)
        meant = (noisy - reached) / (start - end)[:, None, None]
        velocity = turbo.velocity(noisy, start, conditions, data.context, lengths)
        return (velocity - meant).square().mean()

    trainer = Trainer(compute_loss, list(turbo.decoder.parameters()), turbo, peak=5e-4, weight_decay=0.0)
    run("turbo", trainer, batch.fill, budget.turbo_steps, log)
    return turbo.eval()
