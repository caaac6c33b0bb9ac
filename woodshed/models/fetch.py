"""`models get`: a model's files from huggingface.co into the layout that ACE-Step uses, checked byte by byte.

Only kinds of files that hold data are fetched, by a list of names: weights as safetensors, JSON, word lists, and
silence_latent.pt, which is read with `weights_only`. Python files and pickles are left where they are. What is fetched
lies in a hidden folder until its digest is right, and an interrupted fetch goes on there.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from woodshed.errors import CheckpointError, UserError
from woodshed.models.checkpoints import OFFICIAL_NAMES, OFFICIAL_PREFIX, TEXT_ENCODER_FOLDER, VAE_FOLDER
from woodshed.models.disk import free_bytes, gib
from woodshed.models.fetched import CHUNK, FetchedFile, FetchRecord, file_sha256, write_record
from woodshed.models.hub import Hub, Listing, Published, UnreachableError
from woodshed.settings.declare import did_you_mean
from woodshed.settings.files import DEVICE_NAMES

MAIN_REPOSITORY = "ACE-Step/Ace-Step1.5"
IN_MAIN = ("acestep-v15-turbo", VAE_FOLDER, TEXT_ENCODER_FOLDER)
"""Folders of the main repository; every other model is a repository of its own, called like its folder."""
SHARED = (VAE_FOLDER, TEXT_ENCODER_FOLDER)

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
FOLDER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?")
FETCHED_NAMES = re.compile(
    r"config\.json|(model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|silence_latent\.pt|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.json|merges\.txt"
)


@dataclass(frozen=True)
class Source:
    """Where a folder comes from."""

    folder: str  # its name below the checkpoint directory
    repository: str
    subfolder: str = ""  # in the repository
    revision: str | None = None  # None takes the newest


@dataclass(frozen=True)
class Looked:
    """What there is to fetch for a folder."""

    source: Source
    files: int
    size: int  # bytes still to come
    left_out: tuple[str, ...]  # what the repository has beside them


@dataclass(frozen=True)
class Growing:
    """Part of a file is there."""

    source: Source
    name: str
    done: int
    size: int


@dataclass(frozen=True)
class Arrived:
    """A file is in place, its digest as published."""

    source: Source
    name: str
    size: int


@dataclass(frozen=True)
class Complete:
    """A folder holds everything."""

    source: Source
    folder: Path
    commit: str


Event = Looked | Growing | Arrived | Complete


def official_source(name: str, revision: str | None = None) -> Source:
    """Return where ACE-Step publishes a model, by its folder or its last words: "base", "xl-turbo", "vae".

    Raises:
        UserError: when it publishes none of that name, as far as is known.
    """
    known = {folder: folder for folder in (*OFFICIAL_NAMES, *SHARED)}
    short = {folder.removeprefix(OFFICIAL_PREFIX): folder for folder in OFFICIAL_NAMES}
    folder = (known | short).get(name)
    if folder is None:
        raise UserError(
            f"ACE-Step publishes no model {name}.{did_you_mean(name, known | short)} There are: "
            f"{', '.join(sorted(short))}, {', '.join(SHARED)}. Say where a community model is: --repo OWNER/NAME."
        )
    if folder in IN_MAIN:
        return Source(folder, MAIN_REPOSITORY, folder, revision)
    return Source(folder, f"ACE-Step/{folder}", "", revision)


def community_source(repository: str, folder: str = "", subfolder: str = "", revision: str | None = None) -> Source:
    """Return a model of anybody's.

    Args:
        repository: OWNER/NAME on huggingface.co.
        folder: what to call it here; the last word of the repository or subfolder unless given.
        subfolder: where it lies in the repository.
        revision: a branch, tag or commit.

    Raises:
        UserError: when a name cannot be one, or would lie outside the checkpoint directory.
    """
    problems = []
    if not REPOSITORY.fullmatch(repository):
        problems.append(f"A repository is called OWNER/NAME; got {repository}.")
    parts = PurePosixPath(subfolder).parts
    if subfolder and (subfolder.startswith("/") or not all(FOLDER.fullmatch(part) for part in parts)):
        problems.append(f"A subfolder is one or more folder names with / between; got {subfolder}.")
    name = folder or (parts[-1] if parts else repository.rsplit("/", 1)[-1])
    if not FOLDER.fullmatch(name) or name.split(".")[0].lower() in DEVICE_NAMES:
        problems.append(f"A model's folder cannot be called {name}: use letters, digits, -, _ and dots between them.")
    if problems:
        raise UserError(*problems)
    return Source(name, repository, "/".join(parts), revision)


def fetch_models(root: Path, sources: list[Source], hub: Hub, *, replace: bool = False) -> Iterator[Event]:
    """Fetch folders, one after the other, and check every byte.

    Args:
        root: the checkpoint directory.
        sources: what to fetch.
        hub: where from.
        replace: fetch files again whose bytes differ from what is published.

    Raises:
        UserError: when something cannot be fetched, does not fit the disk, is not what the hub states, or lies there
            already with other bytes. What is complete stays; what is not can be gone on with.
    """
    try:
        for source in sources:
            yield from _fetch(root, source, hub, replace=replace)
    except UnreachableError as error:
        missing = [source.folder for source in sources if not (root / source.folder).is_dir()]
        lack = f"Missing in {root}: {', '.join(missing)}. " if missing else f"All folders are there in {root}. "
        ways = "Try again when there is a network, or copy the folders from a machine that has them."
        raise UserError(*error.problems, lack + ways) from error


def _fetch(root: Path, source: Source, hub: Hub, *, replace: bool) -> Iterator[Event]:
    folder, staging = root / source.folder, root / f".{source.folder}.fetching"
    _refuse_links(root, folder, staging)
    listing = hub.listing(source.repository, source.revision)
    wanted, left_out = _choose(source, listing)
    there = {name: _look(folder / name, published) for name, published in wanted.items()}
    odd = [name for name, is_same in there.items() if is_same is False]
    if odd and not replace:
        raise CheckpointError(
            f"{folder} has other bytes than {source.repository} publishes in {', '.join(odd)}. Pass --replace to fetch "
            "them again, or move the folder away."
        )
    missing = {name: wanted[name] for name, is_same in there.items() if not is_same}
    size = sum(published.size for published in missing.values())
    yield Looked(source, len(missing), size, left_out)
    if missing and size > free_bytes(root):
        raise UserError(
            f"{source.folder} needs {gib(size)} more, and the disk of {root} has {gib(free_bytes(root))} left. "
            "Make room, or choose another --checkpoint-dir."
        )
    files = {
        name: FetchedFile(size=wanted[name].size, sha256=file_sha256(folder / name)) for name in there if there[name]
    }
    for name, published in missing.items():
        path = f"{source.subfolder}/{name}" if source.subfolder else name
        staging.mkdir(parents=True, exist_ok=True)
        place = staging / f"{name}.part"
        for done in hub.fetch(source.repository, listing.commit, path, place):
            yield Growing(source, name, done, published.size)
        digest = _verify(place, name, published, source)
        folder.mkdir(exist_ok=True)
        place.replace(folder / name)
        files[name] = FetchedFile(size=published.size, sha256=digest)
        yield Arrived(source, name, published.size)
    write_record(folder, FetchRecord(repository=source.repository, revision=listing.commit, files=files))
    shutil.rmtree(staging, ignore_errors=True)
    yield Complete(source, folder, listing.commit)


def _refuse_links(*paths: Path) -> None:
    """Refuse to write through a link that leads elsewhere; the root itself may be one.

    Raises:
        CheckpointError: naming it.
    """
    for path in paths[1:]:
        inside = list(path.iterdir()) if path.is_dir() and not path.is_symlink() else []
        links = [entry for entry in (path, *inside) if entry.is_symlink()]
        if links:
            raise CheckpointError(
                f"{links[0]} is a link to {links[0].resolve()}. Nothing is fetched through links: put a real folder or "
                "file there, or remove it."
            )


def _choose(source: Source, listing: Listing) -> tuple[dict[str, Published], tuple[str, ...]]:
    """Return the files of the folder that are fetched, by name, and the names of those that are not.

    Raises:
        CheckpointError: when it holds no model.
    """
    before = f"{source.subfolder}/" if source.subfolder else ""
    here = {path.removeprefix(before): item for path, item in listing.files.items() if path.startswith(before)}
    wanted = {name: item for name, item in sorted(here.items()) if FETCHED_NAMES.fullmatch(name)}
    if "config.json" not in wanted or not any(name.endswith(".safetensors") for name in wanted):
        where = f"{source.repository}{f', folder {source.subfolder},' if source.subfolder else ''}"
        raise CheckpointError(
            f"{where} holds no model: config.json and weights as safetensors are expected; it has {len(here)} files. "
            "Name the right folder with --subfolder."
        )
    return wanted, tuple(sorted(name for name in here.keys() - wanted.keys() if "/" not in name))


def _look(path: Path, published: Published) -> bool | None:
    """Tell whether a file is there and as published; None when it is not there."""
    if not path.is_file():
        return None
    return path.stat().st_size == published.size and _is_published(path, published)


def _is_published(path: Path, published: Published) -> bool:
    """Compare a file's bytes with the digest that the hub states; of files without one only the size is known."""
    if published.sha256:
        return file_sha256(path) == published.sha256
    return not published.git_id or _git_id(path) == published.git_id


def _git_id(path: Path) -> str:
    """Return the SHA-1 by which git knows a file's bytes."""
    found = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found.update(piece)
    return found.hexdigest()


def _verify(place: Path, name: str, published: Published, source: Source) -> str:
    """Return a fetched file's SHA-256 once it is known to be the one that was stated.

    Raises:
        CheckpointError: when it has other bytes; it is deleted then.
    """
    if not place.is_file() or place.stat().st_size != published.size or not _is_published(place, published):
        place.unlink(missing_ok=True)
        raise CheckpointError(
            f"{name} of {source.repository} came with other bytes than the hub states. It was deleted; run the same "
            "command again."
        )
    return file_sha256(place)
