"""The review says what was chosen and what follows, lets every line be changed, and starts only what can start."""

import tomllib

import pytest

from tests.wizard.answers import other_answer
from tests.wizard.conftest import settings_of
from woodshed.settings.declare import declaration_of
from woodshed.settings.files import preset_values, run_file_layer
from woodshed.settings.resolve import resolve
from woodshed.settings.schema import TrainSettings
from woodshed.wizard.dialog import BackError, ToMenuError
from woodshed.wizard.questions import shown
from woodshed.wizard.review import Review


@pytest.fixture
def reviewed(walk_with):
    """Serve the review of a training with these answers to it; return the walk."""

    def build(*answers, adapter="lora", **chosen):
        walk = walk_with(answers, adapter=adapter)
        usual = {"checkpoint_dir": "checkpoints", "model": "acestep-v15-base", "dataset_dir": "songs"}
        for name, value in (usual | {"output_dir": "out"} | chosen).items():
            assert walk.draft.try_answer(name, value) == []
        Review()(walk)
        return walk

    return build


def test_the_review_shows_what_differs_and_where_it_comes_from(reviewed):
    text = reviewed("start", rank="16").dialog.face.text
    rows = [row.split() for row in text.splitlines()]
    assert ["Rank", "64", "->", "16", "your", "answer"] in rows
    assert ["Alpha", "128", "->", "32", "2", "x", "rank"] in rows
    assert ["Model", "acestep-v15-base", "your", "answer"] in rows  # it has no default
    assert not any(row[:1] == ["Dropout"] for row in rows)


@pytest.mark.parametrize("adapter", ["lora", "lokr"])
def test_every_setting_that_differs_is_listed_with_old_and_new_value(walk_with, adapter):
    walk = walk_with(["q"], adapter=adapter)
    draft = walk.draft
    for name in [name for names in draft.open_sections().values() for name in names]:
        is_file = "Path | None" in str(TrainSettings.model_fields[name].annotation)  # which would have to be there
        if not is_file and name != "mode":  # vanilla closes a page
            assert draft.try_answer(name, other_answer(name, adapter)) == []
    with pytest.raises(ToMenuError):
        Review()(walk)
    text = " ".join(walk.dialog.face.text.split())
    changed = {name: value for name, value in draft.look().settings if name in draft.answers and name != "adapter_type"}
    assert len(changed) > 30
    for name, new in changed.items():
        field = TrainSettings.model_fields[name]
        old = "" if declaration_of(field).section == "Required" else f"{shown(field.default)} -> "
        assert f"{field.title} {old}{shown(new)}" in text, name


def test_the_review_shows_everything_that_follows(reviewed):
    text = " ".join(reviewed("start", rank="16", epochs="7", warmup_steps="2").dialog.face.text.split())
    assert "Modules 32 both: q_proj k_proj v_proj o_proj" in text
    assert "Trainable parameters 28,672 a file of 0.109 MiB" in text
    assert "Optimizer steps 7 7 x 1 an epoch; 1 song, 4 a step" in text
    assert "Effective warm-up 2 steps 29% of the run, then cosine" in text
    assert "Memory about" in text
    assert "frozen" in text
    assert "An estimate: weights and optimizer are counted" in text
    assert "TFLOP/s measured here" in text
    assert "woodshed train --checkpoint-dir checkpoints --model acestep-v15-base" in text


def test_a_warm_up_that_is_longer_than_the_run_is_pointed_out(reviewed):
    text = " ".join(reviewed("start", epochs="3").dialog.face.text.split())
    assert "The warm-up of 100 steps is not shorter than the whole run of 3 steps" in text
    assert "the rate never reaches its peak" in text


def test_chosen_settings_without_effect_are_named(reviewed):
    text = reviewed("start", offload_encoder="yes").dialog.face.text
    assert "Offload encoder has no effect here" in text


def test_a_lokr_shows_its_shapes(reviewed):
    text = reviewed("start", adapter="lokr").dialog.face.text
    assert "w1" in text
    assert "whole" in text


