"""Whether it learned: held-out songs, and samples to be heard."""

import pytest

from woodshed.data.audio import probe
from woodshed.training.events import EpochDone, Notice, Saved, Started, Validated
from woodshed.training.events import SampleMade as Made
from woodshed.training.preflight import check as preflight

SAMPLED = {"sample_every_n_epochs": 1, "num_inference_steps": 1, "sample_count": 1}


@pytest.fixture
def six(bench):
    for seed, name in enumerate("ef", 4):
        bench.write_song(name, 9, seed)
    return bench


def test_validation_share_is_how_many_songs_do_not_train(six):
    for share, held_out in ((0.0, 0), (0.2, 1), (0.5, 3)):
        (started,) = six.events(Started, validation_share=share, epochs=1)
        assert started.songs == 6 - held_out
        assert {event.songs for event in six.events(Validated, validation_share=share, epochs=1)} == (
            {held_out} if held_out else set()
        )


def test_validate_every_n_epochs_measures_so_often_and_at_the_end(six):
    for every, epochs in ((1, [1, 2, 3]), (2, [2, 3]), (5, [3])):
        found = six.events(Validated, validation_share=0.2, validate_every_n_epochs=every, epochs=3)
        assert [event.epoch for event in found] == epochs
    assert "validate_every_n_epochs" in preflight(six.settings()).inert


def test_keep_best_writes_the_best_checkpoint_apart_from_the_others(six):
    for kept in (False, True):
        saved = six.events(
            Saved, keep_best=kept, validation_share=0.2, validate_every_n_epochs=1, save_every=1, keep_last=1
        )
        assert ("best" in [event.kind for event in saved]) == kept
        folder = six.root / f"run-{six.runs}"
        assert (folder / "best" / "resume" / "state.json").is_file() == kept
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-epoch-2"]


def test_early_stop_ends_a_run_that_no_longer_improves(six):
    common = {"validation_share": 0.5, "validate_every_n_epochs": 1, "epochs": 12, "learning_rate": 0.05}
    values = [event.loss for event in six.events(Validated, **common)]
    best, stop = 0, None
    for number, value in enumerate(values):
        best = number if value < values[best] else best
        stop = number + 1 if stop is None and number - best >= 2 else stop
    assert stop is not None, "the run gets worse, so that there is something to stop"
    assert stop < 12
    assert len(six.events(EpochDone, early_stop=2, **common)) == stop
    assert six.events(Saved, early_stop=2, **common)[-1].kind == "final"


def test_sample_every_n_epochs_makes_sounds_of_the_base_model_and_of_so_many_epochs(bench):
    for every, epochs in ((0, []), (1, [0, 1, 2, 3]), (2, [0, 2])):
        made = bench.events(Made, **SAMPLED | {"sample_every_n_epochs": every, "epochs": 3})
        assert [event.epoch for event in made] == epochs
        assert all(event.path.is_file() for event in made)


def test_sample_count_is_how_many_songs_are_played(bench):
    for count in (1, 3):
        made = bench.events(Made, **SAMPLED | {"sample_count": count, "epochs": 1})
        assert [event.title for event in made] == list("abcd"[:count]) * 2


def test_sample_seconds_cut_the_samples(bench):
    for seconds, length in ((0.2, 0.2), (30.0, 0.48)):  # the first song has twelve frames
        made = bench.events(Made, **SAMPLED | {"sample_seconds": seconds, "epochs": 1})
        assert [probe(event.path).seconds for event in made] == pytest.approx([length] * 2)


def test_sample_prompts_are_played_in_place_of_the_songs(bench):
    file = bench.root / "prompts.txt"
    file.write_text("warm funk\n\nslow piano\n", encoding="utf-8")
    changes = SAMPLED | {"sample_prompts": file, "sample_count": 2, "sample_seconds": 0.2, "epochs": 1}
    made = bench.events(Made, **changes)
    assert [event.title for event in made] == ["warm funk", "slow piano"] * 2
    assert made[0].path.read_bytes() != made[1].path.read_bytes()


def test_sample_format_is_the_kind_of_file(bench):
    for kind in ("wav", "flac"):
        made = bench.events(Made, **SAMPLED | {"sample_format": kind, "epochs": 1})
        assert [event.path.suffix for event in made] == [f".{kind}"] * 2


def test_average_best_is_how_many_epochs_are_averaged_and_measured(six):
    common = {"validation_share": 0.2, "validate_every_n_epochs": 1, "epochs": 3}
    for count in (0, 2, 3):
        events = six.events((Notice, Validated), average_best=count, **common)
        ranked = sorted((event.loss, event.epoch) for event in events if isinstance(event, Validated))
        best = ", ".join(map(str, sorted(epoch for _, epoch in ranked[:count])))
        said = [event.text for event in events if isinstance(event, Notice) and event.text.startswith("The average")]
        assert [text.split(" has a held-out loss of ")[0] for text in said] == (
            [f"The average of epochs {best}"] if count else []
        )
