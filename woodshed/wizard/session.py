"""The session: a menu that stays open, jobs one after the other, and what makes sense after each."""

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodshed import __version__
from woodshed.console import Terminal
from woodshed.errors import UserError
from woodshed.settings.files import find_presets, preset_values, read_user_settings
from woodshed.wizard import remember
from woodshed.wizard.dialog import BackError, Dialog, ToMenuError
from woodshed.wizard.draft import Draft
from woodshed.wizard.face import Ask, Choice, EndOfInputError, Face
from woodshed.wizard.jobs import Job
from woodshed.wizard.layout import line
from woodshed.wizard.lines import LinesFace
from woodshed.wizard.preset_pages import families_of, presets_page
from woodshed.wizard.review import Review
from woodshed.wizard.settings_pages import first_run, settings_page
from woodshed.wizard.walk import Walk

INTERRUPTED = 130
LEAVE = "leave"


@dataclass(frozen=True)
class Entry:
    """One line of the menu."""

    word: str
    title: str
    note: str
    job: str  # the command it needs, or empty
    fixed: tuple[tuple[str, str], ...] = ()  # what choosing it decides


ENTRIES = (
    Entry("lora", "Train a LoRA", "low-rank matrices: plays in the most tools", "train", (("adapter_type", "lora"),)),
    Entry("lokr", "Train a LoKr", "Kronecker products: small files", "train", (("adapter_type", "lokr"),)),
    Entry("preprocess", "Preprocess songs", "music to tensors, once before training", "preprocess"),
    Entry("estimate", "Find the layers that matter", "which ones respond to your songs", "estimate"),
    Entry("generate", "Listen", "music with or without an adapter", "generate"),
    Entry("adapters", "Adapters", "look into one, or export it", ""),
    Entry("presets", "Presets", "show, import, export, delete", ""),
    Entry("doctor", "Check this machine", "is everything ready, and what mends it", "doctor"),
    Entry("settings", "Settings", "checkpoints, and what is remembered", ""),
    Entry(LEAVE, "Leave", "", ""),
)
MENU_WHY = (
    "Songs are preprocessed once; then a LoRA or LoKr is trained on them, and listened to. Each job returns here, and "
    "Ctrl-C does too."
)
ADAPTER_JOBS = {"inspect": "Look into an adapter", "export": "Export an adapter"}


