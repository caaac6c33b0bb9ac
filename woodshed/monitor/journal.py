"""events.jsonl: every event of a run as one line of JSON, for programs that look at runs."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from woodshed.training.events import Event


class Journal:
    """Appends events to a file, each line flushed at once.

    Args:
        path: continued when it exists; a last line that a crash cut short is removed first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        _drop_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._write({"event": "Failed", "error": type(error).__name__, "message": str(error)})
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Write one event."""
        self._write({"event": type(event).__name__, **asdict(event)})

    def _write(self, values: dict[str, Any]) -> None:
        line = {"time": round(time.time(), 3), **_finite(values)}
        self._file.write(json.dumps(line, default=_plain, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot write (an overflowed float16 norm) by None, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    assert isinstance(value, Path), f"an event holds a {type(value).__name__}"
    return value.as_posix()


def _drop_torn_line(path: Path) -> None:
    """Cut the file after its last complete line."""
    if not path.is_file():
        return
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        path.write_bytes(complete)
