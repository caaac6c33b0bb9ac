"""The walk asks the right questions in order, keeps every answer, and goes back one at a time."""

import shutil

import pytest

from tests.wizard.conftest import settings_of
from woodshed.settings import schema
from woodshed.settings.declare import declarations
from woodshed.settings.files import save_preset
from woodshed.settings.rules import FAMILY_SETTINGS
from woodshed.settings.schema import TrainSettings
from woodshed.wizard.command_line import command_words
from woodshed.wizard.dialog import BackError, ToMenuError
from woodshed.wizard.walk import LAST

TITLES = {name: said.title for name, said in declarations(TrainSettings).items()}
MODE, PRESET = "How much do you want to decide?", "Begin with a preset?"


def answer_all(values, **fixed):
    """Answer each question by its title, and by Enter where nothing is prepared."""
    prepared = {TITLES.get(name, name): value for name, value in (values | fixed).items()}

    def answer(ask):
        title = ask.title.split(" (")[0]
        return prepared.pop(title, "")

    return answer


def test_enter_alone_goes_through_basic_and_fills_in_what_is_required(walk_with, home):
    walk = walk_with([""] * 40)
    walk.run()
    settings = walk.draft.resolve().settings
    assert (settings.model, str(settings.dataset_dir)) == ("acestep-v15-base", "songs")
    assert settings.output_dir.as_posix() == "output/base-lora-1"
    assert not (home / "output").exists()
    asked = walk.dialog.face.titles
    assert asked[:2] == [MODE, PRESET]
    wanted = [said.title for name, said in declarations(TrainSettings).items() if said.tier == "basic"]
    lokr = {TITLES[name] for name in TITLES if name.startswith("lokr_")}
    for title in wanted:
        is_asked = title in [name.split(" (")[0] for name in asked]
        assert is_asked == (title not in lokr | {"Adapter type"}), title


def test_steps_are_marked_by_their_page(walk_with):
    walk = walk_with([""] * 40)
    marks = [walk.mark(step) for step in walk.steps()]
    count = marks[0].split("/")[1].split("]")[0]
    assert marks[0] == f"[1/{count}] Start"
    assert marks[-1] == f"[{count}/{count}] Review"
    assert sum(mark.endswith("] LoRA") for mark in marks) == 3
    assert not any("LoKr" in mark for mark in marks)


OTHERS = {
    **{"attention_type": "self", "target_modules": "q_proj, up_proj", "targets_from": "-", "top_k": "3"},
    **{"lokr_linear_dim": "8", "lokr_linear_alpha": "4", "lokr_factor": "4", "lokr_decompose_both": "y"},
    **{"lokr_use_tucker": "yes", "lokr_use_scalar": "true", "lokr_weight_decompose": "1", "mode": "corrected"},
    **{"learning_rate": "2e-4", "batch_size": "2", "gradient_accumulation": "3", "epochs": "7"},
    **{"warmup_steps": "5", "seed": "1", "cfg_ratio": "0,2", "save_every": "3", "log_every": "4", "keep_last": "2"},
    **{"device": "cpu", "precision": "fp32", "optimizer_type": "adafactor", "scheduler_type": "linear"},
    **{"gradient_checkpointing": "no", "offload_encoder": "yes", "weight_decay": "0.05", "max_grad_norm": "2"},
    **{"bias": "lora_only", "num_workers": "1", "pin_memory": "no", "prefetch_factor": "3"},
    **{"persistent_workers": "n", "keep_in_memory": "no", "log_dir": "logs", "log_heavy_every": "9"},
    **{"shift": "2,5", "num_inference_steps": "20", "output_dir": "out", "model": "turbo"},
}


def test_an_advanced_lokr_touches_every_setting(walk_with):
    prepared = dict(OTHERS)
    answer = answer_all(prepared, **{MODE: "advanced"})
    walk = walk_with([answer] * 120, adapter="lokr")
    walk.run()
    settings = walk.draft.resolve().settings
    asked = {title.split(" (")[0] for title in walk.dialog.face.titles}
    open_names = {name for names in walk.draft.open_sections().values() for name in names}
    assert {TITLES[name] for name in open_names} <= asked
    assert not {name for name in OTHERS if name not in open_names}
    for name, default in ((name, field.default) for name, field in TrainSettings.model_fields.items()):
        if name in OTHERS and name not in ("targets_from", "mode"):
            assert getattr(settings, name) != default, name
    assert settings.target_modules == ("q_proj", "up_proj")
    assert settings.model == "acestep-v15-turbo"
    assert settings == settings_of("train", command_words(walk.job, walk.draft))


