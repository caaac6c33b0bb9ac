"""Parts that were encoded apart become what one run gives, or a sentence says why they cannot."""

import json
import shutil
from pathlib import Path

import pytest

from woodshed import cli
from woodshed.data.encode import preprocess
from woodshed.data.events import Finished, Found, Notice, SongDone
from woodshed.data.merging import merge_shards
from woodshed.errors import DataError

pytestmark = pytest.mark.usefixtures("loaded_once", "music")


@pytest.fixture
def encode(settings_for):
    def run(**changes) -> list:
        return list(preprocess(settings_for(**changes)))

    return run


@pytest.fixture
def copies(music) -> Path:
    """Five more songs: two copies of one file in other folders, and others."""
    for folder in ("three", "four"):
        (music / folder).mkdir()
        shutil.copy(music / "a.wav", music / folder / "a.wav")
    return music


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("count", [2, 3, 9])
def test_parts_in_one_folder_become_what_one_run_gives_byte_for_byte(encode, tmp_path, count):
    encode(tensor_output=tmp_path / "whole" / "tensors")
    for number in range(count, 0, -1):
        encode(shard=f"{number}/{count}")
    done = merge_shards([tmp_path / "tensors"], tmp_path / "tensors")
    assert (done.songs, done.parts) == (5, count)
    assert content_of(tmp_path / "tensors") == content_of(tmp_path / "whole" / "tensors")
    names = sorted(content_of(tmp_path / "tensors"))
    assert sum(name.startswith("a-") for name in names) == 3, "copies are numbered and all there"


@pytest.mark.usefixtures("copies")
def test_parts_of_several_machines_become_one_and_stay_as_they_are(encode, tmp_path, open_for):
    encode(tensor_output=tmp_path / "whole" / "tensors")
    folders = [tmp_path / name for name in ("one", "two")]
    for number, folder in enumerate(folders, 1):
        encode(shard=f"{number}/2", tensor_output=folder)
    before = [content_of(folder) for folder in folders]
    merge_shards(folders, tmp_path / "tensors")
    assert content_of(tmp_path / "tensors") == content_of(tmp_path / "whole" / "tensors")
    assert [content_of(folder) for folder in folders] == before
    assert len(open_for()) == 5
    merge_shards(folders, folders[0])
    assert content_of(folders[0]).keys() == content_of(tmp_path / "tensors").keys()


