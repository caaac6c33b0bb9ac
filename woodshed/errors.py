"""Errors that are for people: what, where, what was found, what to do.

The command line prints a `UserError` without a traceback and exits with its code. Every other exception is a bug of
ours and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can mend.

    Args:
        problems: one full sentence each; all that were found, not only the first.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        assert problems, "a UserError says at least one thing"
        super().__init__("\n".join(problems))
        self.problems = problems


class ElsewhereError(UserError):
    """Said by another process of the same run; this one only ends."""


class UsageError(UserError):
    """The command was typed wrongly: an unknown flag or a missing argument."""

    exit_code = 2


class SettingsError(UserError):
    """Settings that are out of range, unknown or contradict each other.

    Args:
        problems: one full sentence each.
        usable: the settings with every refused value back at its default, so that further checks can run on the rest;
            None when a required one is missing.
    """

    def __init__(self, *problems: str, usable: object = None) -> None:
        super().__init__(*problems)
        self.usable = usable


class CheckpointError(UserError):
    """A model folder that is missing, incomplete or not what it says."""


class DataError(UserError):
    """Songs, metadata or preprocessed tensors that cannot be used."""


class AdapterError(UserError):
    """An adapter that does not fit the model, or a file that holds none."""


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Note a user's mistake in `problems` and go on looking for more."""
    try:
        yield
    except UserError as error:
        problems.extend(error.problems)
