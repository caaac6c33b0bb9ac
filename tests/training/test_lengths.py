"""The grid of lengths, and batches split along it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from woodshed.training.lengths import by_length, rounded_up
from woodshed.training.micro_step import Inputs


def inputs(frames, tokens):
    """Return a padded batch whose every number tells its song and place."""
    longest, widest = max(frames), max(tokens)
    songs = torch.arange(1.0, len(frames) + 1)[:, None, None]
    is_frame = torch.arange(longest)[None, :, None] < torch.tensor(frames)[:, None, None]
    is_token = torch.arange(widest)[None, :, None] < torch.tensor(tokens)[:, None, None]
    return Inputs(
        rows=tuple(range(len(frames))),
        latents=songs * is_frame,
        context=10 * songs * is_frame.expand(-1, -1, 2),
        conditions=100 * songs * is_token,
        frame_lengths=torch.tensor(frames),
        condition_lengths=torch.tensor(tokens),
        noise=-songs * is_frame,
        t=songs.flatten() / 10,
        dropped=songs.flatten() > 1,
    )


@given(count=st.integers(1, 40_000), steps=st.sampled_from([4, 32]))
def test_the_grid_is_near_above_and_stays_where_it_is(count, steps):
    found = rounded_up(count, steps)
    assert count <= found <= max(count * (1 + 1 / steps), count + 8, 160)
    assert found % 8 == 0
    assert rounded_up(found, steps) == found


@given(st.integers(1, 5000), st.integers(0, 300))
def test_longer_songs_never_get_less(count, more):
    assert rounded_up(count, 32) <= rounded_up(count + more, 32)


def test_a_few_dozen_lengths_serve_all_songs_between_one_and_four_minutes():
    assert len({rounded_up(tokens, 32) for tokens in range(750, 3001)}) <= 65


def test_songs_of_one_length_stay_together_and_others_go_alone():
    parts = by_length(inputs([400, 90, 399], [20, 20, 18]), patch_size=2)
    assert [part.rows for part in parts] == [(0, 2), (1,)]
    assert [part.latents.shape[1] for part in parts] == [400, 320]
    assert [part.frame_lengths.tolist() for part in parts] == [[400, 399], [90]]
    assert [part.condition_lengths.tolist() for part in parts] == [[20, 18], [20]]


def test_every_song_keeps_its_own_numbers_and_is_filled_with_zeros():
    given_inputs = inputs([21, 130, 64], [5, 9, 70])
    for part in by_length(given_inputs, patch_size=2):
        for place, row in enumerate(part.rows):
            frames, tokens = part.frame_lengths[place], part.condition_lengths[place]
            for name, length in {"latents": frames, "noise": frames, "context": frames, "conditions": tokens}.items():
                mine, whole = getattr(part, name)[place], getattr(given_inputs, name)[row]
                assert torch.equal(mine[:length], whole[:length])
                assert not mine[length:].any()
            assert part.t[place] == given_inputs.t[row]
            assert part.dropped[place] == given_inputs.dropped[row]


def test_a_batch_without_lengths_gets_some():
    whole = inputs([40, 40], [8, 8])
    bare = Inputs(**{**vars(whole), "frame_lengths": None, "condition_lengths": None})
    (part,) = by_length(bare, patch_size=2)
    assert part.frame_lengths.tolist() == [40, 40]
    assert part.condition_lengths.tolist() == [8, 8]
    assert part.latents.shape[1] == 320


def test_songs_of_one_length_stay_together_whatever_their_conditions():
    (part,) = by_length(inputs([400, 400], [20, 300]), patch_size=2)
    assert part.conditions.shape[1] == rounded_up(300, 4)
    assert part.condition_lengths.tolist() == [20, 300]
