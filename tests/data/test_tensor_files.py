"""Files of tensors are read without executing them, and written whole or not at all."""

import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from woodshed.data import tensor_files
from woodshed.data.tensor_files import read_tensors, write_tensors
from woodshed.errors import DataError, UserError, collecting

CONTENT = {"latents": torch.arange(12.0).reshape(3, 4), "words": "夜の歌", "count": 3, "none": None}


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_written_is_read(tmp_path, mapped):
    write_tensors(tmp_path / "new folder" / "a.pt", CONTENT)
    found = read_tensors(tmp_path / "new folder" / "a.pt", mapped=mapped)
    assert torch.equal(found.pop("latents"), CONTENT["latents"])
    assert found == {"words": "夜の歌", "count": 3, "none": None}


def read_carelessly(path: Path) -> None:
    torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("save", "explode"),
    [
        (torch.save, read_carelessly),
        (lambda content, path: path.write_bytes(pickle.dumps(content)), lambda path: pickle.loads(path.read_bytes())),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_nothing_in_a_file_is_executed(tmp_path, save, explode, mapped, bomb):
    canary = tmp_path / "exploded"
    save({"latents": bomb(canary)}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt"):
        read_tensors(tmp_path / "a.pt", mapped=mapped)
    assert not canary.exists()
    explode(tmp_path / "a.pt")
    assert canary.exists(), "the bomb is a real one"


@pytest.mark.parametrize("content", [b"", b"x", b"words, no tensors\n" * 40, b"\0" * 500, pickle.dumps({"a": 1})])
def test_what_is_no_file_of_tensors_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"^a\.pt is no file of tensors, or only a part of one\. Preprocess that song"):
        read_tensors(tmp_path / "a.pt")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*a\.pt"):
        read_tensors(tmp_path / "a.pt")


def test_no_damage_gives_anything_but_a_refusal(tmp_path):
    path = tmp_path / "a.pt"
    write_tensors(path, CONTENT)
    whole, dice, refused = path.read_bytes(), random.Random(7), 0
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(5):
            spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
        path.write_bytes(spoilt[: dice.randrange(1, len(spoilt))] if dice.random() < 0.2 else spoilt)
        problems: list[str] = []
        with collecting(problems):
            read_tensors(path)
        assert all(problem.startswith("a.pt ") for problem in problems)
        refused += len(problems)
    assert refused > 100


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    write_tensors(path, CONTENT)

    true = Path.write_bytes

    def fill_the_disk(building, content):
        true(building, content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(UserError, match=r"a\.pt cannot be written \(No space left on device\)\. Make room") as caught:
        write_tensors(path, {"latents": torch.zeros(1)})
    assert not isinstance(caught.value, DataError), "the next song would fail as well"
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    assert torch.equal(read_tensors(path)["latents"], CONTENT["latents"])


def test_the_systems_reason_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "whole_file", lambda path: (tmp_path / "file" / path).open("wb"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)|cannot be written \(No such file"):
        write_tensors(Path("a.pt"), CONTENT)
