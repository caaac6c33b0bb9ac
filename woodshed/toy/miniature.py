"""The miniature: a trained ACE-Step world of a few megabytes that comes with Woodshed; see docs/miniature.md."""

import hashlib
import json
import shutil
from pathlib import Path

from woodshed.errors import CheckpointError

WORLD = Path(__file__).parent / "world"
DIGESTS = WORLD / "digests.json"


def digests_of(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint root by its path."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != DIGESTS.name)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def copy_miniature(root: Path) -> None:
    """Copy the checkpoints, in the original layout.

    Raises:
        CheckpointError: when a file is not what it was when it was made.
    """
    shutil.copytree(WORLD, root, ignore=shutil.ignore_patterns(DIGESTS.name), dirs_exist_ok=True)
    expected = json.loads(DIGESTS.read_text(encoding="utf-8"))
    found = digests_of(root)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(f"The built-in model is damaged ({', '.join(wrong)}). Install Woodshed again.")
