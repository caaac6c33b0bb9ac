"""What the pages tell people to type exists, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from woodshed import cli
from woodshed.settings.schema import TrainSettings

PROJECT = Path(__file__).parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
GENERATED = ("cli.md",)
MAKE = re.compile(r"`make ([a-z-]+)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def commands_in(text):
    """Return every `woodshed COMMAND ...` of a page: in code spans, which may run over a line's end, and in blocks."""
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    found = [words.split() for words in [*spans, *lines] if words.startswith("woodshed ")]
    return [words for words in found if len(words) > 1 and words[1] in cli.COMMANDS]


def flags_of(command):
    parser = cli.build_parser(cli.COMMANDS[command], show_all=True)
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_command_on_a_page_exists(page):
    for _, command, *words in commands_in(page.read_text(encoding="utf-8")):
        known = flags_of(command)
        unknown = [flag for word in words for flag in FLAG.findall(word) if flag not in known]
        assert not unknown, f"woodshed {command} does not know {unknown}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_every_flag_on_a_page_is_one_of_some_command(page):
    text = re.sub(
        r"`(?:make|pip|py|python|accelerate|torchrun|tensorboard|mypy|ruff)[^`]*`", "", page.read_text("utf-8")
    )
    prose = "\n".join(line for line in text.splitlines() if not re.search(r"\b(pip|py|python|pytest|mypy) ", line))
    known = set().union(*(flags_of(command) for command in cli.COMMANDS)) | {"--version"}
    unknown = [flag for span in re.findall(r"`(--[^`]+)`", prose) for flag in FLAG.findall(span) if flag not in known]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_on_a_page_exists(page):
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(MAKE.findall(page.read_text(encoding="utf-8"))) <= set(targets)


def test_the_pages_do_name_commands():
    assert len(commands_in((PROJECT / "README.md").read_text(encoding="utf-8"))) >= 5


def test_every_command_has_a_place_in_the_readme_or_a_guide():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.name not in GENERATED)
    assert not [command for command in cli.COMMANDS if f"woodshed {command}" not in text]


def test_every_training_setting_has_a_row_in_the_reference():
    text = (PROJECT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert not [name for name in TrainSettings.model_fields if f"`--{name.replace('_', '-')}`" not in text]