class Session:
    """One sitting at the wizard.

    Args:
        jobs: what can be started, by command; the menu shows what is there.
        face: asks.
    """

    def __init__(self, jobs: Mapping[str, Job], face: Face) -> None:
        self._jobs = dict(jobs)
        self._dialog = Dialog(face)
        self._drafts: dict[str, Draft] = {}
        self._next = ""  # what Enter takes in the menu
        self._code = 0

    def run(self) -> int:
        """Serve until the user leaves; return the exit code of the last job, 1 when the input ended in the middle."""
        try:
            self._guard(self._welcome)
            while self._guard(self._menu):
                pass
        except EndOfInputError as ended:
            self._dialog.problem(f'The input ended at the question "{ended}". Nothing more was started.')
            return self._code or 1
        return self._code

    def _guard(self, page: Callable[[], bool]) -> bool:
        """Show a page; stepping back from it, q and Ctrl-C lead to the menu."""
        try:
            return page()
        except (BackError, ToMenuError):
            return True
        except KeyboardInterrupt:
            self._dialog.close_page()
            self._dialog.note("Back to the menu; your answers are kept.")
            return True
        except UserError as error:
            self._dialog.problem(*error.problems)
            return True

    def _welcome(self) -> bool:
        self._dialog.show([line(), (("title", f"  Woodshed {__version__}"), ("dim", "  teach a music model a style"))])
        if "checkpoint_dir" not in read_user_settings():
            first_run(self._dialog)
        return True

    def _entries(self) -> list[Entry]:
        """Return the entries that can be served."""
        has_adapters = any(name in self._jobs for name in ADAPTER_JOBS)
        return [
            entry
            for entry in ENTRIES
            if (not entry.job or entry.job in self._jobs) and (entry.word != "adapters" or has_adapters)
        ]

    def _menu(self) -> bool:
        """Ask what to do and do it; return False to leave."""
        entries = self._entries()
        words = [entry.word for entry in entries]
        default = self._next if self._next in words else words[0]
        title = next(entry.title for entry in entries if entry.word == default)
        choices = tuple(Choice(entry.word, entry.title, entry.note) for entry in entries)
        self._dialog.open_page("Woodshed")
        ask = Ask("What next?", (), choices, default, f"takes {title}", ("? why", "q leave"), is_menu=True)
        try:
            word = self._dialog.choose(ask, why=MENU_WHY)
        except KeyboardInterrupt:
            self._code = INTERRUPTED
            return False
        except BackError:
            return True
        except ToMenuError:
            return False
        finally:
            self._dialog.close_page()
        entry = next(entry for entry in entries if entry.word == word)
        self._dialog.face.note_answer(ask.title, entry.title, is_kept=False)
        return self._serve(entry)

    def _serve(self, entry: Entry) -> bool:
        if entry.word == LEAVE:
            return False
        if entry.word == "settings":
            settings_page(self._dialog)
        elif entry.word == "presets":
            name = presets_page(self._dialog)
            if name is not None:
                self._train_with(name)
        elif entry.word == "adapters":
            self._adapters()
        else:
            self.start(entry.word)
        return True

    def _adapters(self) -> None:
        titles = {name: title for name, title in ADAPTER_JOBS.items() if name in self._jobs}
        choices = tuple(Choice(name, title, self._jobs[name].what) for name, title in titles.items())
        ask = Ask("Adapters", choices=choices, default=choices[0].word, enter=f"takes {choices[0].title}", is_menu=True)
        self.start(
            self._dialog.choose(ask, why="Looking tells what is in it and whether it is live; neither changes it.")
        )

    def _train_with(self, preset: str) -> None:
        """Start the training that a preset is for."""
        families = families_of(preset_values(preset), is_built_in=find_presets()[preset] == "built in")
        family = "lora" if "lora" in families else families[0]
        word = "lokr" if family == "lokr" else "lora"
        draft = self.draft(word)
        draft.at = None
        if family != draft.answers["adapter_type"]:
            draft.answers["adapter_type"], draft.is_advanced = family, True  # Advanced asks for the other families
        problems = draft.try_preset(preset)
        if problems:
            self._dialog.problem(*problems)
        else:
            self.start(word)

    def draft(self, word: str) -> Draft:
        """Return the answers for a menu entry, new or from before."""
        if word not in self._drafts:
            entry = next((entry for entry in ENTRIES if entry.word == word), Entry(word, word, "", word))
            self._drafts[word] = Draft(self._jobs[entry.job].kind, dict(entry.fixed))
        return self._drafts[word]

    def start(self, word: str) -> None:
        """Walk through a job's questions, run it, and offer what comes next."""
        job = self._jobs[next((entry.job for entry in ENTRIES if entry.word == word and entry.job), word)]
        draft = self.draft(word)
        Walk(self._dialog, job, draft, Review()).run()
        values = dict(draft.resolve().settings)
        self._code = self._run(job, draft)
        self._after(job, draft, values)

    def _run(self, job: Job, draft: Draft) -> int:
        """Run a job with what was answered, as the command line would; free the memory it took."""
        from woodshed.wizard.command_line import command_words

        self._dialog.close_page()
        self._dialog.open_page(job.name.capitalize())
        try:
            return job.run(command_words(job, draft))
        except UserError as error:
            self._dialog.problem(*error.problems)
            return error.exit_code
        except KeyboardInterrupt:
            self._dialog.note("Interrupted.")
            return INTERRUPTED
        finally:
            self._dialog.close_page()
            self._dialog.face.forget_keys()
            free_memory()

    def _after(self, job: Job, draft: Draft, values: Mapping[str, Any]) -> None:
        """Say how it went, and lead on."""
        if self._code == INTERRUPTED:
            self._go_on_later(draft, values)
        elif self._code:
            self._dialog.problem(f"woodshed {job.name} ended with exit code {self._code}. Your answers are kept.")
        elif job.name == "preprocess":
            draft.at = None
            self._after_preprocessing(values)
        elif job.name == "estimate":
            draft.forget_run()
            self._after_estimate(values)
        elif job.name == "train":
            draft.forget_run()
            self._after_training(values)
        else:
            draft.forget_run()

    def _go_on_later(self, draft: Draft, values: Mapping[str, Any]) -> None:
        """Let the next start of an interrupted training go on where it stopped, if anything was saved."""
        if "resume_from" not in values:
            return
        from woodshed.training.checkpoint import list_checkpoints

        if list_checkpoints(Path(values["output_dir"])):
            draft.answers["resume_from"] = "latest"
            self._dialog.note("The state is saved. Start the training again to go on: Resume from is set to latest.")

    def _after_preprocessing(self, values: Mapping[str, Any]) -> None:
        folder = Path(values["tensor_output"])
        remember.remember_dataset(folder)
        shared = {"dataset_dir": str(folder), "checkpoint_dir": str(values["checkpoint_dir"]), "model": values["model"]}
        self._offer("The songs are ready. What next?", ("estimate", "lora", "lokr"), "lora", shared)

    def _after_estimate(self, values: Mapping[str, Any]) -> None:
        names = ("dataset_dir", "checkpoint_dir", "model")
        shared = {name: str(values[name]) for name in names} | {"targets_from": str(values["output"])}
        self._offer("Train on these layers?", ("lora", "lokr"), "lora", shared)

    def _after_training(self, values: Mapping[str, Any]) -> None:
        adapter = Path(values["output_dir"]) / "final"
        remember.remember_dataset(Path(values["dataset_dir"]))
        remember.remember_adapter(adapter)
        self._next = LEAVE
        shared = {
            "adapter": str(adapter),
            "checkpoint_dir": str(values["checkpoint_dir"]),
            "model": str(values["model"]),
        }
        self._offer("The adapter is ready. Listen to it?", ("generate",), "generate", shared)

    def _offer(self, title: str, words: tuple[str, ...], default: str, shared: Mapping[str, str]) -> None:
        """Offer entries that go on from a job, with what they share with it answered; the menu is always among them."""
        there = {entry.word: entry for entry in self._entries()}
        offered = [there[word] for word in words if word in there]
        if not offered:
            return
        if default not in there:
            default = offered[0].word
        choices = (
            *(Choice(entry.word, entry.title, entry.note) for entry in offered),
            Choice("menu", "Back to the menu"),
        )
        enter = f"takes {there[default].title}"
        ask = Ask(title, choices=choices, default=default, enter=enter, is_menu=True)
        word = self._dialog.choose(ask, why="What this job made is filled in already; everything can be changed.")
        if word == "menu":
            return
        draft = self.draft(word)
        draft.at = None
        draft.answers |= {name: value for name, value in shared.items() if name in draft.kind.model_fields}
        self.start(word)


def free_memory() -> None:
    """Give back what a job held, on the GPU as well."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_face(terminal: Terminal) -> Face:
    """Return the best face for where the program runs."""
    if not terminal.is_live or not sys.stdin.isatty() or terminal.out.is_dumb_terminal:
        return LinesFace(terminal)
    from woodshed.wizard.keys import KeysFace

    return KeysFace(terminal)


def open_wizard(jobs: Mapping[str, Job], terminal: Terminal) -> int:
    """Run the wizard until the user leaves; return the exit code."""
    return Session(jobs, choose_face(terminal)).run()
