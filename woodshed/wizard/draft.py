"""Answers on their way to a run: kept whatever happens, and resolved by the same rules as flags and files."""

from collections.abc import Mapping
from typing import Any

from woodshed.errors import SettingsError
from woodshed.settings.declare import Settings, sections
from woodshed.settings.files import preset_layer, stand_ins, user_layer
from woodshed.settings.resolve import Layer, Resolved, resolve
from woodshed.settings.rules import inert, remarks
from woodshed.settings.schema import TrainSettings

ANSWER = "your answer"


class Draft:
    """What has been chosen for one run so far.

    Args:
        kind: the settings to choose.
        fixed: what the menu entry has chosen already.
    """

    def __init__(self, kind: type[Settings], fixed: Mapping[str, Any] | None = None) -> None:
        self.kind = kind
        self.fixed = dict(fixed or {})
        self.start_afresh()

    def start_afresh(self) -> None:
        """Forget every answer."""
        self.answers: dict[str, Any] = dict(self.fixed)
        self.preset: str | None = None
        self.base: str | None = None  # what a fine-tune of unknown base descends from, as the user says
        self.is_base_unknown = False
        self.is_advanced = False
        self.at: str | None = None  # the question that was asked last

    def layers(self, answers: Mapping[str, Any] | None = None) -> list[Layer]:
        """Return where values come from, weakest first."""
        found = [user_layer(self.kind)]
        if self.preset is not None:
            found.append(preset_layer(self.preset))
        return [*found, Layer("the fine-tune's base", self.follows_from_base()), self._answered(answers)]

    def _answered(self, answers: Mapping[str, Any] | None) -> Layer:
        return Layer(ANSWER, self.answers if answers is None else answers)

    def follows_from_base(self) -> dict[str, Any]:
        """Return what must be said outright because the model's files do not say that it is a turbo model."""
        if not self.is_base_unknown or self.base != "turbo":
            return {}
        from woodshed.sampling.recipes import TURBO_SHIFT, TURBO_STEPS  # loads torch, as finding the model did

        playback = {"shift": TURBO_SHIFT, "num_inference_steps": TURBO_STEPS}
        return {name: value for name, value in playback.items() if name in self.kind.model_fields}

    def resolve(self) -> Resolved[Settings]:
        """Return the settings as the run would get them.

        Raises:
            SettingsError: when a required one is missing.
        """
        return resolve(self.kind, self.layers())

    def look(self, answers: Mapping[str, Any] | None = None) -> Resolved[Settings]:
        """Return the settings as they stand, with stand-ins for what is not chosen yet.

        Raises:
            SettingsError: when a value is not accepted.
        """
        return resolve(self.kind, [stand_ins(self.kind), *self.layers(answers)])

    def is_missing(self, name: str) -> bool:
        """Tell whether a setting has neither a default nor a value yet."""
        return self.kind.model_fields[name].is_required() and not any(name in layer.values for layer in self.layers())

    def try_answer(self, name: str, value: Any) -> list[str]:
        """Take an answer, unless it leads to new problems; return those."""
        try:
            self.look({**self.answers, name: value})
        except SettingsError as error:
            known = self.problems()
            new = [problem for problem in error.problems if problem not in known]
            if new:
                return new
        self.answers[name] = value
        return []

    def problems(self) -> tuple[str, ...]:
        """Return what is not accepted about the values as they stand."""
        try:
            self.look()
        except SettingsError as error:
            return error.problems
        return ()

    def try_preset(self, name: str | None) -> tuple[str, ...]:
        """Lay a preset under the answers, or none, unless it cannot be used; return why."""
        before, self.preset = self.preset, name
        try:
            self.look()
        except SettingsError as error:
            self.preset = before
            return error.problems
        return ()

    def idle(self) -> dict[str, str]:
        """Return the settings without effect as things stand, each with the reason."""
        settings = self.look().settings
        return inert(settings) if isinstance(settings, TrainSettings) else {}

    def remarks(self) -> list[str]:
        """Return what a careful friend would point out."""
        settings = self.look().settings
        return remarks(settings) if isinstance(settings, TrainSettings) else []

    def open_sections(self) -> dict[str, list[str]]:
        """Return the settings by section, without sections in which nothing could have an effect."""
        idle = self.idle()
        return {
            section: names for section, names in sections(self.kind).items() if not all(name in idle for name in names)
        }

    def forget_run(self) -> None:
        """Drop what belonged to a run that is done, so that the next one gets a folder of its own."""
        for name in ("output_dir", "output", "resume_from"):
            self.answers.pop(name, None)
        self.at = None
