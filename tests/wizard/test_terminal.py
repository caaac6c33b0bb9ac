"""The whole wizard in a real terminal with real keys, through a pipe, and with --plain."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("pexpect", reason="there are no pseudo-terminals on Windows")

from tests.wizard.screen import CTRL_C, DOWN, ENTER, ESCAPE, Screen
from tests.wizard.test_walk import make_tune
from woodshed.settings.declare import declarations
from woodshed.settings.files import preset_values, read_user_settings, save_user_settings
from woodshed.settings.schema import TrainSettings
from woodshed.training.checkpoint import list_checkpoints


@pytest.fixture
def open_wizard():
    """Start the program in a terminal; it is ended with the test."""
    opened = []

    def start(*words, **options):
        opened.append(Screen(*words, **options))
        return opened[-1]

    yield start
    for screen in opened:
        screen.child.close(force=True)


@pytest.fixture
def known(home):
    save_user_settings({"checkpoint_dir": str(home / "checkpoints")})
    return home


@pytest.mark.slow
def test_enter_alone_leads_from_nothing_to_a_finished_adapter(open_wizard, home):
    screen = open_wizard()
    screen.wait_for("Where do the checkpoints live?")
    screen.enter_until("The adapter is ready", 240)
    assert (home / "output" / "base-lora-1" / "final" / "adapter_model.safetensors").is_file()
    screen.answer("The adapter is ready", "menu" + ENTER)
    screen.answer("What next?", "q" + ENTER)
    assert screen.finish() == 0
    assert sorted(path.name for path in home.iterdir()) == ["checkpoints", "output", "songs"]


@pytest.mark.slow
@pytest.mark.usefixtures("known")
def test_arrows_filters_back_and_a_preset_work_together(open_wizard):
    screen = open_wizard()
    screen.answer("What next?", DOWN + ENTER)
    screen.answer("How much do you want to decide?")
    screen.answer("Begin with a preset?", "strong" + ENTER)
    screen.answer("Checkpoint directory")
    screen.answer("  Which model variant to train on.", "xl-t" + ENTER)
    screen.answer("Folder with preprocessed .pt files.", ESCAPE)
    screen.wait_for("Enter keeps acestep-v15-xl-turbo (your answer)")
    screen.answer("  Which model variant to train on.", "base" + ENTER)
    screen.enter_until("Kronecker factorization factor")
    assert "Enter keeps 8 (preset lokr_strong)" in screen.text
    screen.press("?")
    screen.wait_for("Leave at auto unless you understand")
    screen.answer("Kronecker factorization factor", "0" + ENTER)
    screen.wait_for("lokr_factor must be -1 (automatic) or at least 1; got 0.")
    screen.answer("Kronecker factorization factor", "4" + ENTER)
    screen.enter_until("Ready?")
    assert "--preset lokr_strong" in screen.unbroken
    assert "--lokr-factor 4" in screen.unbroken
    screen.answer("Ready?", "preset" + ENTER)
    screen.answer("Name of the preset", "mine" + ENTER)
    screen.answer("Where to")
    screen.wait_for("Saved as")
    assert preset_values("mine") == {"adapter_type": "lokr", "lokr_factor": 4}


@pytest.mark.slow
def test_ctrl_c_during_training_saves_and_the_menu_resumes(open_wizard, known):
    screen = open_wizard()
    screen.answer("What next?")
    screen.enter_until("Ready?")
    screen.answer("Ready?", "epochs" + ENTER)
    screen.answer("Full passes through the dataset.", "100000" + ENTER)
    screen.answer("Ready?", "start" + ENTER)
    screen.wait_for("epoch 3", 120)
    screen.press(CTRL_C)
    screen.wait_for("The state is saved. Start the training again", 60)
    assert list_checkpoints(known / "output" / "base-lora-1")
    screen.answer("What next?", "lora" + ENTER)
    screen.answer("How much do you want to decide?")
    screen.wait_for("Ready?")
    assert "--resume-from latest" in screen.unbroken
    screen.press(CTRL_C)
    screen.wait_for("Back to the menu; your answers are kept.")
    screen.wait_for("What next?")
    screen.press(CTRL_C)
    assert screen.finish() == 130


@pytest.mark.usefixtures("known")
def test_a_resized_terminal_is_laid_out_anew(open_wizard):
    screen = open_wizard(columns=100)
    screen.wait_for("What next?")
    screen.resize(60, 30)
    screen.press(DOWN)
    screen.wait_for("Enter takes Train a LoRA")
    screen.answer("What next?", "lora" + ENTER)
    screen.wait_for("How much do you want to decide?")
    assert max(map(len, screen.text.splitlines())) <= 60
    screen.resize(120, 40)
    screen.answer("How much do you want to decide?")
    screen.wait_for("Begin with a preset?")


@pytest.mark.slow
def test_a_fine_tune_of_unknown_base_is_asked_about(open_wizard, known):
    make_tune(known)
    screen = open_wizard()
    screen.answer("What next?")
    screen.answer("How much do you want to decide?")
    screen.answer("Begin with a preset?")
    screen.answer("Checkpoint directory")
    screen.answer("  Which model variant to train on.", "tune" + ENTER)
    screen.answer("Base of the fine-tune", "turbo" + ENTER)
    screen.enter_until("Ready?")
    assert "--shift 3.0" in screen.unbroken
    assert read_user_settings()["bases"] == {"my-tune": "turbo"}


def colours(screen):
    return re.search(rb"\x1b\[(?:\d+;)*[39][0-7](?:;\d+)*m", screen.raw) is not None


@pytest.mark.usefixtures("known")
def test_no_color_is_honoured_and_keys_still_work(open_wizard):
    screen = open_wizard(NO_COLOR="1")
    screen.answer("What next?", DOWN + ENTER)
    screen.wait_for("How much do you want to decide?")
    assert not colours(screen)
    painted = open_wizard()
    painted.wait_for("What next?")
    assert colours(painted)


@pytest.mark.usefixtures("known")
def test_plain_in_a_terminal_draws_nothing_and_asks_line_by_line(open_wizard):
    screen = open_wizard("--plain")
    screen.wait_for("What next?")
    screen.press("2" + ENTER)
    screen.wait_for("How much do you want to decide?")
    screen.press("1" + ENTER)
    screen.wait_for("Begin with a preset?")
    assert b"\x1b" not in screen.raw.replace(b"\x1b[?2004h", b"").replace(b"\x1b[?2004l", b"")  # readline's paste mode
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


@pytest.mark.parametrize("words", [(), ("--plain",)])
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
