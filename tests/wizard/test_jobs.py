"""A command becomes a job: what its parser takes beside its settings is asked for like any setting."""

import argparse
from pathlib import Path

from woodshed.settings.schema import CheckpointSettings
from woodshed.wizard.command_line import command_words
from woodshed.wizard.draft import Draft
from woodshed.wizard.jobs import job_of
from woodshed.wizard.questions import setting_choices


def parser_of():
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter", type=Path, help="the adapter to export")
    parser.add_argument("--to", choices=["peft", "comfyui"], required=True, help="the other tool's format")
    parser.add_argument("--note", help="a word about it, at 100%% of the cases")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--checkpoint-dir")
    return parser


def job():
    return job_of("export", "Export an adapter.", CheckpointSettings, parser_of(), lambda _: 0)


def test_arguments_that_are_no_settings_are_asked_for():
    found = job()
    assert set(found.kind.model_fields) == {"checkpoint_dir", "adapter", "to", "note", "force"}
    assert found.positionals == ("adapter",)
    assert [choice.word for choice in setting_choices(found.kind.model_fields["to"])] == ["peft", "comfyui"]
    assert found.kind.model_fields["note"].description == "A word about it, at 100% of the cases."
    assert not found.has_presets


def test_required_ones_have_no_default():
    required = {name for name, field in job().kind.model_fields.items() if field.is_required()}
    assert required == {"adapter", "to"}


def test_the_command_writes_positions_without_a_flag_and_switches_only_when_on():
    found = job()
    draft = Draft(found.kind)
    for name, value in {"adapter": "-odd name", "to": "peft", "force": True}.items():
        assert draft.try_answer(name, value) == []
    words = command_words(found, draft)
    known = parser_of().parse_args(words)
    assert (known.adapter, known.to, known.force) == (Path("-odd name"), "peft", True)
    draft.try_answer("force", False)
    assert "--force" not in command_words(found, draft)


def test_a_command_without_settings_is_asked_from_its_parser_alone():
    found = job_of("demo", "x", None, parser_of(), lambda _: 0)
    assert "adapter" in found.kind.model_fields
