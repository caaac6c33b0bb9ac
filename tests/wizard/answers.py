"""Answers to every question, found by what the settings accept instead of from a list that would grow old."""

from woodshed.errors import SettingsError
from woodshed.settings.declare import choices_of, declarations
from woodshed.settings.files import stand_ins
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.wizard.questions import read_answer

SPOKEN_FOR = {
    "checkpoint_dir": "../home/checkpoints",
    "model": "turbo",
    "dataset_dir": "songs",
    "output_dir": "out",
    "device": "cpu",
}
"""What has to be there, or is looked at as soon as it is typed."""
CANDIDATES = ("2", "7", "0.25", "3e-4", "64", "cpu", "q_proj v_proj", "elsewhere", "q_proj=8")
TITLES = {said.title: name for name, said in declarations(TrainSettings).items()}


def other_answer(name: str, adapter: str) -> str:
    """Return an answer to a training setting's question that is accepted and differs from the default."""
    if name in SPOKEN_FOR:
        return SPOKEN_FOR[name]
    if name == "adapter_type":
        return adapter
    field = TrainSettings.model_fields[name]
    words = ("no", "yes") if field.annotation is bool else choices_of(field)
    for typed in words or CANDIDATES:
        chosen = {"adapter_type": adapter, name: read_answer(field, typed)}
        try:
            settings = resolve(TrainSettings, [stand_ins(TrainSettings), Layer("test", chosen)]).settings
        except SettingsError:
            continue
        if getattr(settings, name) != field.default:
            return typed
    raise AssertionError(f"{name} accepts none of {words or CANDIDATES}: add something it accepts.")


def wrong_answer(name: str) -> str | None:
    """Return an answer that no question for this setting accepts, or None where every text is one."""
    field = TrainSettings.model_fields[name]
    if field.annotation is bool or choices_of(field):
        return "xyzzy"
    typed = "xyzzy" if name in ("checkpoint_dir", "model", "dataset_dir", "device") else "-7.5e"
    try:
        resolve(TrainSettings, [stand_ins(TrainSettings), Layer("test", {name: typed})])
    except SettingsError:
        return typed
    return typed if typed == "xyzzy" else None
