"""A dataset's digest: the same wherever the folder lies, another one for every difference that can be seen outside."""

import shutil

import pytest

from woodshed.data.identity import dataset_digest


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "songs"
    made.mkdir()
    for name in ("a.pt", "b.pt", "c.pt"):
        (made / name).write_bytes(b"12345")
    (made / "manifest.json").write_text("{}")
    return made


def digest(folder):
    return dataset_digest(list(folder.glob("*.pt")))


def test_a_folder_can_be_moved_and_listed_in_any_order(folder, tmp_path):
    before = digest(folder)
    shutil.move(folder, tmp_path / "elsewhere")
    assert digest(tmp_path / "elsewhere") == before
    files = sorted((tmp_path / "elsewhere").glob("*.pt"))
    assert dataset_digest(files[::-1]) == dataset_digest(files)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "c.pt").unlink(),
        lambda folder: (folder / "c.pt").rename(folder / "d.pt"),
        lambda folder: (folder / "c.pt").write_bytes(b"123456"),
        lambda folder: (folder / "d.pt").write_bytes(b"1"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
    ids=["a song less", "another name", "another size", "a song more", "another manifest", "no manifest"],
)
def test_every_difference_shows(folder, change):
    before = digest(folder)
    change(folder)
    assert digest(folder) != before


def test_names_cannot_run_into_sizes(folder):
    before = digest(folder)
    (folder / "c.pt").rename(folder / "c.p")
    assert dataset_digest([folder / "a.pt", folder / "b.pt", folder / "c.p"]) != before
