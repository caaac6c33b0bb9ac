"""One set of toy songs and one toy checkpoint root for all tests of the room; nobody writes into them."""

from pathlib import Path

import pytest

from woodshed.models.checkpoints import CheckpointRoot, find_checkpoints
from woodshed.toy.checkpoint import build_toy_root
from woodshed.toy.songs import write_songs


@pytest.fixture(scope="session")
def songs_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("toy") / "songs")


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRoot:
    root = tmp_path_factory.mktemp("toy") / "checkpoints"
    build_toy_root(root)
    return find_checkpoints(root)