@pytest.mark.parametrize("typed", ["rank", "Rank", "--rank"])
def test_a_setting_is_changed_by_its_name_and_the_review_shown_again(reviewed, typed):
    walk = reviewed(typed, "8", "start")
    assert walk.draft.resolve().settings.rank == 8
    assert walk.dialog.face.text.count("What you chose") == 2
    assert "Alpha is now 16" in walk.dialog.face.text


def test_any_setting_can_be_picked_from_a_list_also_one_that_was_not_asked(reviewed):
    walk = reviewed("change", "weight_decay", "0.5", "start")
    assert walk.draft.resolve().settings.weight_decay == 0.5
    picker = next(ask for ask in walk.dialog.face.asked if ask.title == "Which setting?")
    assert {choice.word for choice in picker.choices} >= set(TrainSettings.model_fields) - {
        name for name in TrainSettings.model_fields if name.startswith(("lokr_", "oft_", "loha_"))
    }


def test_back_from_a_change_leads_to_the_review_and_from_there_to_the_questions(reviewed):
    with pytest.raises(BackError):
        reviewed("change", "b", "rank", "b", "b")


def test_all_settings_are_shown_on_demand(reviewed):
    text = reviewed("all", "start").dialog.face.text
    assert "Max grad norm" in text
    assert "Optimizer & Scheduler" in text


def test_what_cannot_start_says_why_and_does_not(reviewed, home):
    (home / "out").mkdir()
    (home / "out" / "run.toml").touch()
    walk_answers = ["", "start", ToMenuError()]
    with pytest.raises(ToMenuError):
        reviewed(*walk_answers, target_modules="no_such_layer")


def test_every_problem_is_named_and_can_be_mended_on_the_spot(reviewed, home):
    (home / "out").mkdir()
    (home / "out" / "run.toml").touch()
    walk = reviewed("start", "target_modules", "q_proj", "output_dir", "other", "start", target_modules="no_such_layer")
    text = " ".join(walk.dialog.face.text.split())
    assert "There is no layer called 'no_such_layer' to adapt" in text
    assert "already holds a run" in text
    assert "This cannot start yet" in text


def test_a_preset_saved_from_the_review_holds_what_differs(reviewed):
    reviewed("preset", "quick_test", "mine", "", "start", rank="16")
    assert preset_values("mine") == {"rank": 16}


def test_saving_over_a_preset_asks_first(reviewed):
    reviewed("preset", "mine", "", "start", rank="16")
    walk = reviewed("preset", "Mine", "", "n", "preset", "Mine", "", "y", "start", rank="8")
    assert "There is a preset mine there already. Replace it?" in walk.dialog.face.titles
    assert preset_values("Mine") == {"rank": 8}


def test_a_preset_goes_into_the_project_only_when_asked(reviewed, home):
    reviewed("preset", "mine", "project", "start", rank="16")
    assert (home / "presets" / "mine.toml").is_file()


def test_a_run_file_repeats_the_settings(reviewed, home):
    walk = reviewed("file", "", "start", rank="16", target_modules="q_proj")
    layer = run_file_layer(home / "train.toml", TrainSettings)
    assert resolve(TrainSettings, [layer]).settings == walk.draft.resolve().settings
    assert tomllib.loads((home / "train.toml").read_text())["rank"] == 16
    assert settings_of("train", ["--config", "train.toml"]) == walk.draft.resolve().settings


def test_a_file_that_is_there_is_replaced_only_when_asked(reviewed, home):
    (home / "mine.toml").write_text("x")
    reviewed("file", "mine.toml", "n", "file", "checkpoints", "q.toml", "start")
    assert (home / "mine.toml").read_text() == "x"
    assert (home / "q.toml").is_file()


def test_words_that_mean_nothing_are_answered_with_what_does(reviewed):
    walk = reviewed("launch", "?", "start")
    assert "Answer with start, change, all, preset, file, or the name of a setting; got launch." in " ".join(
        walk.dialog.face.text.split()
    )
    assert "Start runs it." in walk.dialog.face.text


def test_nothing_is_written_by_looking(reviewed, home):
    reviewed("all", "start")
    assert sorted(path.name for path in home.iterdir()) == ["checkpoints", "songs"]
