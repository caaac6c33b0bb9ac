"""What an inspection found: facts, tables and what is wrong, for people and for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of plain values under names."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Report:
    """What a path holds."""

    kind: str  # "adapter", "model", "checkpoints", "dataset", "run", "estimate", "song"
    path: Path
    facts: Mapping[str, Any]  # JSON values by name, in the order that people should read them
    tables: tuple[Table, ...] = ()
    notices: tuple[str, ...] = ()  # what is missing, damaged or surprising, as sentences

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values, each row of a table under its columns' names."""
        tables = {
            table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in self.tables
        }
        return {
            "kind": self.kind,
            "path": self.path.as_posix(),
            "facts": dict(self.facts),
            "tables": tables,
            "notices": list(self.notices),
        }


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
