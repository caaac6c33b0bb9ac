"""What a step is drawn from, and what turbo is taught."""

import pytest
import torch

from miniature.decoder import TEACHER_GUIDANCE, TEACHER_STEPS, Batch, guided_walk, next_turbo_timestep
from miniature.model import Dataset
from woodshed.training.timesteps import TURBO_TIMESTEPS, sample_turbo_timesteps


@pytest.fixture
def data():
    """Three songs, each with two prompts of its own."""
    means = torch.arange(3.0)[:, None, None].expand(3, 4, 2).clone()
    return Dataset(means, torch.tensor([[0, 1, 2], [3, 4, 5]]), words=None, silence=torch.zeros(750, 2))


def batch_of(data, seed=0):
    return Batch(data, 16, seed, lambda count, random: sample_turbo_timesteps(count, generator=random))


def drawn(batch, steps):
    found = []
    for step in range(steps):
        batch.fill(step)
        found.append([tensor.clone() for tensor in (batch.song, batch.prompt, batch.is_dropped, batch.t, batch.noise)])
    return found


def test_every_song_is_asked_for_in_one_of_its_ways_and_some_words_are_dropped(data):
    found = drawn(batch_of(data), 120)
    songs, prompts, dropped, times, noise = (torch.stack(tensors) for tensors in zip(*found, strict=True))
    assert set((prompts - songs).flatten().tolist()) == {0, 3}
    assert set(songs.flatten().tolist()) == {0, 1, 2}
    assert dropped.float().mean() == pytest.approx(0.15, abs=0.03)
    assert sorted(set(times.flatten().tolist())) == pytest.approx(sorted(TURBO_TIMESTEPS))
    assert (noise.mean(), noise.std()) == (pytest.approx(0, abs=0.03), pytest.approx(1, abs=0.03))
    assert not torch.equal(songs[0], songs[100])  # the second lot is another


def test_a_seed_decides_what_is_drawn_and_the_tensors_stay_in_place(data):
    first, again, other = (batch_of(data, seed) for seed in (1, 1, 2))
    places = [first.song.data_ptr(), first.noise.data_ptr()]
    one, two, three = (drawn(batch, 3) for batch in (first, again, other))
    for mine, same in zip(one, two, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(mine, same, strict=True))
    assert not torch.equal(one[0][0], three[0][0])
    assert places == [first.song.data_ptr(), first.noise.data_ptr()]


def test_turbo_goes_from_each_of_its_timesteps_to_the_next_and_from_the_last_to_zero():
    found = next_turbo_timestep(torch.tensor(TURBO_TIMESTEPS))
    torch.testing.assert_close(found, torch.tensor([*TURBO_TIMESTEPS[1:], 0.0]), atol=1e-6, rtol=1e-5)


class Straight:
    """A model whose velocity with words is 3 everywhere, and without them 1."""

    class encoder:
        null_condition_emb = torch.zeros(1, 1, 2)

    def __init__(self):
        self.times = []

    def velocity(self, noisy, t, conditions, _context, _lengths):
        self.times.append(t[0].item())
        return torch.where(conditions[:, :1, :1] == 0, 1.0, 3.0).expand_as(noisy)


def test_the_teacher_walks_in_guided_steps_to_where_the_pupil_is_to_arrive():
    model, noisy = Straight(), torch.zeros(2, 4, 2)
    inputs = {"conditions": torch.ones(2, 5, 2), "lengths": torch.tensor([5, 5]), "context": torch.zeros(4, 4)}
    start, end = torch.tensor([1.0, 0.9]), torch.tensor([0.7, 0.3])
    reached = guided_walk(model, noisy, start, end, inputs)
    velocity = 1 + TEACHER_GUIDANCE * 2
    torch.testing.assert_close(reached[:, 0, 0], -velocity * (start - end))
    assert model.times == pytest.approx([1 - 0.3 / TEACHER_STEPS * step for step in range(TEACHER_STEPS)])
