"""Content by digest: of texts, of whole files, and of weights, which are known by samples of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from woodshed.data.ahead import AbandonedError, ShouldStop

CHUNK = 2**20  # bytes read at once
SAMPLES, SAMPLE = 256, 2**16  # pieces of a file of weights, and the bytes of each


def file_digest(path: Path, should_stop: ShouldStop = lambda: False) -> str:
    """Return the SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found.update(piece)
            if should_stop():
                raise AbandonedError
    return found.hexdigest()


def digest(*texts: str) -> str:
    """Return the SHA-256 of several texts, kept apart."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def weights_digest(files: Sequence[Path]) -> str:
    """Return a digest of the contents of large files, by pieces of 64 KiB at even distances: a few megabytes each.

    Training changes every tensor, so another version of a model is another digest; the whole of a small file counts.
    """
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        step = max(SAMPLE, size // SAMPLES)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                found.update(file.read(SAMPLE))
            file.seek(max(size - SAMPLE, 0))
            found.update(file.read(SAMPLE))
    return found.hexdigest()
