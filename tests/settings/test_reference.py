"""The reference pages hold every setting, with the four columns."""

import json
import re

import pytest

from woodshed.settings.flags import flags_of
from woodshed.settings.reference import PAGES, json_schema, settings_tables


@pytest.mark.parametrize("kind", PAGES.values(), ids=list(PAGES))
def test_every_setting_is_a_row_with_its_flag(kind):
    page = settings_tables()
    for name, field in kind.model_fields.items():
        assert all(f"`{flag}`" in page for flag in flags_of(name, field)), name


def test_every_row_has_four_columns():
    rows = [line for line in settings_tables().splitlines() if line.startswith("| ")]
    assert len(rows) > 60
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 5, row


def test_advanced_settings_are_marked():
    page = settings_tables()
    assert "| Device *(advanced)*<br>`--device`" in page
    assert "| Rank<br>`--rank` | `64` |" in page


def test_sources_of_numbers_are_named():
    assert "*Source: ACE-Step 1.5 training forward: cfg_ratio=0.15.*" in settings_tables()


@pytest.mark.parametrize("kind", PAGES.values(), ids=list(PAGES))
def test_the_json_schema_knows_every_setting_and_forbids_others(kind):
    schema = json.loads(json_schema(kind))
    assert set(schema["properties"]) == set(kind.model_fields)
    assert schema["additionalProperties"] is False
