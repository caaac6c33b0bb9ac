"""The command that repeats what was answered."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from woodshed.settings.files import preset_values
from woodshed.settings.flags import flags_of
from woodshed.wizard.draft import Draft
from woodshed.wizard.jobs import Job


def command_words(job: Job, draft: Draft) -> list[str]:
    """Return the words after the command's name; the settings they give are those of the draft."""
    chosen = {**draft.layers()[0].values, **draft.follows_from_base(), **draft.answers}
    words = ["--preset", draft.preset] if draft.preset is not None else []
    from_preset = preset_values(draft.preset) if draft.preset is not None else {}
    for name in job.kind.model_fields:
        if name in chosen and name not in job.positionals:
            words += _flag_words(job, name, chosen[name], is_over_preset=name in from_preset)
    given = [str(chosen[name]) for name in job.positionals if name in chosen and str(chosen[name])]
    # Behind `--` a word is never taken for a flag.
    return [*given, *words] if not any(word.startswith("-") for word in given) else [*words, "--", *given]


def _flag_words(job: Job, name: str, value: Any, *, is_over_preset: bool) -> list[str]:
    field = job.kind.model_fields[name]
    flag = flags_of(name, field)[0]
    if field.annotation is bool:
        if name in job.switches:
            return [flag] if value else []
        return [flag if value else flag.replace("--", "--no-", 1)]
    texts = _texts(field.default, value) or [""]
    if field.default == () and texts == [""] and not is_over_preset:
        return []  # an empty list has no words
    if len(texts) == 1 and (texts[0].startswith("-") or not texts[0]):
        return [f"{flag}={texts[0]}"]
    if any(text.startswith("-") for text in texts):
        return [f"{flag}={','.join(texts)}"]
    return [flag, *texts]


def _texts(default: Any, value: Any) -> list[str]:
    """Return a value as the words behind its flag."""
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    if isinstance(default, tuple) and default and all(isinstance(item, str | float) for item in default):
        return [word for word in re.split(r"[\s,]+", str(value)) if word] or [""]
    return [str(value)]


def command_text(job: Job, draft: Draft) -> str:
    """Return the whole command, quoted for the shell of this system."""
    return quoted(["woodshed", job.name, *command_words(job, draft)])


def quoted(words: Sequence[str]) -> str:
    """Return words as one line for the shell of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
