"""The questions of a training in a real terminal: each one answered, explained, refused, gone back to."""

import re
import shlex

import pytest

pytest.importorskip("pexpect", reason="there are no pseudo-terminals on Windows")

from tests.wizard.answers import TITLES, other_answer, wrong_answer
from tests.wizard.conftest import settings_of
from tests.wizard.screen import CTRL_C, DOWN, ENTER, ESCAPE
from tests.wizard.test_walk import make_tune
from woodshed.settings.declare import declaration_of
from woodshed.settings.files import preset_values, read_user_settings, run_file_layer
from woodshed.settings.resolve import resolve
from woodshed.settings.schema import TrainSettings
from woodshed.wizard.layout import readable

MODE, PRESET = "How much do you want to decide?", "Begin with a preset?"


def flat(text):
    return " ".join(text.split())


def begin(screen, word="lora", mode="basic", preset=""):
    """Open a training up to its first setting."""
    screen.answer("What next?", word)
    screen.answer(MODE, mode)
    screen.answer(PRESET, preset)


def said_since(screen, start):
    """Return everything the program printed from some point on, as text."""
    from pyte import ByteStream, HistoryScreen

    display = HistoryScreen(screen.display.columns, 200)
    ByteStream(display).feed(screen.raw[start:].replace(b"\x1b[6n", b""))
    return flat(" ".join(display.display))


def ask_why(screen, name):
    """Press `?` and see the reason that the schema gives."""
    start = len(screen.raw)
    screen.type("?")
    screen.wait_for_question()
    why = flat(readable(declaration_of(TrainSettings.model_fields[name]).why))
    assert why in said_since(screen, start), name


def answer_wrongly(screen, name):
    """Type nonsense and see the question come back with a word on what is accepted."""
    typed, title, start = wrong_answer(name), screen.title, len(screen.raw)
    if typed is None:
        return
    screen.type(typed + ENTER)
    screen.wait_for_question(title)
    said = said_since(screen, start)
    assert re.search(rf"(must|one of|yes or no|[Tt]here is no|not).*{re.escape(typed)}", said), (name, said)


def go_back(screen, name, typed):
    """Press `b` and see the answer kept; go forward again."""
    screen.type("b" + ENTER)
    screen.wait_for_question(declaration_of(TrainSettings.model_fields[name]).title)
    kept = re.search(r"Enter keeps (.*) \(your answer\)", flat(screen.question))
    assert kept, screen.question
    assert typed.split()[0].lower() in kept[1].lower(), (name, typed, kept)
    screen.type(ENTER)
    screen.wait_for_question()


def printed_command(screen):
    """Return the words of the command that the review prints, after the command's name."""
    text = screen.unbroken
    line = text[text.rindex("  woodshed train ") :].strip()
    return shlex.split(re.split(r"\s{3,}", line)[0])[2:]


def walk_through(screen, adapter, *, visit):
    """Answer every question up to the review with something other than its default; return what was answered."""
    answered = {}
    while True:
        screen.wait_for_question()
        if screen.title == "Ready?":
            return answered
        name = TITLES[screen.title]
        typed = "corrected" if name == "mode" else other_answer(name, adapter)  # vanilla would close the CFG page
        visit(name, typed)
        answered[name] = typed


@pytest.mark.slow
def test_an_advanced_lokr_touches_every_setting_and_every_question_explains_itself(open_wizard, known):
    screen = open_wizard(rows=60)
    begin(screen, "lokr", "advanced", "lokr_strong")

    def visit(name, typed):
        ask_why(screen, name)
        answer_wrongly(screen, name)
        screen.type(typed + ENTER)

    answered = walk_through(screen, "lokr", visit=visit)
    screen.answer("Ready?", "mode")
    screen.answer("Mode", "vanilla")
    answered["mode"] = "vanilla"
    screen.answer("Ready?", "target projections")
    screen.answer("Target projections", "q_proj, up_proj")
    screen.answer("Ready?", "file")
    screen.answer("File to write", "mine.toml")
    screen.wait_for_question("Ready?")
    settings = settings_of("train", printed_command(screen))
    for name, typed in answered.items():
        assert getattr(settings, name) != TrainSettings.model_fields[name].default, (name, typed)
    families = ("lora", "oft")
    closed = {name for name in TrainSettings.model_fields if name not in answered}
    assert closed == {
        name for name, field in TrainSettings.model_fields.items() if declaration_of(field).section.lower() in families
    }
    assert settings.target_modules == ("q_proj", "up_proj")
    written = resolve(TrainSettings, [run_file_layer(known / "mine.toml", TrainSettings)]).settings
    assert written == settings


