"""Of few songs a passage each is kept from training: none of its frames is ever trained on."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.conftest import write_song
from woodshed.errors import UserError
from woodshed.sampling.preview import song_words
from woodshed.training.events import Notice, Started, StepDone, Validated
from woodshed.training.holdout import FEWEST_SONGS
from woodshed.training.loop import train
from woodshed.training.passages import LEAST, passage_bounds
from woodshed.training.preflight import check
from woodshed.training.run import load_run

HELD = {"validation_share": 0.3, "validate_every_n_epochs": 1}
LENGTHS = {"a": 500, "b": 411, "c": 3 * LEAST - 1}


@pytest.fixture
def dataset_dir(tmp_path):
    """Two songs that are long enough for three parts, and one that is just too short."""
    folder = tmp_path / "tensors"
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        write_song(folder, name, frames=frames, tokens=5, seed=seed)
    return folder


def song(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


@given(
    frames=st.integers(1, 20_000),
    share=st.floats(0.001, 0.5),
    seed=st.integers(0, 100),
    name=st.text(max_size=8),
)
def test_a_passage_leaves_two_pieces_that_are_long_enough(frames, share, seed, name):
    bounds = passage_bounds(name, frames, share, seed)
    assert (bounds is None) == (frames < 3 * LEAST)
    if bounds:
        start, stop = bounds
        assert start >= LEAST
        assert frames - stop >= LEAST
        assert start % 2 == stop % 2 == 0
        assert stop - start >= LEAST
        assert stop - start <= max(share * frames, LEAST)
        assert bounds == passage_bounds(name, frames, share, seed)


def test_the_passage_lies_elsewhere_for_another_seed_or_name():
    starts = {passage_bounds(name, 5000, 0.1, seed)[0] for name in "abc" for seed in range(3)}
    assert len(starts) == 9
    assert min(starts) < 1800 < 3200 < max(starts)


def test_what_trains_and_what_does_not_are_together_the_song_with_its_context(settings_for, dataset_dir):
    found = check(settings_for(**HELD))
    training = {sample.name: sample for sample in map(found.dataset.__getitem__, range(len(found.dataset)))}
    held_out = [found.held_out[index] for index in range(len(found.held_out))]
    assert list(training) == ["a", "b", "c", "a (2)", "b (2)"]
    assert found.songs == 3
    for passage in held_out:
        name = passage.name.split()[0]
        whole = song(dataset_dir, name)
        for part, key in (("latents", "target_latents"), ("context", "context_latents")):
            pieces = [getattr(piece, part) for piece in (training[name], passage, training[f"{name} (2)"])]
            assert torch.equal(torch.cat(pieces), whole[key])
        assert torch.equal(passage.conditions, whole["encoder_hidden_states"])
        for part in (passage.latents, passage.context):  # a part in memory does not hold on to the whole song
            assert part.untyped_storage().nbytes() == part.numel() * part.element_size()
    assert torch.equal(training["c"].latents, song(dataset_dir, "c")["target_latents"])
    assert [len(passage.latents) for passage in held_out] == [150, 128]


def test_no_frame_of_a_passage_is_ever_in_a_batch(settings_for):
    run = load_run(check(settings_for(**HELD)))
    held_out = run.preflight.held_out
    secret = {tuple(frame.tolist()) for index in range(len(held_out)) for frame in held_out[index].latents}
    seen = {
        tuple(frame.tolist()) for epoch in (1, 2) for batch in run.loader.epoch(epoch) for frame in batch.latents[0]
    }
    assert len(seen) == sum(LENGTHS.values()) - 278
    assert not seen & secret


def test_the_run_says_what_is_held_out_and_measures_it(settings_for):
    events = list(train(settings_for(epochs=1, **HELD)))
    (said,) = [event.text for event in events if isinstance(event, Notice) and "Held out" in event.text]
    assert re.search(r"carries over: \d+ to \d+ s of a, \d+ to \d+ s of b\. Fewer than 4 songs", said)
    assert "trains as two pieces" in said
    (started,) = [event for event in events if isinstance(event, Started)]
    assert (started.songs, started.steps_per_epoch) == (3, 3)  # five pieces, two at a time
    (found,) = [event for event in events if isinstance(event, Validated)]
    assert found.songs == 2


def test_where_no_song_is_long_enough_everything_trains_and_the_run_says_so(settings_for, dataset_dir):
    for name in "ab":
        (dataset_dir / f"{name}.pt").unlink()
    found = check(settings_for(**HELD))
    assert (found.held_out, len(found.dataset)) == (None, 1)
    assert any("none of them has the 15 seconds that it takes" in said for said in found.notices)
    assert found.inert["keep_best"] == "no song is held out"


def told(events):
    return [(e.step, e.loss) for e in events if isinstance(e, (StepDone, Validated))]


def test_a_resume_holds_out_the_same_passages_to_the_last_bit(settings_for, dataset_dir, train_until):
    whole = told(train(settings_for("whole", **HELD)))
    first = told(train_until(settings_for("parts", **HELD), lambda event: isinstance(event, StepDone)))
    for seed in range(FEWEST_SONGS):  # were it a new run, whole songs would be held out now
        write_song(dataset_dir, f"new {seed}", frames=20, tokens=5, seed=seed)
    with pytest.raises(UserError, match="in the middle of an epoch over 5 songs"):
        check(settings_for("parts", resume_from="latest", **HELD))
    for path in dataset_dir.glob("new*.pt"):
        path.unlink()
    rest = told(train(settings_for("parts", resume_from="latest", **HELD)))
    assert first + rest == whole


def test_passages_are_recalled_by_name_though_seed_and_dataset_changed(settings_for, dataset_dir):
    settings = settings_for(save_every=1, **HELD)
    names = check(settings).held_out.names
    list(train(settings))
    write_song(dataset_dir, "a [1:2]", frames=20, tokens=5)
    again = check(settings_for(epochs=4, seed=9, resume_from="latest", **HELD))
    assert again.held_out.names == names
    assert "a [1:2]" in again.dataset.names
    write_song(dataset_dir, "a", frames=150, tokens=5)  # encoded again, shorter
    write_song(dataset_dir, "b", frames=150, tokens=5)
    found = check(settings_for(epochs=4, resume_from="latest", **HELD))
    assert found.held_out is None
    assert any("those that the run held out before are gone" in said for said in found.notices)


def test_a_run_that_trained_on_everything_goes_on_to(settings_for, dataset_dir):
    for name in "ab":
        write_song(dataset_dir, name, frames=20, tokens=5)
    list(train(settings_for(save_every=1, **HELD)))
    for name in "ab":
        write_song(dataset_dir, name, frames=500, tokens=5)
    found = check(settings_for(epochs=4, resume_from="latest", **HELD))
    assert found.held_out is None
    assert any("the run that is continued trained on all" in said for said in found.notices)


def test_samples_play_every_song_once_though_it_trains_in_pieces(settings_for):
    found = check(settings_for(sample_every_n_epochs=1, sample_count=9, **HELD))
    assert [words.title for words in song_words(found.dataset, found.preview)] == ["a", "b", "c"]
