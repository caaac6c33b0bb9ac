"""What tells one dataset from another."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from woodshed.data.manifest import MANIFEST


def dataset_digest(files: Collection[Path]) -> str:
    """Return a digest that tells datasets apart without reading songs: by their names and sizes and by the manifest.

    Args:
        files: of the songs, in any order, all in one folder, at least one.
    """
    known = hashlib.sha256()
    ordered = sorted(files, key=lambda path: path.name)
    for path in ordered:
        known.update(f"{path.name}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
    manifest = ordered[0].with_name(MANIFEST)
    if manifest.is_file():
        known.update(manifest.read_bytes())
    return known.hexdigest()