@pytest.mark.parametrize("job", ["train", "preprocess", "estimate", "generate", "export", "inspect"])
def test_every_setting_of_the_schema_is_reached_by_somebody(walk_with, job):
    reached = set()
    for family in FAMILY_SETTINGS if job == "train" else ("lora",):
        walk = walk_with([], job=job)
        walk.draft.is_advanced = True
        if job == "train":
            assert walk.draft.try_answer("adapter_type", family) == []
        reached |= {step.name for step in walk.steps()}
    assert {*walk.job.kind.model_fields} <= reached
    kind = getattr(schema, f"{job.title()}Settings", None)
    assert kind is None or {*kind.model_fields} <= {*walk.job.kind.model_fields}


@pytest.mark.parametrize("word", ["basic", "advanced"])
def test_back_leads_from_every_question_to_the_one_before_with_its_answer_kept(walk_with, word):
    walk = walk_with([])
    steps = [step.name for step in walk.steps()] if word == "basic" else None
    if steps is None:
        walk.draft.is_advanced = True
        steps = [step.name for step in walk.steps()]
        walk.draft.is_advanced = False
    script = []
    for _ in steps[:-1]:
        script += ["", "b", ""]  # each question but the last: forth, back, forth again
    script[0:3] = [word, "b", ""]
    walk.dialog.face.answers = script
    walk.run()
    titles = walk.dialog.face.titles
    for index in range(0, len(titles) - 2, 3):
        assert titles[index] == titles[index + 2], (index, titles[index : index + 3])
    assert walk.draft.is_advanced == (word == "advanced")


def test_back_from_the_first_question_leaves_and_an_answer_given_before_is_what_enter_takes(walk_with):
    walk = walk_with(["", "quick_test", "", "turbo", "b", "b", "b", "b", "b"])
    with pytest.raises(BackError):
        walk.run()
    assert walk.draft.preset == "quick_test"
    again = walk_with([""] * 40, draft=walk.draft)
    again.run()
    settings = again.draft.resolve().settings
    assert (settings.model, settings.rank, settings.epochs) == ("acestep-v15-turbo", 16, 10)
    assert again.dialog.face.asked[0].default == "continue"


@pytest.mark.parametrize("word", ["basic", "advanced"])
def test_r_leads_to_the_review_as_soon_as_nothing_is_missing(walk_with, word):
    reviewed = []
    walk = walk_with([answer_all({"Seed": "7"}, **{MODE: word, TITLES["attention_type"]: "r"})] * 60)
    walk._review = reviewed.append
    walk.run()
    titles = [title.split(" (")[0] for title in walk.dialog.face.titles]
    assert titles[-1] == "Attention type"
    assert reviewed == [walk]
    skippable = [ask.title for ask in walk.dialog.face.asked if ask.can_skip]
    assert not {"Checkpoint directory", "Model", "Dataset directory", "Output directory", MODE} & {*skippable}
    assert all(("r review" in ask.hints) == ask.can_skip for ask in walk.dialog.face.asked)
    assert walk.draft.resolve().settings.seed == 42


def test_r_is_an_answer_like_any_other_while_something_is_missing(walk_with):
    walk = walk_with(["", "", "", "r", ToMenuError()])
    with pytest.raises(ToMenuError):
        walk.run()
    assert "There is no model r" in walk.dialog.face.text


def test_every_question_tells_why(walk_with):
    def ask_why_first(ask):
        seen.append(ask.title)
        return "?" if seen.count(ask.title) == 1 else ("advanced" if ask.title == MODE else "")

    seen: list[str] = []
    walk = walk_with([ask_why_first] * 200)
    walk.run()
    said = " ".join(walk.dialog.face.text.split())
    for name, item in declarations(TrainSettings).items():
        if item.title in {title.split(" (")[0] for title in seen}:
            assert item.why.replace("`", "").replace(" -- ", ": ").split(". ")[0] in said, name


