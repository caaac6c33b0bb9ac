"""A home with toy checkpoints and a dataset, and a face that answers from a script."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from woodshed import cli
from woodshed.settings import schema
from woodshed.settings.declare import Settings
from woodshed.settings.files import save_user_settings
from woodshed.settings.schema import PreprocessSettings, TrainSettings
from woodshed.wizard.dialog import Dialog
from woodshed.wizard.draft import Draft
from woodshed.wizard.face import ASCII, Ask, EndOfInputError
from woodshed.wizard.jobs import Job, job_of
from woodshed.wizard.session import Session
from woodshed.wizard.walk import Walk

Answer = str | BaseException | Callable[[Ask], str]


class ScriptedFace:
    """Answers from a script, and remembers everything that was asked and shown."""

    width = 80
    glyphs = ASCII

    def __init__(self, answers: Iterable[Answer] = ()) -> None:
        self.answers = list(answers)
        self.asked: list[Ask] = []
        self.said: list[str] = []
        self.forgotten = 0  # how many questions were asked when typed keys were dropped

    def ask(self, ask: Ask) -> str:
        self.asked.append(ask)
        if not self.answers:
            raise EndOfInputError(ask.title)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, str) else answer(ask)

    def show(self, lines) -> None:
        self.said += ["".join(text for _, text in pieces) for pieces in lines]

    def forget_keys(self) -> None:
        self.forgotten = len(self.asked)

    def note_answer(self, title: str, value: str, *, is_kept: bool) -> None:
        self.said.append(f"  {title}: {value}{' (kept)' if is_kept else ''}")

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    @property
    def titles(self) -> list[str]:
        return [ask.title for ask in self.asked]


def write_song(folder: Path, name: str = "a", *, frames: int = 20, channels: int = 16, width: int = 32) -> None:
    """Write one sample file as other trainers do."""
    generator = torch.Generator().manual_seed(0)
    content = {
        "target_latents": torch.randn(frames, channels, generator=generator),
        "attention_mask": torch.ones(frames),
        "encoder_hidden_states": torch.randn(6, width, generator=generator),
        "encoder_attention_mask": torch.ones(6, dtype=torch.bool),
        "context_latents": torch.ones(frames, 2 * channels),
        "metadata": {"filename": f"{name}.wav", "caption": "a test"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / f"{name}.pt")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, checkpoint_root):
    """A working folder with `checkpoints` and the dataset `songs`, and no user settings."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copytree(checkpoint_root, folder / "checkpoints")
    write_song(folder / "songs")
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("ACESTEP_CHECKPOINTS_DIR", raising=False)
    monkeypatch.chdir(folder)
    return folder


class Ran(list):
    """The words of every job that was run."""

    code = 0


@pytest.fixture
def ran() -> Ran:
    return Ran()


@pytest.fixture
def job_for(ran):
    """Make the job of a command, which notes its words instead of running."""

    def build(name: str) -> Job:
        def run(words):
            ran.append([name, *words])
            if isinstance(ran.code, BaseException):
                raise ran.code
            return ran.code

        parser = cli.build_parser(cli.COMMANDS[name], show_all=True)
        return job_of(name, cli.COMMANDS[name].what, getattr(schema, f"{name.title()}Settings", None), parser, run)

    return build


def settings_of(name: str, words: list[str]) -> Settings:
    """Return the settings that a command line gives, as the command itself would resolve them."""
    from woodshed.commands.command import layers
    from woodshed.settings.resolve import resolve

    kind = getattr(schema, f"{name.title()}Settings")
    known, unknown = cli.build_parser(cli.COMMANDS[name], show_all=True).parse_known_args(words)
    assert unknown == []
    return resolve(kind, layers(known, kind)).settings


@pytest.fixture
def walk_with(job_for):
    """Prepare a walk through training (or another job) that ends at its review; `.run()` walks it."""

    def build(answers, *, job="train", adapter="lora", draft=None, review=lambda _: None):
        found = job_for(job)
        face = ScriptedFace(answers)
        fixed = {"adapter_type": adapter} if job == "train" else {}
        return Walk(Dialog(face), found, draft or Draft(found.kind, fixed), review)

    return build


@pytest.fixture
def session_with(job_for):
    """Prepare a session of these jobs that answers from a script."""

    def build(answers, jobs=("train", "preprocess")):
        face = ScriptedFace(answers)
        return Session({name: job_for(name) for name in jobs}, face), face

    return build


@pytest.fixture
def draft():
    """A draft of a LoRA training."""
    return Draft(TrainSettings, {"adapter_type": "lora"})


@pytest.fixture
def song_draft():
    """A draft of preprocessing."""
    return Draft(PreprocessSettings)


@pytest.fixture
def known(home):
    """A user whose first run is over."""
    save_user_settings({"checkpoint_dir": str(home / "checkpoints")})
    return home


@pytest.fixture
def open_wizard():
    """Start the program in a real terminal; it is ended with the test."""
    from tests.wizard.screen import Screen

    opened = []

    def start(*words, **options):
        opened.append(Screen(*words, **options))
        return opened[-1]

    yield start
    for screen in opened:
        screen.child.close(force=True)
