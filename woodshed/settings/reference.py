"""The settings' reference, written from the declarations: the four columns of every section, and a JSON Schema.

docs/settings.md holds the tables; `make docs` writes them there and `make docs-check` compares.
"""

import json

from woodshed.settings.declare import Settings, choices_of, declarations, sections
from woodshed.settings.flags import default_text, flags_of
from woodshed.settings.schema import (
    DoctorSettings,
    EstimateSettings,
    ExportSettings,
    GenerateSettings,
    MergeSettings,
    ModelsSettings,
    PreprocessSettings,
    TrainSettings,
)

PAGES: dict[str, type[Settings]] = {
    "woodshed train": TrainSettings,
    "woodshed preprocess": PreprocessSettings,
    "woodshed estimate": EstimateSettings,
    "woodshed generate": GenerateSettings,
    "woodshed export": ExportSettings,
    "woodshed merge": MergeSettings,
    "woodshed models": ModelsSettings,
    "woodshed doctor": DoctorSettings,
}


def settings_tables() -> str:
    """Return every setting of every command as Markdown tables, a section each."""
    parts: list[str] = []
    for command, kind in PAGES.items():
        parts += [f"## `{command}`", "", *_tables(kind)]
    return "\n".join(parts).rstrip() + "\n"


def _tables(kind: type[Settings]) -> list[str]:
    lines: list[str] = []
    said = declarations(kind)
    for section, names in sections(kind).items():
        lines += [
            f"### {section}",
            "",
            "| Setting | Default | What it does | Why you'd change it |",
            "|---|---|---|---|",
        ]
        for name in names:
            item = said[name]
            tier = " *(advanced)*" if item.tier == "advanced" else ""
            flags = ", ".join(f"`{flag}`" for flag in flags_of(name, kind.model_fields[name]))
            what = item.what + _choices(kind, name) + (f" *Source: {item.source}*" if item.source else "")
            cells = (f"{item.title}{tier}<br>{flags}", default_text(kind.model_fields[name]), what, item.why)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return lines


def _choices(kind: type[Settings], name: str) -> str:
    choices = choices_of(kind.model_fields[name])
    return f" One of {', '.join(f'`{word}`' for word in choices)}." if choices else ""


def json_schema(kind: type[Settings]) -> str:
    """Return the JSON Schema of a command's settings, for editors that check run files."""
    return json.dumps(kind.model_json_schema(), indent=1)
