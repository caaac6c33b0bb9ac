"""Files and folders appear whole or not at all."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from woodshed.storage import clear_leftovers, drop_folder, save_tensors, whole_file, whole_folder, write_text


def test_a_folder_appears_with_everything_in_it(tmp_path):
    target = tmp_path / "deep" / "final"
    with whole_folder(target) as building:
        (building / "sub").mkdir()
        (building / "sub" / "a").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["final"]


def fail(building):
    (building / "new").write_text("half")
    raise RuntimeError("power cut")


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path):
    target = tmp_path / "final"
    with whole_folder(target) as building:
        (building / "old").write_text("1")
    with pytest.raises(RuntimeError), whole_folder(target) as building:
        fail(building)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_replacement_leaves_nothing_of_the_old_folder(tmp_path):
    target = tmp_path / "final"
    for name in ("old", "new"):
        with whole_folder(target) as building:
            (building / name).write_text("1")
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_replacement_cut_between_its_two_renames_is_undone(tmp_path):
    target, outgoing = tmp_path / "final", tmp_path / ".final.outgoing"
    outgoing.mkdir()
    (outgoing / "old").write_text("1")
    with pytest.raises(RuntimeError), whole_folder(target) as building:
        fail(building)
    assert [path.name for path in target.iterdir()] == ["old"]


def test_leftovers_of_a_killed_run_do_not_get_into_the_new_folder(tmp_path):
    leftover = tmp_path / ".final.writing"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    with whole_folder(tmp_path / "final") as building:
        (building / "a").write_text("1")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["a"]


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / "run.toml"
    write_text(path, "old")

    def break_off() -> None:
        with whole_file(path) as building:
            building.write_text("ha")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        break_off()
    assert path.read_text() == "old"
    write_text(path, "new ünï")
    assert path.read_text(encoding="utf-8") == "new ünï"
    assert [item.name for item in tmp_path.iterdir()] == ["run.toml"]


def test_a_tensor_file_depends_on_its_content_alone_and_reads_back(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "e": torch.zeros(0)}
    contents = set()
    for number in range(20):
        header = {f"key{i}": "ünï\n" for i in range(5)}
        save_tensors(tmp_path / f"{number}", tensors, header)
        contents.add((tmp_path / f"{number}").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == header
        for name, value in tensors.items():
            assert torch.equal(file.get_tensor(name), value)
            assert file.get_tensor(name).dtype == value.dtype


@pytest.fixture
def disk(monkeypatch):
    """The names that were flushed and renamed, in that order."""
    done = []
    true_flush, true_rename, true_replace = os.fsync, Path.rename, Path.replace

    def flush(handle):
        done.append(("flush", Path(f"/proc/self/fd/{handle}").readlink().name))
        true_flush(handle)

    def renamed(how):
        def rename(path, target):
            done.append(("rename", path.name, Path(target).name))
            return how(path, target)

        return rename

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", renamed(true_rename))
    monkeypatch.setattr(Path, "replace", renamed(true_replace))
    return done


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to tell what a handle belongs to")


@on_linux
def test_what_is_in_a_folder_is_flushed_before_its_name_and_the_folder_around_it_last(tmp_path, disk):
    with whole_folder(tmp_path / "final") as building:
        (building / "deep").mkdir()
        (building / "deep" / "tensor").write_text("1")
        (building / "adapter").write_text("2")
    flushed = [name for what, name, *_ in disk if what == "flush"]
    assert sorted(flushed) == sorted(["tensor", "deep", "adapter", ".final.writing", tmp_path.name])
    assert flushed.index("tensor") < flushed.index("deep") < flushed.index(".final.writing")
    assert disk[-3:] == [("flush", ".final.writing"), ("rename", ".final.writing", "final"), ("flush", tmp_path.name)]


@on_linux
def test_a_file_is_flushed_before_its_name_and_the_folder_around_it_after(tmp_path, disk):
    write_text(tmp_path / "run.toml", "new")
    named = ("rename", ".run.toml.writing", "run.toml")
    assert disk == [("flush", ".run.toml.writing"), named, ("flush", tmp_path.name)]


def test_a_dropped_folder_leaves_nothing(tmp_path):
    (tmp_path / "old" / "deep").mkdir(parents=True)
    (tmp_path / "old" / "deep" / "file").write_text("1")
    drop_folder(tmp_path / "old")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_behind_is_undone(tmp_path):
    for name in (".best.outgoing", ".final.outgoing", "final", ".checkpoint-epoch-2.writing", ".old.dropped", ".mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".run.toml.writing").write_text("ha")
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"best", "final", ".mine"}
    assert (tmp_path / "best" / "file").read_text() == ".best.outgoing"  # its successor never came
    assert (tmp_path / "final" / "file").read_text() == "final"