@pytest.mark.usefixtures("known")
def test_back_leads_from_every_basic_question_and_menu_to_the_answer_before(open_wizard):
    screen = open_wizard(rows=60)
    screen.answer("What next?", "lora")
    screen.answer(MODE, "advanced")
    screen.answer(PRESET, ESCAPE, end="")
    screen.wait_for_question(MODE)
    assert screen.selected.startswith("2  Advanced")
    screen.type("basic" + ENTER)
    screen.answer(PRESET, DOWN * 2)
    screen.answer("Checkpoint directory", "b")
    screen.wait_for_question(PRESET)
    assert screen.selected.split()[1] == "quick_test"
    screen.type(ENTER)

    def visit(name, typed):
        screen.type(typed + ENTER)
        screen.wait_for_question()
        go_back(screen, name, typed)

    answered = walk_through(screen, "lora", visit=visit)
    assert {"rank", "seed", "resume_from"} <= set(answered)
    screen.answer("Ready?", "b")
    screen.wait_for_question("Resume from")
    screen.type("b" + ENTER)
    screen.wait_for_question()
    assert "(your answer)" in screen.question


@pytest.mark.usefixtures("known")
@pytest.mark.slow
def test_back_leads_from_every_advanced_question_to_the_answer_before(open_wizard):
    screen = open_wizard(rows=60)
    begin(screen, "lora", "advanced")

    def visit(name, typed):
        screen.type(typed + ENTER)
        screen.wait_for_question()
        go_back(screen, name, typed)

    answered = walk_through(screen, "lora", visit=visit)
    settings = settings_of("train", printed_command(screen))
    differing = {name for name in answered if getattr(settings, name) != TrainSettings.model_fields[name].default}
    assert set(answered) - differing == {"mode", "adapter_type"}


@pytest.mark.slow
def test_ctrl_c_on_every_page_of_a_training_returns_to_the_menu_and_continues_at_the_question(open_wizard):
    screen = open_wizard(rows=60)
    screen.wait_for_question("Where do the checkpoints live?")
    screen.type(CTRL_C)
    begin(screen, "lora", "advanced")
    pages = set()
    while True:
        screen.wait_for_question()
        title = screen.title
        if title == "Ready?":
            break
        page = declaration_of(TrainSettings.model_fields[TITLES[title]]).section
        if page not in pages:
            pages.add(page)
            screen.type(CTRL_C)
            screen.wait_for_question("What next?")
            assert "Back to the menu; your answers are kept." in screen.all_text
            screen.type("lora" + ENTER)
            screen.wait_for_question(MODE)
            assert f"Continue at {title}," in flat(screen.question)
            screen.type(ENTER)
            screen.wait_for_question(title)
        screen.type(ENTER)
    assert len(pages) > 10
    screen.type(CTRL_C)
    screen.answer("What next?", CTRL_C, end="")
    assert screen.finish() == 130


