"""The session stays open: jobs one after the other, what comes next, Ctrl-C anywhere, and an end that says so."""

import gc
import weakref

import pytest

from woodshed.errors import UserError
from woodshed.settings.files import read_user_settings, save_preset
from woodshed.wizard import session as session_module
from woodshed.wizard.session import ENTRIES, free_memory

ALL = ("train", "preprocess", "estimate", "generate", "doctor")


def menus(face):
    return [ask for ask in face.asked if ask.title == "What next?"]


def test_enter_alone_leads_from_a_fresh_folder_to_a_training(session_with, home, ran):
    session, face = session_with([""] * 40)
    assert session.run() == 0
    assert face.titles[0] == "Where do the checkpoints live?"
    (words,) = ran
    assert words[0] == "train"
    assert words[words.index("--output-dir") + 1] == "output/base-lora-1"
    assert read_user_settings()["checkpoint_dir"] == str(home / "checkpoints")


@pytest.mark.usefixtures("known")
def test_the_menu_shows_what_there_is_and_nothing_else(session_with):
    for jobs, words in (
        (("train",), ["lora", "lokr", "presets", "settings", "leave"]),
        (ALL, ["lora", "lokr", "preprocess", "estimate", "generate", "presets", "doctor", "settings", "leave"]),
    ):
        session, face = session_with(["leave"], jobs)
        assert session.run() == 0
        assert [choice.word for choice in menus(face)[0].choices] == words
    assert {entry.word for entry in ENTRIES} == {*words, "adapters"}


@pytest.mark.usefixtures("known")
def test_the_session_stays_open_and_after_a_training_enter_leaves(session_with, ran):
    session, face = session_with(["lora", *[""] * 40], ("train",))
    assert session.run() == 0
    assert [words[0] for words in ran] == ["train"]
    assert menus(face)[-1].default == "leave"


def test_the_answers_of_one_training_are_kept_for_the_next_but_not_its_folder(session_with, known, ran):
    def answer(ask):
        return {"What next?": "lora", "Rank": "8" if len(ran) == 0 else ""}.get(ask.title, "")

    script = [answer] * 60
    session, _ = session_with([*script, "leave"], ("train",))
    ran_twice = []

    def run_and_make(words):
        folder = known / words[words.index("--output-dir") + 1]
        folder.mkdir(parents=True)
        ran_twice.append(words)
        ran.append(words)
        return 0

    session._jobs["train"] = session_module.Job(**{**vars(session._jobs["train"]), "run": run_and_make})
    session.run()
    first, second = ran_twice[:2]
    assert first[first.index("--rank") + 1] == second[second.index("--rank") + 1] == "8"
    assert second[second.index("--output-dir") + 1] == "output/base-lora-2"


def test_after_preprocessing_it_offers_estimate_and_training_on_that_folder(session_with, known, ran, monkeypatch):
    (known / "music").mkdir()
    (known / "music" / "a.wav").touch()
    monkeypatch.setattr("woodshed.wizard.consequences.follow", lambda _: _nothing())
    (known / "tensors").mkdir()
    (known / "tensors" / "a.pt").touch()

    def answer(ask):
        return {"What next?": "preprocess", "The songs are ready. What next?": "estimate"}.get(ask.title, "")

    session, face = session_with([answer] * 75, ALL)
    session.run()
    offer = next(ask for ask in face.asked if ask.title == "The songs are ready. What next?")
    assert [choice.word for choice in offer.choices] == ["estimate", "lora", "lokr", "menu"]
    names = [words[0] for words in ran]
    assert names[:3] == ["preprocess", "estimate", "train"]
    preprocess, estimate, train = ran[:3]
    for words in (estimate, train):
        assert (
            words[words.index("--dataset-dir") + 1] == preprocess[preprocess.index("--tensor-output") + 1] == "tensors"
        )
    assert train[train.index("--targets-from") + 1] == estimate[estimate.index("--output") + 1]
    assert read_user_settings()["last"]["dataset_dir"] == str(known / "tensors")


def _nothing():
    from woodshed.wizard.consequences import Consequences

    return Consequences()


def test_nothing_is_offered_after_preprocessing_that_failed(session_with, known, ran, monkeypatch):
    (known / "music").mkdir()
    (known / "music" / "a.wav").touch()
    monkeypatch.setattr("woodshed.wizard.consequences.follow", lambda _: _nothing())
    ran.code = 1
    session, face = session_with([], ALL)
    face.answers = [lambda ask: "preprocess" if ask.title == "What next?" and not ran else ("q" if ran else "")] * 30
    assert session.run() == 1
    assert "The songs are ready. What next?" not in face.titles
    assert "ended with exit code 1" in face.text


@pytest.mark.usefixtures("known")
def test_after_training_it_offers_to_listen_with_that_adapter(session_with, ran):
    answers = {"The adapter is ready. Listen to it?": "generate", "Prompt": "a lute"}
    session, face = session_with([lambda ask: answers.get(ask.title, "")] * 60, ("train", "generate"))
    face.answers = [lambda ask: "q" if len(ran) == 2 else answers.get(ask.title, "")] * 80
    assert session.run() == 0
    train, generate = ran
    output = train[train.index("--output-dir") + 1]
    assert generate[generate.index("--adapter") + 1] == f"{output}/final"
    assert generate[generate.index("--model") + 1] == train[train.index("--model") + 1]


@pytest.mark.parametrize("at", range(24))
@pytest.mark.usefixtures("known")
def test_ctrl_c_at_any_question_returns_to_the_menu_with_the_answers_kept(session_with, ran, at):
    session, face = session_with([], ("train",))
    face.answers = ["lora", "advanced" if at else KeyboardInterrupt(), *[""] * (at - 1), KeyboardInterrupt(), "leave"]
    if not at:
        face.answers = ["lora", KeyboardInterrupt(), "leave"]
    assert session.run() == 0
    assert ran == []
    assert len(menus(face)) == 2
    assert "Back to the menu; your answers are kept." in face.text
    assert session.draft("lora").is_advanced == bool(at)


