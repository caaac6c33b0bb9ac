"""huggingface.co as far as fetching a model needs it: which files a repository has, and one of them at a time.

Everything that goes wrong there comes out as a sentence. The package is optional and imported where it is used.
"""

import importlib.util
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from woodshed.errors import CheckpointError, UserError

CHUNK = 2**20
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1, 2)  # seconds before another try when a connection breaks
PARTIAL, COMPLETE_ALREADY = 206, 416  # answers to who asks for the rest of a file


@dataclass(frozen=True)
class Published:
    """One file of a repository, as the hub states it."""

    size: int
    sha256: str = ""  # of large files
    git_id: str = (
        ""  # of every file: the SHA-1 that git knows its bytes by, or by which it knows a large file's pointer
    )


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    commit: str
    files: Mapping[str, Published]  # by path in the repository; the paths are a stranger's


class UnreachableError(UserError):
    """The hub does not answer, or nobody may ask it."""


class Hub(Protocol):
    """Where models come from."""

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Return the files of a repository.

        Raises:
            UserError: when there is no such repository or it cannot be reached.
        """

    def fetch(self, repository: str, commit: str, path: str, place: Path) -> Iterator[int]:
        """Write one file to a place, behind what lies there already; yield now and then how many bytes lie there.

        Raises:
            UserError: when it cannot be fetched.
        """


def require_hub() -> None:
    """Check that the optional package is installed, without importing it.

    Raises:
        UserError: with the line that installs it.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            "Fetching models needs the package huggingface_hub, which is not installed. "
            'Install it with: pip install "woodshed[models]".'
        )


class HuggingFace:
    """The hub itself, through its own library, which knows its address, its errors and the user's login.

    The library's download is not used: it begins a file anew when the program was stopped, and the largest has 5 GB.
    """

    def __init__(self) -> None:
        require_hub()

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Return the files of a repository with sizes and digests."""
        from huggingface_hub import HfApi

        with _in_words(repository, revision):
            found = HfApi(library_name="woodshed").model_info(repository, revision=revision, files_metadata=True)
        files = {
            entry.rfilename: Published(
                size=int(entry.size or 0),
                sha256=entry.lfs.sha256 if entry.lfs is not None else "",
                git_id="" if entry.lfs is not None else entry.blob_id or "",
            )
            for entry in found.siblings or ()
        }
        if not found.sha:
            raise CheckpointError(f"{repository} states no commit, so that nothing says which files these are.")
        return Listing(found.sha, files)

    def fetch(self, repository: str, commit: str, path: str, place: Path) -> Iterator[int]:
        """Ask for what is missing of a file, and again where the connection breaks."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HTTPError

        with _in_words(repository, commit):
            url = hf_hub_url(repository, path, revision=commit)
            for pause in (*PAUSES, None):
                try:
                    yield from _go_on(url, place)
                    return
                except (HTTPError, ConnectionError):
                    if pause is None:
                        raise
                    time.sleep(pause)


def _go_on(url: str, place: Path) -> Iterator[int]:
    """Fetch what follows the bytes that lie at a place."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    before = place.stat().st_size if place.is_file() else 0
    headers = build_hf_headers(library_name="woodshed") | {"Accept-Encoding": "identity"}
    if before:
        headers["Range"] = f"bytes={before}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if response.status_code == COMPLETE_ALREADY:
            return
        hf_raise_for_status(response)
        is_rest = response.status_code == PARTIAL
        with place.open("ab" if is_rest else "wb") as file:
            for piece in response.iter_raw(CHUNK):
                file.write(piece)
                yield file.tell()


@contextmanager
def _in_words(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the library raises into sentences."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is open only to those who accepted its terms. Accept them on "
            f"https://huggingface.co/{repository} and log in with: hf auth login."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"There is no public repository {repository} on huggingface.co.") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision}.") from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{repository} no longer has the file that it listed ({_first_line(error)}).") from error
    except (errors.OfflineModeIsEnabled, errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise UnreachableError(f"{repository} on huggingface.co cannot be reached ({_first_line(error)}).") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{repository} cannot be fetched ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