@pytest.mark.slow
@pytest.mark.usefixtures("known")
def test_a_preset_is_loaded_changed_saved_and_loaded_again_and_choices_move_each_other(open_wizard):
    screen = open_wizard(rows=70)
    begin(screen, preset="quick")
    screen.enter_until("Ready?")
    screen.answer("Ready?", "rank")
    screen.answer("Rank", "24")
    screen.wait_for("Alpha is now 48 (goes with 2 x rank).")
    screen.answer("Ready?", "epochs")
    screen.answer("Max epochs", "3")
    screen.answer("Ready?", "preset")
    screen.answer("Name of the preset", "mine")
    screen.answer("Where to")
    screen.wait_for_question("Ready?")
    saved = {"rank": 24, "epochs": 3, "warmup_steps": 10, "save_every": 5, "log_every": 1}
    assert preset_values("mine") == saved
    screen.type("optimizer" + ENTER)
    screen.answer("Optimizer", "prodigy")
    screen.wait_for("Learning rate is now 1 (goes with prodigy).")
    screen.wait_for("Scheduler is now constant (goes with prodigy).")
    screen.answer("Ready?", "optimizer")
    screen.answer("Optimizer", "adamw")
    screen.wait_for("Learning rate is 1e-4 again")
    screen.wait_for("Scheduler is cosine again")
    screen.answer("Ready?", CTRL_C, end="")
    screen.answer("What next?", "lora")
    screen.answer(MODE, "afresh")
    screen.answer(MODE)
    screen.answer(PRESET, "mine")
    screen.enter_until("Rank")
    assert "Enter keeps 24 (preset mine)" in screen.question
    screen.answer("Rank")
    screen.wait_for_question("Alpha")
    assert "Enter keeps 48 (2 x rank)" in screen.question


def test_a_fine_tune_of_unknown_base_is_asked_about_and_remembered(open_wizard, known):
    make_tune(known)
    screen = open_wizard()
    begin(screen, mode="advanced")
    screen.answer("Checkpoint directory")
    screen.wait_for_question("Model")
    assert "fine-tune, 2B, of unknown base" in screen.question
    screen.type("tune" + ENTER)
    screen.answer("Base of the fine-tune", "?", end="")
    screen.answer("Base of the fine-tune", "turbo")
    screen.answer("Dataset directory", ESCAPE, end="")
    screen.wait_for_question("Base of the fine-tune")
    assert screen.selected.startswith("3  turbo")
    screen.type("b" + ENTER)
    screen.wait_for_question("Model")
    assert "fine-tune, 2B, of turbo" in screen.question
    assert read_user_settings()["bases"] == {"my-tune": "turbo"}


TOUR = (
    ("presets", "quick"),
    ("presets", "quick", "export"),
    ("presets", "import"),
    ("settings", "checkpoints"),
    ("adapters", "inspect"),
    ("adapters", "export", ""),
    ("preprocess", "advanced", "", "base", "songs"),
    ("estimate", "advanced", "", "base", "songs"),
    ("generate", "advanced", "", "base", "a lute"),
    ("lokr", "basic", "strong"),
)
"""Ways from the menu to the pages beside the training; Ctrl-C at the end of each leads back."""


@pytest.mark.slow
@pytest.mark.usefixtures("known")
def test_every_page_beside_the_training_explains_itself_and_ctrl_c_leads_to_the_menu(open_wizard):
    screen = open_wizard(rows=60)
    for way in TOUR:
        screen.wait_for_question("What next?")
        for typed in way:
            title, start = screen.title, len(screen.raw)
            screen.type("?")
            screen.wait_for_question(title)
            said = said_since(screen, start)
            assert len(said.split(screen.title)[0]) > 10, (way, title, said)  # a sentence, above the question
            screen.type(typed + ENTER)
            screen.wait_for_question()
            assert screen.title != title, (way, title)
        screen.type(CTRL_C)
        screen.wait_for_question("What next?")
    screen.type(CTRL_C)
    assert screen.finish() == 130


@pytest.mark.usefixtures("known")
def test_back_leads_out_of_every_page_of_the_menu(open_wizard):
    screen = open_wizard(rows=60)
    for way in TOUR:
        screen.wait_for_question("What next?")
        titles = []
        for typed in way:
            titles.append(screen.title)
            screen.type(typed + ENTER)
            screen.wait_for_question()
        for title in reversed(titles):
            screen.type(ESCAPE)
            screen.wait_for_question()
            if screen.title == "What next?":
                break
            if way[0] not in ("presets", "adapters"):  # pages that go back to their list, or to the menu at once
                assert screen.title == title, (way, screen.title, title)
        if screen.title != "What next?":
            screen.type("q" + ENTER)
