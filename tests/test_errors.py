"""Errors for people: sentences, exit codes, all at once."""

import pytest

from woodshed import errors


def test_all_problems_are_kept_and_shown_one_per_line():
    error = errors.UserError("One.", "Two.")
    assert error.problems == ("One.", "Two.")
    assert str(error) == "One.\nTwo."


def test_a_user_error_says_at_least_one_thing():
    with pytest.raises(AssertionError):
        errors.UserError()


@pytest.mark.parametrize(
    ("kind", "code"),
    [(errors.UserError, 1), (errors.UsageError, 2), (errors.SettingsError, 1), (errors.CheckpointError, 1)],
)
def test_wrong_usage_exits_with_two_and_the_rest_with_one(kind, code):
    assert kind("x").exit_code == code
    assert isinstance(kind("x"), errors.UserError)


def test_refused_settings_carry_what_is_usable():
    assert errors.SettingsError("x").usable is None
    assert errors.SettingsError("x", usable=3).usable == 3
