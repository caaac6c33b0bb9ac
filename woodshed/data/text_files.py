"""Text files that people write: UTF-8, with every mistake located."""

import json
from pathlib import Path
from typing import Any

from woodshed.errors import DataError

OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: Path) -> str:
    """Read a text file; line breaks of every system become one, a byte order mark is dropped.

    Raises:
        DataError: when it is missing, cannot be read, or is no UTF-8, naming the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        other = OTHER_ENCODINGS.get(content[:2], "another encoding")
        raise DataError(f"{path}, line {line}: this is no UTF-8 text but {other}. Save the file as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json_text(path: Path) -> Any:
    """Read a JSON file that a person wrote.

    Raises:
        DataError: when it is no JSON, naming line and column.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except RecursionError:
        raise DataError(f"{path} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise DataError(f"{path} is not valid JSON: {error}.") from error