@pytest.mark.usefixtures("known")
def test_ctrl_c_in_the_menu_leaves(session_with):
    session, _ = session_with([KeyboardInterrupt()])
    assert session.run() == 130


def test_ctrl_c_in_the_first_run_leads_to_the_menu(session_with):
    session, face = session_with([KeyboardInterrupt(), "leave"])
    assert session.run() == 0
    assert len(menus(face)) == 1


@pytest.mark.parametrize("code", [130, KeyboardInterrupt()])
def test_an_interrupted_training_goes_on_where_it_stopped(session_with, known, ran, code):
    resume = known / "output" / "mine" / "checkpoint-epoch-1" / "resume"

    def interrupted(words):
        ran.append(words)
        resume.mkdir(parents=True)
        (resume / "state.json").write_text("{}")
        if isinstance(code, BaseException):
            raise code
        return code

    session, face = session_with([], ("train",))
    session._jobs["train"] = session_module.Job(**{**vars(session._jobs["train"]), "run": interrupted})
    face.answers = [
        lambda ask: {"What next?": "leave" if ran else "lora", "Output directory": "output/mine"}.get(ask.title, "")
    ] * 60
    assert session.run() == 130
    assert session.draft("lora").answers["resume_from"] == "latest"
    assert session.draft("lora").at == "@review"
    assert "The state is saved." in face.text


@pytest.mark.usefixtures("known")
def test_an_error_of_a_job_is_shown_and_the_menu_returns(session_with, ran):
    ran.code = UserError("The disk is full.", "The moon is full.")
    session, face = session_with([], ("train",))
    face.answers = [lambda ask: "leave" if ran and ask.title == "What next?" else ""] * 60
    assert session.run() == 1
    assert "The disk is full." in face.text
    assert "The moon is full." in face.text


@pytest.mark.usefixtures("known")
def test_the_end_of_input_is_said_with_the_question_it_came_at(session_with, ran):
    session, face = session_with(["lora", "", "", ""])
    assert session.run() == 1
    assert 'The input ended at the question "Model". Nothing more was started.' in face.text
    assert ran == []


@pytest.mark.usefixtures("known")
def test_stepping_back_from_the_first_question_shows_the_menu(session_with):
    session, face = session_with(["lora", "b", "lokr", "q", "leave"])
    assert session.run() == 0
    assert len(menus(face)) == 3


@pytest.mark.usefixtures("known")
def test_a_preset_from_the_presets_page_is_trained_with(session_with, ran):
    session, face = session_with([], ("train",))
    answers = {"Presets": "lokr_strong", "lokr_strong": "train"}
    face.answers = [lambda ask: {"What next?": "leave" if ran else "presets", **answers}.get(ask.title, "")] * 60
    assert session.run() == 0
    (words,) = ran
    assert words[1:3] == ["--preset", "lokr_strong"]
    assert words[words.index("--adapter-type") + 1] == "lokr"


@pytest.mark.parametrize("family", ["dora", "loha", "oft", "lokr", "lora"])
@pytest.mark.usefixtures("known")
def test_a_preset_of_any_family_can_be_trained_with(session_with, ran, family):
    save_preset("mine", {"adapter_type": family, "epochs": 7})
    session, face = session_with([], ("train",))
    answers = {"Presets": "mine", "mine": "train"}
    face.answers = [lambda ask: {"What next?": "leave" if ran else "presets", **answers}.get(ask.title, "")] * 80
    assert session.run() == 0
    (words,) = ran
    assert words[:3] == ["train", "--preset", "mine"]
    assert words[words.index("--adapter-type") + 1] == family


def test_memory_of_a_job_is_given_back_even_what_refers_to_itself():
    class Model:
        pass

    gc.disable()
    try:
        model = Model()
        model.itself = model
        ghost = weakref.ref(model)
        del model
        assert ghost() is not None
        free_memory()
        assert ghost() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("known")
def test_memory_is_freed_after_every_job(session_with, ran, monkeypatch):
    freed = []
    monkeypatch.setattr(session_module, "free_memory", lambda: freed.append(len(ran)))
    session, face = session_with([], ("train",))
    face.answers = [lambda ask: "leave" if ran and ask.title == "What next?" else ""] * 60
    session.run()
    assert freed == [1]


@pytest.mark.usefixtures("known")
def test_an_adapter_is_looked_into_by_its_path(session_with, ran):
    session, face = session_with([], ("train", "inspect"))
    face.answers = [
        lambda ask: {"What next?": "leave" if ran else "adapters", "Path": "my adapters/final"}.get(ask.title, "")
    ] * 20
    assert session.run() == 0
    (words,) = ran
    assert words[:2] == ["inspect", "my adapters/final"]


@pytest.mark.usefixtures("known")
def test_keys_pressed_during_a_job_are_dropped_before_the_next_question(session_with, ran):
    session, face = session_with([], ("train",))
    face.answers = [lambda ask: "leave" if ran and ask.title == "What next?" else ""] * 60
    session.run()
    assert face.titles[face.forgotten - 1] == "Ready?"
    assert face.titles[face.forgotten] == "What next?"


@pytest.mark.usefixtures("known")
def test_the_doctor_is_asked_from_the_menu_with_nothing_that_must_be_answered(session_with, ran):
    session, face = session_with(["doctor", *[""] * 6, "leave"], ("train", "doctor"))
    assert session.run() == 0
    assert [words[0] for words in ran] == ["doctor"]
    assert "Begin with a preset?" not in face.titles