def test_wrong_answers_say_what_is_accepted_and_ask_again(walk_with):
    wrong = {
        "Model": ["no-such-model", "There is no model no-such-model"],
        "Dataset directory": ["nowhere", "There is no folder nowhere"],
        "Attention type": ["both of them", "Answer with one of both, self, cross"],
        "Rank": ["0", "rank must be at least 1; got 0."],
        "Dropout": ["1", "dropout must be less than 1; got 1."],
        "Max epochs": ["many", "epochs must be a whole number; got many."],
        "Learning rate": ["nan", "learning_rate must"],
    }
    pending = {title: given for title, (given, _) in wrong.items()}
    walk = walk_with([lambda ask: pending.pop(ask.title, "")] * 60)
    walk.run()
    assert not pending
    said = " ".join(walk.dialog.face.text.split())
    for title, (_, sentence) in wrong.items():
        assert sentence in said, title
        assert walk.dialog.face.titles.count(title) == 2


def test_required_settings_without_a_suggestion_refuse_enter(walk_with, home):
    shutil.rmtree(home / "songs")
    walk = walk_with(["", "", "", "", "", "", ToMenuError()])
    with pytest.raises(ToMenuError):
        walk.run()
    assert walk.dialog.face.titles[-2:] == ["Dataset directory"] * 2
    assert "Dataset directory has no default" in walk.dialog.face.text


def test_what_moves_with_an_answer_is_said(walk_with):
    walk = walk_with([answer_all({"rank": "16", "optimizer_type": "prodigy"}, **{MODE: "advanced"})] * 100)
    walk.run()
    assert "Alpha is now 32 (goes with 2 x rank)." in walk.dialog.face.text
    assert "Learning rate is now 1 (goes with prodigy)." in walk.dialog.face.text
    assert "Scheduler is now constant (goes with prodigy)." in walk.dialog.face.text


def test_vanilla_mode_closes_the_page_of_condition_dropout(walk_with):
    walk = walk_with([answer_all({"mode": "vanilla"})] * 60)
    walk.run()
    assert "CFG dropout ratio" not in walk.dialog.face.titles


def test_a_preset_of_the_other_adapter_is_not_offered(walk_with):
    save_preset("mine", {"rank": 8})
    save_preset("both", {"epochs": 8})
    offered = {}
    for adapter in ("lora", "lokr"):
        walk = walk_with(["", "", ToMenuError()], adapter=adapter)
        with pytest.raises(ToMenuError):
            walk.run()
        offered[adapter] = {choice.word for choice in walk.dialog.face.asked[1].choices}
    assert offered["lora"] - offered["lokr"] == {"mine"}
    assert offered["lokr"] - offered["lora"] == {"lokr_strong"}
    assert {"both", "recommended", "vram_8gb"} <= offered["lora"] & offered["lokr"]


def test_what_of_a_preset_does_nothing_for_this_adapter_is_said(walk_with):
    walk = walk_with([answer_all({}, **{PRESET: "vram_8gb"})] * 60, adapter="lokr")
    walk.run()
    assert "Rank of this preset has no effect here: the adapter is a LoKr." in walk.dialog.face.text
    assert walk.draft.resolve().settings.optimizer_type == "adamw8bit"


def test_a_preset_stays_chosen_when_the_kind_of_adapter_changes_after_it(walk_with):
    save_preset("mine", {"rank": 8, "epochs": 3})
    script = {"Adapter type": "lokr", PRESET: "mine", MODE: "advanced"}
    walk = walk_with([answer_all({}, **script)] * 6 + [ToMenuError()])
    with pytest.raises(ToMenuError):
        walk.run()
    walk.draft.try_answer("adapter_type", "lokr")
    again = walk_with([answer_all({}, **{MODE: "advanced"})] * 80, draft=walk.draft)
    again.run()
    assert again.draft.preset == "mine"
    assert again.draft.resolve().settings.epochs == 3


def test_a_preset_is_loaded_changed_saved_and_loaded_again(walk_with):
    first = walk_with([answer_all({"epochs": "3"}, **{PRESET: "quick_test"})] * 60)
    first.run()
    from woodshed.settings.files import preset_of

    save_preset("mine", preset_of(first.draft.look()))
    again = walk_with([answer_all({}, **{PRESET: "mine"})] * 60)
    again.run()
    kept = {"rank": 16, "alpha": 32.0, "epochs": 3, "warmup_steps": 10, "save_every": 5, "log_every": 1}
    settings = dict(again.draft.resolve().settings)
    assert {name: settings[name] for name in kept} == kept
    assert "--preset mine" in " ".join(command_words(again.job, again.draft))