def test_a_part_says_which_one_it_is_and_counts_only_its_own(encode, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    events = encode()
    assert Found(2, 0, "cpu", "float32", "2/2") in events
    (notice,) = (event.text for event in events if isinstance(event, Notice) and "part" in event.text)
    assert notice == "This is part 2/2 of the songs, by RANK and WORLD_SIZE; --shard 1/1 takes all."
    assert (events[-1].encoded, events[-1].shard) == (2, "2/2")


def test_a_second_run_of_a_part_changes_nothing(encode, tmp_path):
    encode(shard="1/2")
    before = content_of(tmp_path / "tensors")
    end = encode(shard="1/2")[-1]
    assert (end.encoded, end.unchanged) == (0, 1)
    assert content_of(tmp_path / "tensors") == before


def test_a_part_without_songs_is_no_failure(encode, tmp_path):
    end = encode(shard="9/9")[-1]
    assert isinstance(end, Finished)
    assert (end.encoded, end.failed) == (0, 0)
    assert list(content_of(tmp_path / "tensors")) == ["manifest-9-of-9.json"]


def test_a_part_whose_songs_all_fail_is_a_failure_and_the_other_parts_can_still_be_merged(encode, music, tmp_path):
    (music / "a.wav").write_bytes(b"no sound at all")
    with pytest.raises(DataError, match="No song could be encoded: all 1 failed"):
        encode(shard="1/3")
    for number in (2, 3):
        encode(shard=f"{number}/3")
    assert merge_shards([tmp_path / "tensors"], tmp_path / "tensors").songs == 2


def test_an_interrupted_part_keeps_its_own_intermediate_results(settings_for, encode, tmp_path):
    events = preprocess(settings_for(shard="1/2"))
    for event in events:
        if isinstance(event, SongDone) and event.step == "text":
            events.close()
    folder = tmp_path / "tensors" / ".unfinished-1-of-2"
    assert folder.is_dir()
    encode(shard="2/2")
    assert folder.is_dir(), "another part leaves it alone"
    encode(shard="1/2")
    assert not folder.exists()
    merge_shards([tmp_path / "tensors"], tmp_path / "tensors")


def test_training_refuses_parts_until_they_are_merged(encode, open_for, tmp_path):
    encode(shard="1/2")
    with pytest.raises(DataError, match=r"is in 1 parts that are not put together yet\. Run woodshed dataset merge"):
        open_for()
    encode()
    assert len(open_for()) == 3, "a run over all songs needs no parts"
    assert not list((tmp_path / "tensors").glob("manifest-*"))


def two_parts(encode):
    encode(shard="1/2")
    encode(shard="2/2")


CASES = {
    "a missing part": (lambda folder: (folder / "manifest-2-of-2.json").unlink(), "Parts are missing: 2/2"),
    "an interrupted part": (
        lambda folder: edit(folder / "manifest-2-of-2.json", lambda it: it["woodshed"].update(is_complete=False)),
        r"manifest-2-of-2\.json says that its part was interrupted",
    ),
    "a missing song": (lambda folder: next(folder.glob("a-*.pt")).unlink(), r"names files that are not there: a-"),
    "other songs": (
        lambda folder: edit(folder / "manifest-2-of-2.json", lambda it: it["woodshed"]["shard"].update(songs="x")),
        "The parts were made from different songs",
    ),
    "other settings": (
        lambda folder: edit(folder / "manifest-2-of-2.json", lambda it: it["woodshed"]["shard"].update(settings="x")),
        "The parts were made from different settings or models",
    ),
    "another division": (
        lambda folder: (
            shutil.copy(folder / "manifest-2-of-2.json", folder / "manifest-3-of-3.json")
            and edit(folder / "manifest-3-of-3.json", lambda it: it["woodshed"]["shard"].update(number=3, count=3))
        ),
        "different divisions: into 2 and 3",
    ),
    "no manifest at all": (lambda folder: (folder / "manifest-1-of-2.json").write_text("{"), "cannot be read as the"),
    "a manifest of something else": (lambda folder: (folder / "manifest-1-of-2.json").write_text("[]"), "cannot be re"),
}


@pytest.mark.parametrize(("spoil", "says"), CASES.values(), ids=list(CASES))
def test_parts_that_are_no_dataset_are_refused_and_nothing_is_written(encode, tmp_path, spoil, says):
    two_parts(encode)
    spoil(tmp_path / "tensors")
    before = content_of(tmp_path / "tensors")
    with pytest.raises(DataError, match=says):
        merge_shards([tmp_path / "tensors"], tmp_path / "out")
    assert content_of(tmp_path / "tensors") == before
    assert not (tmp_path / "out").exists()


def test_really_different_settings_are_noticed(encode, tmp_path):
    encode(shard="1/2")
    encode(shard="2/2", language="ja")
    with pytest.raises(DataError, match="different settings or models"):
        merge_shards([tmp_path / "tensors"], tmp_path / "tensors")


def test_a_part_given_twice_is_refused(encode, tmp_path):
    two_parts(encode)
    shutil.copytree(tmp_path / "tensors", tmp_path / "again")
    with pytest.raises(DataError, match="Parts are there more than once: 1/2, 2/2"):
        merge_shards([tmp_path / "tensors", tmp_path / "again"], tmp_path / "out")


def test_folders_without_parts_are_all_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There is no folder") as refusal:
        merge_shards([tmp_path / "gone", tmp_path / "empty"], tmp_path / "out")
    assert len(refusal.value.problems) == 1
    with pytest.raises(DataError, match="There are no parts of a dataset"):
        merge_shards([tmp_path / "empty"], tmp_path / "out")


def test_the_command_merges_and_says_what_it_did(encode, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    two_parts(encode)
    assert cli.main(["dataset", "merge", str(tmp_path / "tensors"), "--plain"]) == 0
    assert capsys.readouterr().out.startswith("3 songs of 2 parts are one dataset now: ")
    assert cli.main(["dataset", "merge", str(tmp_path / "tensors"), "--plain"]) == 1
    assert "There are no parts of a dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("merge",), "a folder of songs called merge is ./merge"),
        (("merge", "a", "b"), "Say where the dataset goes with --output"),
        (("a", "b"), "Only `woodshed dataset merge` takes several folders"),
    ],
)
def test_a_merge_that_is_typed_wrongly_is_a_usage_error(words, says, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    assert cli.main(["dataset", *words, "--plain"]) == 2
    assert says in capsys.readouterr().err
