"""The whole wizard in a real terminal with real keys, through a pipe, and with --plain."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("pexpect", reason="there are no pseudo-terminals on Windows")

from tests.wizard.screen import CLOSES, CTRL_C, DOWN, ENTER, ESCAPE, OPENS, UP
from woodshed.settings.declare import declarations
from woodshed.settings.schema import TrainSettings
from woodshed.training.checkpoint import list_checkpoints


@pytest.mark.slow
def test_enter_alone_leads_from_nothing_to_a_finished_adapter(open_wizard, home):
    screen = open_wizard()
    screen.wait_for_question("Where do the checkpoints live?")
    screen.enter_until("Ready?")
    screen.answer("Ready?")
    screen.wait_for("epoch ")
    screen.press(ENTER * 3)  # while nobody is asked: it must not answer what comes
    screen.answer("The adapter is ready. Listen to it?", "menu")
    assert (home / "output" / "base-lora-1" / "final" / "adapter_model.safetensors").is_file()
    screen.answer("What next?", "q")
    assert screen.finish() == 0
    assert sorted(path.name for path in home.iterdir()) == ["checkpoints", "output", "songs"]


def test_a_dozen_enters_lead_from_a_fresh_folder_to_a_running_training(open_wizard, home):
    screen = open_wizard()
    enters = screen.enter_until("Begin with a preset?")
    screen.type("quick" + ENTER)
    enters += screen.enter_until("Attention type")
    screen.type("r" + ENTER)
    screen.answer("Ready?")
    screen.wait_for("epoch ")
    assert enters + 3 <= 12
    screen.answer("The adapter is ready. Listen to it?", "q")
    assert (home / "output" / "base-lora-1" / "final").is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("known")
def test_arrows_filters_back_and_a_preset_work_together(open_wizard):
    screen = open_wizard()
    screen.answer("What next?", DOWN)
    screen.answer("How much do you want to decide?")
    screen.answer("Begin with a preset?", "strong")
    screen.answer("Checkpoint directory")
    screen.answer("Model", "xl-t")
    screen.answer("Dataset directory", ESCAPE, end="")
    screen.wait_for_question("Model")
    assert "Enter keeps acestep-v15-xl-turbo (your answer)" in screen.question
    screen.type("base" + UP + DOWN + ENTER)
    screen.enter_until("Factor")
    assert "Enter keeps 8 (preset lokr_strong)" in screen.question
    screen.type("0" + ENTER)
    screen.wait_for_question("Factor")
    assert "lokr_factor must be -1 (automatic) or at least 1; got 0." in screen.all_text
    screen.type("4" + ENTER)
    screen.enter_until("Ready?")
    assert "--preset lokr_strong" in screen.unbroken
    assert "--lokr-factor 4" in screen.unbroken
    assert "--model acestep-v15-base" in screen.unbroken


def test_ctrl_c_during_training_saves_and_the_menu_resumes(open_wizard, known):
    screen = open_wizard()
    screen.answer("What next?")
    screen.enter_until("Ready?")
    screen.answer("Ready?", "epochs")
    screen.answer("Max epochs", "100000")
    screen.answer("Ready?", "start")
    screen.wait_for("epoch 3")
    screen.press(ENTER + "xyzzy" + ENTER + "q" + ENTER)  # while nobody is asked
    screen.wait_for("epoch 9")
    screen.press(CTRL_C)
    screen.wait_for_question("What next?")
    assert "The state is saved. Start the training again" in screen.all_text
    assert b"xyzzy" not in screen.raw
    assert list_checkpoints(known / "output" / "base-lora-1")
    screen.answer("What next?", "lora")
    screen.answer("How much do you want to decide?")
    screen.wait_for_question("Ready?")
    assert "--resume-from latest" in screen.unbroken
    screen.type(CTRL_C)
    screen.wait_for_question("What next?")
    screen.type(CTRL_C)
    assert screen.finish() == 130


@pytest.mark.usefixtures("known")
def test_a_resized_terminal_is_laid_out_anew(open_wizard):
    screen = open_wizard(columns=100, rows=50)
    screen.answer("What next?", "lora")
    screen.answer("How much do you want to decide?", "advanced")
    screen.answer("Begin with a preset?", "quick_test")
    for columns in (60, 140, 80):
        screen.wait_for_question()
        screen.resize(columns, 30)
        screen.type("?")  # while it is drawn anew
        screen.wait_for_question()
        assert max(map(len, screen.question.splitlines())) < columns
        for _ in range(6):
            screen.type(ENTER)
            screen.wait_for_question()
            header = [row for row in screen.text.splitlines() if row.endswith("\u2500")][-1:]
            assert all(len(row) <= min(columns, 100) for row in header)
            assert max(map(len, screen.text.splitlines()[-8:])) <= columns


@pytest.mark.parametrize("columns", [60, *(pytest.param(columns, marks=pytest.mark.slow) for columns in (80, 140))])
@pytest.mark.usefixtures("known")
def test_every_question_fits_the_terminal(open_wizard, columns):
    screen = open_wizard(columns=columns, rows=24)
    screen.answer("What next?", "lokr")
    screen.answer("How much do you want to decide?", "advanced")
    while True:
        screen.wait_for_question()
        if screen.title == "Ready?":
            break
        assert screen.title, screen.text
        assert "? why" in screen.question
        assert max(map(len, screen.text.splitlines())) <= columns
        screen.type("?")
        screen.wait_for_question()
        screen.type(ENTER)


@pytest.mark.usefixtures("known")
def test_a_list_that_is_higher_than_the_terminal_scrolls_with_the_choice(open_wizard):
    screen = open_wizard(columns=60, rows=14)
    screen.wait_for_question("What next?")
    assert screen.selected.startswith("1  Train a LoRA")
    assert "q leave" in screen.question
    screen.press(UP)
    screen.wait_until(lambda: "Leave" in screen.selected, "the last choice")
    assert screen.question.startswith("What next?")
    screen.type(ENTER)
    assert screen.finish() == 0


def colours(screen):
    return re.search(rb"\x1b\[(?:\d+;)*[39][0-7](?:;\d+)*m", screen.raw) is not None


@pytest.mark.usefixtures("known")
def test_no_color_is_honoured_and_keys_still_work(open_wizard):
    screen = open_wizard(NO_COLOR="1")
    screen.answer("What next?", DOWN)
    screen.answer("How much do you want to decide?", CTRL_C, end="")
    screen.wait_for_question("What next?")
    assert not colours(screen)
    painted = open_wizard()
    painted.wait_for_question("What next?")
    assert colours(painted)


@pytest.mark.usefixtures("known")
def test_plain_in_a_terminal_draws_nothing_and_asks_line_by_line(open_wizard):
    screen = open_wizard("--plain")
    screen.wait_for("Enter takes Train a LoRA")
    screen.press("2" + ENTER)
    screen.wait_for("How much do you want to decide?")
    screen.press("1" + ENTER)
    screen.wait_for("Begin with a preset?")
    assert b"\x1b" not in screen.raw.replace(OPENS, b"").replace(CLOSES, b"")  # readline's paste mode
    assert screen.text.isascii()
    screen.press(CTRL_C)
    screen.wait_for("Back to the menu")


def piped(answers, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-m", "woodshed", *words],
        input="\n".join(answers) + "\n",
        capture_output=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("words", [(), pytest.param(("--plain",), marks=pytest.mark.slow)])
def test_answers_from_a_pipe_lead_to_an_adapter(home, words):
    said = declarations(TrainSettings)
    asked = [name for name, item in said.items() if item.tier == "basic" and not name.startswith("lokr_")]
    enters = [""] * (len(asked) - 1)  # the menu has answered the adapter type
    start = ["checkpoints", "lora", "basic", "quick_test"]
    done = piped([*start, *enters, "epochs", "2", "start", "menu", "leave"], *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert (home / "output" / "base-lora-1" / "final" / "adapter_model.safetensors").is_file()
    assert "\x1b" not in done.stdout


@pytest.mark.usefixtures("known")
def test_a_pipe_that_runs_dry_says_where():
    done = piped(["lora", "basic"])
    assert done.returncode == 1
    assert 'The input ended at the question "Begin with a preset?". Nothing more was started.' in " ".join(
        (done.stdout + done.stderr).split()
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_the_wizard_is_answered_in_an_old_code_page(home, encoding):
    answers = ["checkpoints", "lora", "basic", "", "", "", "", "out-\u00fc", "b", "", "q", "leave"]
    done = subprocess.run(
        [sys.executable, "-m", "woodshed"],
        input="\n".join(answers).encode("utf-8" if encoding == "ascii" else encoding),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        cwd=home,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Attention type" in done.stdout
    kept = {"cp1252": "out-\u00fc".encode("cp1252"), "ascii": b"out-\\udcc3\\udcbc"}[encoding]
    assert b"Enter keeps " + kept in done.stdout
    assert (b"\\u" in done.stdout) == (encoding == "ascii")


@pytest.mark.usefixtures("known")
def test_a_terminal_with_an_old_code_page_is_drawn_with_the_letters_it_has(open_wizard):
    screen = open_wizard(PYTHONIOENCODING="cp1252")
    screen.answer("What next?", DOWN)
    screen.answer("How much do you want to decide?", "q")
    screen.answer("What next?", "leave")
    assert screen.finish() == 0
    assert screen.raw.isascii()
