"""The first run, and the page that shows and edits what is remembered for the user."""

import os
from pathlib import Path

from woodshed.errors import CheckpointError
from woodshed.settings.files import config_dir, read_user_settings, save_user_settings
from woodshed.wizard import models, remember
from woodshed.wizard.dialog import Dialog, RefusedError
from woodshed.wizard.face import Ask, Choice
from woodshed.wizard.layout import columns, line, paragraph
from woodshed.wizard.questions import read_path

WHERE = "Where do the checkpoints live?"
WHY = (
    "It is the folder that holds acestep-v15-base, acestep-v15-turbo and the like, with vae and Qwen3-Embedding-0.6B "
    "beside them. Every command looks there unless told otherwise."
)


def first_run(dialog: Dialog) -> None:
    """Ask for what every job needs, once, and remember it."""
    dialog.open_page("First run")
    ask_checkpoint_dir(dialog, os.environ.get("ACESTEP_CHECKPOINTS_DIR") or "checkpoints")


def ask_checkpoint_dir(dialog: Dialog, default: str) -> None:
    """Ask where the models lie, list what is found there, and remember the folder.

    Raises:
        BackError, ToMenuError: when the user wants to do that later.
    """

    def read(typed: str) -> Path:
        folder = read_path(typed or default)
        dialog.announce_loading()
        try:
            models.model_choices(folder)
        except CheckpointError as error:
            raise RefusedError(*error.problems) from None
        return folder

    said = "The folder with the ACE-Step 1.5 models. It is remembered for every later command."
    ask = Ask(
        WHERE,
        tuple(paragraph(said, dialog.face.width)),
        default=default,
        enter=f"takes {default}",
        hints=("? why", "q later"),
        is_path=True,
    )
    folder = dialog.ask(ask, read, why=WHY)
    dialog.face.note_answer("Checkpoints", str(folder), is_kept=str(folder) == default)
    dialog.show([line(), *models.found_lines(folder, dialog.face.width)])
    path = save_user_settings({"checkpoint_dir": str(folder.absolute())})
    dialog.say(f"Remembered in {path}")


def settings_page(dialog: Dialog) -> None:
    """Show what is remembered, and change it.

    Raises:
        BackError, ToMenuError: to the menu.
    """
    while True:
        dialog.open_page("Settings")
        values = read_user_settings()
        bases = {name: base for name, base in values.get("bases", {}).items() if remember.known_base(name)}
        last = remember.last_dataset()
        folder = values.get("checkpoint_dir")
        rows = [
            ("Checkpoints", str(folder or "not chosen yet"), ""),
            ("Last dataset", str(last or "none"), ""),
            ("Remembered in", str(config_dir() / "settings.toml"), ""),
        ]
        rows += [(name, f"descends from {base}", "") for name, base in bases.items()]
        dialog.show([line(), *columns(rows, dialog.face.width)])
        choices = [Choice("checkpoints", "Change where the checkpoints live")]
        choices += [Choice(f"base of {name}", f"Base of {name}", f"now {base}") for name, base in bases.items()]
        choices.append(Choice("menu", "Back to the menu"))
        ask = Ask("Change what?", choices=tuple(choices), default="menu", enter="goes back", is_menu=True)
        word = dialog.choose(ask, why="Every command looks here for what it is not told.")
        if word == "menu":
            return
        if word == "checkpoints":
            ask_checkpoint_dir(dialog, str(folder or "checkpoints"))
            continue
        name = word.removeprefix("base of ")
        ask = models.base_question(name, bases[name], dialog.face.width)
        remember.remember_base(name, dialog.choose(ask, why=models.BASE_WHY))
