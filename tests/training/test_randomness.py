"""Draws are a function of (seed, epoch, song) and of nothing else."""

import pytest
import torch

from woodshed.data.dataset import Batch, Sample, collate
from woodshed.training.randomness import DrawRules, derive_seed, draw_for_songs

RULES = DrawRules("corrected", cfg_ratio=0.15, timestep_mu=-0.4, timestep_sigma=1.0)


def batch_of(**songs: int) -> Batch:
    """A batch with songs of the given numbers of frames."""
    return collate([Sample(name, torch.zeros(n, 4), torch.zeros(3, 8), torch.zeros(n, 8)) for name, n in songs.items()])


def test_a_song_meets_the_same_draws_in_any_batch():
    together = draw_for_songs(RULES, 42, 3, batch_of(a=10, b=6))
    alone = draw_for_songs(RULES, 42, 3, batch_of(b=6))
    assert torch.equal(together.noise[1, :6], alone.noise[0])
    assert torch.equal(together.t[1:], alone.t)
    assert torch.equal(together.dropped[1:], alone.dropped)


def test_there_is_no_noise_where_a_song_has_no_frame():
    draws = draw_for_songs(RULES, 42, 3, batch_of(a=10, b=6))
    assert not draws.noise[1, 6:].any()
    assert draws.noise[0].all()


@pytest.mark.parametrize(("seed", "epoch", "name"), [(43, 1, "a"), (42, 2, "a"), (42, 1, "b")])
def test_seed_epoch_and_song_each_change_the_draws(seed, epoch, name):
    first = draw_for_songs(RULES, 42, 1, batch_of(a=10))
    other = draw_for_songs(RULES, seed, epoch, batch_of(**{name: 10}))
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.t, other.t)


def test_the_global_generator_is_neither_used_nor_disturbed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw_for_songs(RULES, 42, 1, batch_of(a=10))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(draw_for_songs(RULES, 42, 1, batch_of(a=10)).noise, first.noise)


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.0), (1.0, 1.0), (0.15, 0.15)])
def test_conditions_are_dropped_with_the_stated_probability(ratio, share):
    rules = DrawRules("corrected", ratio, -0.4, 1.0)
    batch = batch_of(a=1)
    dropped = torch.cat([draw_for_songs(rules, 42, epoch, batch).dropped for epoch in range(4000)])
    assert dropped.dtype == torch.bool
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.02)


def test_vanilla_mode_draws_the_eight_turbo_steps_and_drops_nothing():
    rules = DrawRules("vanilla", 1.0, -0.4, 1.0)
    draws = [draw_for_songs(rules, 42, epoch, batch_of(a=1)) for epoch in range(300)]
    assert len({draw.t.item() for draw in draws}) == 8
    assert not any(draw.dropped.any() for draw in draws)


def test_noise_is_standard_normal():
    noise = draw_for_songs(RULES, 42, 1, batch_of(a=20_000)).noise
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_derived_seeds_fit_a_generator_and_depend_on_every_part():
    seeds = {
        derive_seed(*parts) for parts in [(1, 2, "a"), (1, 2, "b"), (1, 3, "a"), (2, 2, "a"), (12, "a"), (1, "2a")]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(42, 1, "a") == derive_seed(42, 1, "a")
