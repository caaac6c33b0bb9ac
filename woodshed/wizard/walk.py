"""The walk through a job's questions: their order, basic and advanced, one step back at a time, answers kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from woodshed.errors import CheckpointError, SettingsError
from woodshed.settings.declare import Settings, declaration_of, declarations
from woodshed.settings.files import preset_values
from woodshed.settings.resolve import Resolved
from woodshed.settings.rules import FAMILY_SETTINGS, FOLLOWED
from woodshed.wizard import checks, models, remember
from woodshed.wizard.dialog import BackError, Dialog, RefusedError, ToReviewError, match_choice
from woodshed.wizard.draft import ANSWER, Draft
from woodshed.wizard.face import Ask, Choice
from woodshed.wizard.jobs import Job
from woodshed.wizard.layout import paragraph, readable
from woodshed.wizard.preset_pages import offered_presets
from woodshed.wizard.questions import read_answer, refuse_empty, setting_question, shown

START, REVIEW = "Start", "Review"
MODE, PRESET, BASE, LAST = "@mode", "@preset", "@base", "@review"
CONTINUE, AFRESH = "continue", "afresh"
FAMILY_ONLY = frozenset(name for names in FAMILY_SETTINGS.values() for name in names)
LOOKED_INTO = ("checkpoint_dir", "model", "device")  # by what needs PyTorch
NO_PRESET = "no preset"  # with a space, so that no preset is called like it


@dataclass(frozen=True)
class Step:
    """One question of the walk."""

    name: str  # of a setting, or one of the names with @
    section: str


class Walk:
    """Asks everything that a job needs.

    Args:
        dialog: asks.
        job: what will be started.
        draft: holds the answers; those from before are what Enter accepts.
        review: the last page; returns when the job shall start.
    """

    def __init__(self, dialog: Dialog, job: Job, draft: Draft, review: Callable[["Walk"], None]) -> None:
        self.dialog, self.job, self.draft = dialog, job, draft
        self._review = review
        self._earlier = draft.at  # where a walk before this one was left

    def steps(self) -> list[Step]:
        """Return the questions as things stand: answers decide which make sense."""
        said = declarations(self.job.kind)
        has_advanced = any(item.tier == "advanced" for item in said.values())
        found = [Step(MODE, START)] if has_advanced else []
        if self.job.has_presets:
            found.append(Step(PRESET, START))
        for section, names in self.draft.open_sections().items():
            for name in names:
                is_settled = name in self.draft.fixed or said[name].tier == "advanced"
                if is_settled and not self.draft.is_advanced:
                    continue
                found.append(Step(name, section))
                if name == "model" and self.draft.is_base_unknown and "shift" in self.job.kind.model_fields:
                    found.append(Step(BASE, section))
        return [*found, Step(LAST, REVIEW)]

    def mark(self, step: Step) -> str:
        """Return where a step stands: `[3/11] LoRA`."""
        pages = list(dict.fromkeys(item.section for item in self.steps()))
        return f"[{pages.index(step.section) + 1}/{len(pages)}] {step.section}"

    def run(self) -> None:
        """Walk until the review says start.

        Raises:
            BackError: when the user steps back from the first question.
            ToMenuError: when the user leaves; the answers stay in the draft.
        """
        self.dialog.close_page()
        at = self.steps()[0]
        while True:
            try:
                jump = self._take(at)
            except BackError:
                before = self._neighbour(at, -1)
                if before is None:
                    raise
                at = before
                continue
            following = self._named(jump) if jump else self._neighbour(at, 1)
            if following is None:
                return
            at = following

    def _take(self, step: Step) -> str | None:
        """Ask one question; return where to go on, if not at the next one."""
        self.dialog.open_page(self.mark(step), page=step.section)
        if step.name == MODE:
            return self._ask_mode()
        self.draft.at = step.name
        if step.name == LAST:
            self._review(self)
        elif step.name == PRESET:
            self._ask_preset()
        elif step.name == BASE:
            self._ask_base()
        else:
            try:
                self.ask_setting(step.name, can_skip=not self._is_anything_missing())
            except ToReviewError:
                return LAST
        return None

    def _is_anything_missing(self) -> bool:
        """Tell whether something without a default is still to be chosen, so that there is nothing to review yet."""
        return any(self.draft.is_missing(name) for name in self.job.kind.model_fields)

    def _named(self, name: str) -> Step:
        """Return the step of that name, or the review when it is not asked any more."""
        steps = self.steps()
        return next((step for step in steps if step.name == name), steps[-1])

    def _neighbour(self, step: Step, distance: int) -> Step | None:
        steps = self.steps()
        names = [item.name for item in steps]
        index = names.index(step.name) + distance
        return steps[index] if 0 <= index < len(steps) else None

    def _ask_mode(self) -> str | None:
        choices = [
            Choice("basic", "Basic", "what matters most, good defaults for the rest"),
            Choice("advanced", "Advanced", "every setting"),
        ]
        default = "advanced" if self.draft.is_advanced else "basic"
        earlier, self._earlier = self._earlier, None
        if earlier is not None:
            place = (
                declarations(self.job.kind)[earlier].title if earlier in self.job.kind.model_fields else "the review"
            )
            choices.insert(0, Choice(CONTINUE, "Continue", f"at {place}, with your answers from before"))
            choices.append(Choice(AFRESH, "Start afresh", "forget the answers from before"))
            default = CONTINUE
        ask = Ask(
            "How much do you want to decide?",
            choices=tuple(choices),
            default=default,
            enter=f"takes {default}",
        )
        word = self.dialog.choose(ask, why="Basic is enough for most. Every answer can still be changed in the review.")
        if word == CONTINUE:
            return earlier
        if word == AFRESH:
            self.draft.start_afresh()
            return MODE
        self.draft.is_advanced = word == "advanced"
        return None

    def _ask_preset(self) -> None:
        none = Choice(NO_PRESET, "none", "the defaults")
        offered = offered_presets(str(dict(self.draft.look().settings)["adapter_type"]), keep=self.draft.preset)
        choices = (none, *(Choice(name, name, note) for name, note in offered.items()))
        default = self.draft.preset if self.draft.preset in offered else NO_PRESET
        ask = Ask(
            "Begin with a preset?",
            tuple(paragraph("A preset changes some defaults; your answers win over it.", self.dialog.face.width)),
            choices,
            str(default),
            "takes none" if default == NO_PRESET else f"takes {default}",
        )
        while True:
            why = "The vram presets make a run fit a card; quick_test tries everything in minutes."
            word = self.dialog.choose(ask, why=why)
            problems = self.draft.try_preset(None if word == NO_PRESET else word)
            if not problems:
                self._note_idle_part()
                return
            self.dialog.problem(*problems)

    def _note_idle_part(self) -> None:
        """Say what of the preset does nothing here, because another kind of adapter would use it."""
        if self.draft.preset is None:
            return
        idle, said = self.draft.idle(), declarations(self.job.kind)
        for name in preset_values(self.draft.preset):
            if name in FAMILY_ONLY and name in idle:
                self.dialog.note(f"{said[name].title} of this preset has no effect here: {readable(idle[name])}.")

    def _ask_base(self) -> None:
        model = str(self.draft.answers["model"])
        default = self.draft.base or remember.known_base(model) or "base"
        ask = models.base_question(model, default, self.dialog.face.width)
        self.draft.base = self.dialog.choose(ask, why=models.BASE_WHY)
        remember.remember_base(model, self.draft.base)

    def ask_setting(self, name: str, *, can_skip: bool = False) -> None:
        """Ask for one setting until its value is accepted, and say what moved with it.

        Args:
            name: of the setting.
            can_skip: `r` leaves this and all further questions as they stand.

        Raises:
            BackError, ToMenuError, ToReviewError: when the user wants to go elsewhere.
        """
        draft, field = self.draft, self.draft.kind.model_fields[name]
        if name in LOOKED_INTO:
            self.dialog.announce_loading()
        suggestion = self._suggestion(name)
        ask = setting_question(draft, name, self.dialog.face.width, suggestion=suggestion)
        ask = checks.with_choices(ask, name, draft)
        if can_skip:
            ask = replace(ask, can_skip=True, hints=(*ask.hints[:-1], "r review", ask.hints[-1]))
        before, earlier_remarks = draft.look(), draft.remarks()

        def read(typed: str) -> Any:
            """Take the answer; None stands for Enter alone."""
            if not typed and draft.is_missing(name):
                refuse_empty(draft, name, suggestion)
                typed = suggestion or ""
            elif not typed:
                checks.check(name, shown(getattr(before.settings, name)), draft)
                return None
            elif ask.choices and ask.is_open:
                typed = _chosen(ask, typed)
            value = read_answer(field, typed)
            value = checks.check(name, value, draft)
            problems = draft.try_answer(name, value)
            if problems:
                raise RefusedError(*(problem.replace(f" ({ANSWER})", "") for problem in problems))
            return value

        value = self.dialog.ask(ask, read, why=declaration_of(field).why)
        now = draft.look()
        text = shown(getattr(now.settings, name))
        self.dialog.face.note_answer(ask.title, text, is_kept=value is None)
        if value is not None:
            self.dialog.note(*moved(before, now, name))
            self.dialog.note(*(said for said in draft.remarks() if said not in earlier_remarks))
        checks.after(name, draft, self.dialog)

    def _suggestion(self, name: str) -> str | None:
        """Return what Enter takes while a setting has no value."""
        if name == "model":
            try:
                return models.recommended(models.model_choices(checks.checkpoint_dir(self.draft)))
            except CheckpointError:
                return None
        try:
            return remember.suggest(name, self.draft, self.job.name)
        except SettingsError:
            return None


def _chosen(ask: Ask, typed: str) -> str:
    """Return the word of a choice that was meant, or what was typed where other answers are accepted too."""
    try:
        return match_choice(ask.choices, typed)
    except RefusedError:
        return typed


def moved(before: Resolved[Settings], now: Resolved[Settings], name: str) -> list[str]:
    """Return a sentence for each setting that an answer moved beside its own."""
    said = []
    for other, item in declarations(type(now.settings)).items():
        value = getattr(now.settings, other)
        if other != name and value != getattr(before.settings, other):
            origin = now.origins[other]
            is_home = origin not in FOLLOWED
            said.append(
                f"{item.title} is {shown(value)} again ({origin})."
                if is_home
                else f"{item.title} is now {shown(value)} (goes with {origin})."
            )
    return said
