"""Room on disks, in words that people read."""

import shutil
from pathlib import Path

GIB = 2**30


def free_bytes(path: Path) -> int:
    """Return how much room the disk of a path has, which need not exist yet."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def gib(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB // 10 else f"{size / 2**20:,.1f} MiB"