def make_tune(home, name="my-tune"):
    shutil.copytree(home / "checkpoints" / "acestep-v15-base", home / "checkpoints" / name)
    config = home / "checkpoints" / name / "config.json"
    config.write_text(config.read_text().replace('"model_version": "base"', '"model_version": "mine"'))


def test_a_fine_tune_of_unknown_base_is_asked_about_and_remembered(walk_with, home):
    make_tune(home)
    walk = walk_with([answer_all({"model": "my-tune", "Base of the fine-tune": "turbo"})] * 60)
    walk.run()
    settings = walk.draft.resolve().settings
    assert (settings.model, settings.shift, settings.num_inference_steps) == ("my-tune", 3.0, 8)
    assert settings == settings_of("train", command_words(walk.job, walk.draft))
    again = walk_with([answer_all({"model": "my-tune"})] * 60)
    again.run()
    (asked,) = [ask for ask in again.dialog.face.asked if ask.title == "Base of the fine-tune"]
    assert asked.default == "turbo"


def test_a_model_that_says_what_it_is_is_not_asked_about(walk_with):
    walk = walk_with([""] * 60)
    walk.run()
    assert "Base of the fine-tune" not in walk.dialog.face.titles


@pytest.mark.parametrize("job", ["train", "preprocess", "estimate", "generate"])
def test_enter_alone_chooses_nothing_but_what_has_no_default(walk_with, home, job):
    (home / "music").mkdir()
    (home / "music" / "a.wav").touch()
    walk = walk_with([answer_all({"Prompt": "a lute", "Audio directory": "music"}, **{MODE: "advanced"})] * 90, job=job)
    walk.run()
    chosen = settings_of(job, command_words(walk.job, walk.draft)).model_fields_set
    required = {name for name, field in walk.job.kind.model_fields.items() if field.is_required()}
    answered = {"train": {"adapter_type"}, "preprocess": {"audio_dir"}}.get(job, set())
    assert chosen == required | answered  # what a song list says would not be heard over more


def test_what_is_typed_is_chosen_even_where_it_is_the_default(walk_with, home):
    (home / "music").mkdir()
    (home / "music" / "a.wav").touch()
    typed = {"Audio directory": "music", "Tag position": "prepend", "Genre ratio": "0"}
    walk = walk_with([answer_all(typed, **{MODE: "advanced"})] * 90, job="preprocess")
    walk.run()
    settings = settings_of("preprocess", command_words(walk.job, walk.draft))
    assert {"tag_position", "genre_ratio"} <= settings.model_fields_set
    assert "custom_tag" not in settings.model_fields_set
    assert walk.draft.resolve().settings.model_fields_set == settings.model_fields_set


def test_an_output_folder_that_holds_a_run_is_continued_only_when_asked(walk_with, home):
    resume = home / "out" / "checkpoint-epoch-1" / "resume"
    resume.mkdir(parents=True)
    (resume / "state.json").write_text("{}")
    question = "out already holds a run. Continue it?"
    walk = walk_with([answer_all({"output_dir": "out", question: "y"})] * 60)
    walk.run()
    assert str(walk.draft.resolve().settings.resume_from) == "latest"
    other = walk_with([answer_all({"output_dir": "out", question: "n"})] * 60)
    other.run()
    assert other.draft.resolve().settings.resume_from is None
    assert "choose another folder" in other.dialog.face.text


@pytest.mark.parametrize("job", ["preprocess", "generate", "estimate"])
def test_other_commands_are_asked_from_their_own_settings(walk_with, home, job):
    (home / "music").mkdir()
    (home / "music" / "a.wav").touch()
    walk = walk_with([answer_all({"Prompt": "a lute", "Audio directory": "music"})] * 60, job=job)
    walk.run()
    settings = walk.draft.resolve().settings
    assert settings == settings_of(job, command_words(walk.job, walk.draft))
    assert walk.steps()[-1].name == LAST


def test_starting_afresh_forgets_the_answers_and_continuing_goes_to_the_last_question(walk_with):
    walk = walk_with(["", "quick_test", "", "turbo", ToMenuError()])
    with pytest.raises(ToMenuError):
        walk.run()
    further = walk_with(["continue", ToMenuError()], draft=walk.draft)
    with pytest.raises(ToMenuError):
        further.run()
    assert further.dialog.face.titles[-1] == "Dataset directory"
    afresh = walk_with(["afresh", *[""] * 60], draft=walk.draft)
    afresh.run()
    assert afresh.draft.preset is None
    assert afresh.draft.resolve().settings.model == "acestep-v15-base"
