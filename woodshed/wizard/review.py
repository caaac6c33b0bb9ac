"""The last page before a run: what was chosen, what follows from it, the command that repeats it, and the way out."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from woodshed.errors import SettingsError
from woodshed.settings.declare import Settings, declarations
from woodshed.settings.files import built_in_presets, preset_of, run_file_text
from woodshed.settings.resolve import Resolved
from woodshed.settings.schema import TrainSettings
from woodshed.storage import write_text
from woodshed.wizard.command_line import command_text
from woodshed.wizard.dialog import BackError, RefusedError, match_choice
from woodshed.wizard.draft import Draft
from woodshed.wizard.face import Ask, Choice, Glyphs, Line
from woodshed.wizard.jobs import Job
from woodshed.wizard.layout import columns, line, paragraph, readable
from woodshed.wizard.preset_pages import REPLACE_WHY, save_page
from woodshed.wizard.questions import read_path, shown
from woodshed.wizard.walk import Walk

if TYPE_CHECKING:
    from woodshed.wizard.consequences import Consequences

START, CHANGE, ALL, PRESET, FILE = "start", "change", "all", "preset", "file"


class Review:
    """Shows the review and serves it until the job shall start."""

    def __init__(self) -> None:
        self._seen: tuple[Settings, Consequences] | None = None

    def __call__(self, walk: Walk) -> None:
        """Return when the user starts the job.

        Raises:
            BackError: to the question before.
        """
        is_due = True
        while True:
            if is_due:
                self._show(walk)
            is_due = True
            word = walk.dialog.ask(_question(walk.job), lambda typed: _read(walk, typed), why=WHY)
            if word == START:
                problems = self._problems(walk)
                if not problems:
                    return
                walk.dialog.problem("This cannot start yet:", *problems)
                is_due = False
            elif word == ALL:
                walk.dialog.show(all_lines(walk.draft, walk.dialog.face.width))
                is_due = False
            else:
                is_due = _serve(walk, word)

    def _problems(self, walk: Walk) -> tuple[str, ...]:
        try:
            return self._follow(walk.draft.resolve().settings).problems
        except SettingsError as error:
            return error.problems

    def _follow(self, settings: Settings) -> "Consequences":
        """Work out what follows, once for each set of settings."""
        if self._seen is None or self._seen[0] != settings:
            from woodshed.wizard.consequences import follow  # loads torch, which the first pages do without

            self._seen = (settings, follow(settings))
        return self._seen[1]

    def _show(self, walk: Walk) -> None:
        width = walk.dialog.face.width
        walk.dialog.show(changed_lines(walk.draft, width, walk.dialog.face.glyphs))
        try:
            resolved = walk.draft.resolve()
        except SettingsError as error:
            walk.dialog.problem(*error.problems)
            return
        walk.dialog.announce_loading()
        found = self._follow(resolved.settings)
        if found.rows:
            walk.dialog.show([line(), line("  What follows", "title"), *columns(found.rows, width)])
            walk.dialog.show(paragraph(found.basis, width, "dim"))
        notes = dict.fromkeys((*walk.draft.remarks(), *_idle_choices(resolved, walk.draft), *found.notes))
        if notes:
            walk.dialog.show([line(), line("  Good to know", "title")])
            for note in notes:
                walk.dialog.show(paragraph(f"- {readable(note)}", width, "note", hanging="  "))
        if found.problems:
            walk.dialog.show([line(), line("  This cannot start yet", "title")])
            walk.dialog.problem(*found.problems)
        walk.dialog.show([line(), line("  The command that does the same", "title")])
        walk.dialog.show([line(f"  {command_text(walk.job, walk.draft)}", "dim")])


WHY = (
    "Start runs it. Any setting can be changed by its name, also one that was not asked. A preset keeps what differs "
    "from the defaults for other runs; a run file keeps everything, to repeat this one."
)


def _question(job: Job) -> Ask:
    choices = [
        Choice(START, "Start"),
        Choice(CHANGE, "Change a setting", "or type its name"),
        Choice(ALL, "Show all settings", "with the origin of each"),
    ]
    if job.has_presets:
        choices.append(Choice(PRESET, "Save as preset"))
    if not job.positionals:
        choices.append(Choice(FILE, "Save as run file", f"for woodshed {job.name} --config"))
    return Ask("Ready?", choices=tuple(choices), default=START, enter="starts", is_open=True, is_menu=True)


def _read(walk: Walk, typed: str) -> str:
    """Return an action or the name of a setting."""
    if not typed:
        return START
    actions = _question(walk.job).choices
    word = typed.lstrip("-").replace("-", "_").replace(" ", "_").lower()
    titles = {said.title.lower().replace(" ", "_"): name for name, said in declarations(walk.job.kind).items()}
    if word in walk.job.kind.model_fields or word in titles:
        return titles.get(word, word) if word not in walk.job.kind.model_fields else word
    try:
        return match_choice(actions, typed)
    except RefusedError:
        raise RefusedError(
            f"Answer with {', '.join(choice.word for choice in actions)}, or the name of a setting; got {typed}."
        ) from None


def _serve(walk: Walk, word: str) -> bool:
    """Do what was chosen; return whether the review has to be shown again."""
    try:
        if word == CHANGE:
            return _change(walk)
        if word == PRESET:
            return _save_preset(walk)
        if word == FILE:
            _save_run_file(walk)
            return False
        walk.ask_setting(word)
    except BackError:
        return True
    except SettingsError as error:
        walk.dialog.problem(*error.problems)
        return False
    return True


def _change(walk: Walk) -> bool:
    now = walk.draft.look()
    said = declarations(walk.job.kind)
    choices = [
        Choice(name, said[name].title, f"{shown(getattr(now.settings, name))} ({now.origins[name]})")
        for names in walk.draft.open_sections().values()
        for name in names
    ]
    ask = Ask("Which setting?", choices=tuple(choices), is_menu=True)
    walk.ask_setting(walk.dialog.choose(ask, why="Type a part of a name to find it. What moves with it is said."))
    return True


def _save_preset(walk: Walk) -> bool:
    values = preset_of(cast(Resolved[TrainSettings], walk.draft.look()))
    suggestion = walk.draft.preset if walk.draft.preset and walk.draft.preset not in built_in_presets() else ""
    save_page(walk.dialog, values, suggestion)
    return False


def _save_run_file(walk: Walk) -> None:
    default = f"{walk.job.name}.toml"

    def read(typed: str) -> Path:
        path = read_path(typed or default)
        if path.is_dir():
            raise RefusedError(f"{path} is a folder. Type the name of a file.")
        return path

    resolved = walk.draft.resolve()
    ask = Ask("File to write", default=default, enter=f"takes {default}", is_path=True)
    path = walk.dialog.ask(ask, read, why=f"It holds every setting; woodshed {walk.job.name} --config reads it.")
    if path.exists() and not walk.dialog.confirm(f"{path} exists. Replace it?", default=False, why=REPLACE_WHY):
        return
    try:
        write_text(path, run_file_text(resolved))
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}.") from error
    walk.dialog.say(f"Wrote {path}. It repeats the run: woodshed {walk.job.name} --config {path}")


def changed_lines(draft: Draft, width: int, glyphs: Glyphs) -> list[Line]:
    """Return every setting that differs from its default, the default first, and those that have none."""
    now = draft.look()
    said = declarations(draft.kind)
    rows = []
    for names in draft.open_sections().values():
        for name in names:
            value, field = getattr(now.settings, name), draft.kind.model_fields[name]
            if draft.is_missing(name):
                rows.append((said[name].title, "not chosen yet", ""))
            elif field.is_required() or said[name].section == "Required":
                rows.append((said[name].title, shown(value), now.origins[name]))
            elif value != field.default:
                change = f"{shown(field.default)} {glyphs.arrow} {shown(value)}"
                rows.append((said[name].title, change, now.origins[name]))
    title = "What you chose" if rows else "Everything is at its default"
    return [line(), line(f"  {title}", "title"), *columns(rows, width)]


def all_lines(draft: Draft, width: int) -> list[Line]:
    """Return every setting that could matter by section, with its value and origin."""
    now = draft.look()
    lines: list[Line] = []
    for section, names in draft.open_sections().items():
        rows = [
            (declarations(draft.kind)[name].title, shown(getattr(now.settings, name)), now.origins[name])
            for name in names
        ]
        lines += [line(), line(f"  {section}", "title"), *columns(rows, width)]
    return lines


def _idle_choices(resolved: Resolved[Settings], draft: Draft) -> list[str]:
    """Return a sentence for each chosen value that does nothing."""
    idle = draft.idle()
    asked = {name for names in draft.open_sections().values() for name in names}
    return [
        f"{declarations(draft.kind)[name].title} has no effect here: {readable(reason)}."
        for name, reason in idle.items()
        if name in asked and getattr(resolved.settings, name) != draft.kind.model_fields[name].default
    ]
