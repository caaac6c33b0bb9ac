"""No setting is dead: for each there is a test in effects/ that changes it and observes what it promises to change.

A test belongs to the setting that its name begins with: `test_rank_is_...` to `rank`. Deeper tests of the same effects
lie in their rooms.
"""

import ast
from pathlib import Path

import pytest

from woodshed.settings.declare import declarations
from woodshed.settings.schema import PreprocessSettings, TrainSettings

EFFECTS = Path(__file__).parent / "effects"
KINDS = {"preprocess": PreprocessSettings, "train": TrainSettings}


def settings_with_tests(kind):
    """Return the settings of a command that have a test, and the tests that belong to no setting."""
    tested, strays = set(), []
    for path in EFFECTS.glob("test_*.py"):
        if (path.name == "test_preprocess_effects.py") != (kind is PreprocessSettings):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                sentence = node.name.removeprefix("test_")
                names = [name for name in kind.model_fields if f"{sentence}_".startswith(f"{name}_")]
                tested |= {max(names, key=len)} if names else set()
                strays += [] if names else [node.name]
    return tested, strays


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_setting_is_changed_by_a_test_that_observes_its_effect(kind):
    tested, strays = settings_with_tests(kind)
    assert sorted(set(kind.model_fields) - tested) == [], "settings without a test of their effect"
    assert strays == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_setting_whose_effect_is_not_built_yet_cannot_be_changed_in_silence(kind):
    for name, said in declarations(kind).items():
        assert not said.coming or name in said.coming, f"the refusal of {name} does not name it"
