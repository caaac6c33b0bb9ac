"""Samples of a run that is continued: nothing is compared that differs in more than the adapter."""

import json
import re
import shutil

import pytest
import torch

from woodshed.sampling import preview
from woodshed.sampling.recipes import Playback
from woodshed.training import loop
from woodshed.training.events import Notice, SampleMade
from woodshed.training.loop import train
from woodshed.training.preflight import check
from woodshed.training.run import load_run

USUAL = Playback(1.0, 2, 7.0)


@pytest.fixture
def settings_for(training_settings_for):
    return training_settings_for


def is_sample(event):
    return isinstance(event, SampleMade)


def rows_of(folder):
    text = (folder / "samples" / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'application/json">(.*)</script>', text)[1])


CHANGES = [
    ({"seed": 7}, {}),
    ({}, {"sample_prompts": "cold funk\nslow piano\n"}),
]


@pytest.mark.parametrize(("changes", "file"), CHANGES, ids=str)
def test_a_resume_that_samples_otherwise_plays_the_base_model_anew_and_compares_with_nothing_older(
    settings_for, tmp_path, changes, file
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("warm funk\nslow piano\n", encoding="utf-8")
    common = {"sample_prompts": prompts, "sample_count": 1, "save_every": 1}
    list(train(settings_for(**common)))
    prompts.write_text(file.get("sample_prompts", "warm funk\nslow piano\n"), encoding="utf-8")
    made = [e for e in train(settings_for(**common, epochs=3, resume_from="latest", **changes)) if is_sample(e)]
    assert [event.epoch for event in made] == [0, 2, 3]  # the epoch it continues from is heard again too
    (song,) = rows_of(tmp_path / "out")
    assert [sound["label"] for sound in song["sounds"]] == ["base model", "epoch 2", "epoch 3"]


def test_samples_from_beyond_the_checkpoint_that_a_run_goes_back_to_are_set_aside(settings_for, tmp_path):
    list(train(settings_for(save_every=1, epochs=3)))
    events = list(train(settings_for(epochs=4, resume_from=tmp_path / "out" / "checkpoint-epoch-1")))
    said = [event.text for event in events if isinstance(event, Notice) and "made after where" in event.text]
    assert len(said) == 2
    folder = tmp_path / "out" / "samples"
    assert {path.name for path in folder.glob("epoch-*")} == (
        {f"epoch-{number}" for number in range(1, 5)} | {f"epoch-{number}-superseded-1" for number in (2, 3)}
    )
    assert len(rows_of(tmp_path / "out")[0]["sounds"]) == 5


def test_a_file_of_the_same_name_that_is_no_sample_of_ours_is_made_anew(settings_for, tmp_path):
    list(train(settings_for(save_every=1)))
    base = tmp_path / "out" / "samples" / "base" / "1-a-song.wav"
    whole = base.read_bytes()
    for junk in (b"RIFF", whole.replace(b'"words"', b'"wards"')):
        base.write_bytes(junk)
        for folder in (tmp_path / "out").glob("checkpoint-epoch-3*"):
            shutil.rmtree(folder)
        made = [e for e in train(settings_for(epochs=3, resume_from="latest", save_every=0)) if is_sample(e)]
        assert [event.epoch for event in made] == [0, 0, 3, 3]
        assert base.read_bytes() == whole


def test_who_asks_to_stop_is_not_kept_waiting_for_samples_which_the_resumed_run_makes(
    settings_for, tmp_path, monkeypatch
):
    asked = []

    def begin_saving(run, kind):
        begin(run, kind)
        asked.append(kind)  # between saving and listening

    begin = loop._begin_saving
    monkeypatch.setattr(loop, "_begin_saving", begin_saving)
    events = list(train(settings_for(save_every=1), should_stop=lambda: bool(asked)))
    assert asked == ["checkpoint"]
    assert {event.epoch for event in events if is_sample(event)} == {0}
    assert not (tmp_path / "out" / "samples" / "epoch-1").exists()
    rest = [event for event in train(settings_for(resume_from="latest")) if is_sample(event)]
    assert {event.epoch for event in rest} == {1, 2}


def test_whatever_makes_a_sample_different_is_in_its_recipe(settings_for, tmp_path):
    run = load_run(check(settings_for(sample_count=1)))
    place = {"dtype": torch.float32, "device": torch.device("cpu"), "offload": False, "folder": tmp_path / "samples"}

    def recipe(*, playback=USUAL, seed=1, dtype=torch.float32, **changes):
        plan = check(settings_for(sample_count=1, **changes)).preview
        words = preview.song_words(run.preflight.dataset, plan)
        made = preview.Preview(
            plan, words, playback, checkpoint=run.preflight.checkpoint, seed=seed, **place | {"dtype": dtype}
        )
        return json.dumps(made._recipe(1))

    found = [
        recipe(),
        recipe(seed=2),
        recipe(playback=Playback(2.0, 2, 7.0)),
        recipe(playback=Playback(1.0, 3, 7.0)),
        recipe(playback=Playback(1.0, 2, 6.0)),
        recipe(dtype=torch.bfloat16),
        recipe(sample_seconds=0.2),
    ]
    assert len(set(found)) == len(found)
    assert recipe() == found[0]
