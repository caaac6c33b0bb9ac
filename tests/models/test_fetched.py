"""What `woodshed models get` notes about a folder, and how a folder differs from it."""

import hashlib
import json

import pytest

from woodshed.errors import CheckpointError
from woodshed.models.fetched import RECORD, FetchedFile, FetchRecord, differences, read_record, write_record


@pytest.fixture
def fetched(tmp_path):
    """A folder with two files and their record."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(name.encode())
    files = {
        path.name: FetchedFile(size=len(path.name), sha256=hashlib.sha256(path.name.encode()).hexdigest())
        for path in sorted(tmp_path.iterdir(), reverse=True)
    }
    write_record(tmp_path, FetchRecord(repository="ACE-Step/x", revision="0f3c", files=files))
    return tmp_path


def test_a_record_is_read_as_it_was_written(fetched):
    record = read_record(fetched)
    assert record is not None
    assert (record.repository, record.revision, sorted(record.files)) == (
        "ACE-Step/x",
        "0f3c",
        ["config.json", "model.safetensors"],
    )
    assert differences(fetched, record, reads_all=True) == []


def test_a_folder_without_a_record_has_none(tmp_path):
    assert read_record(tmp_path) is None


def test_missing_shortened_and_changed_files_are_told_apart(fetched):
    record = read_record(fetched)
    (fetched / "config.json").write_bytes(b"confiG.json")
    (fetched / "model.safetensors").write_bytes(b"model")
    assert differences(fetched, record, reads_all=False) == ["model.safetensors has 5 bytes instead of 17"]
    assert differences(fetched, record, reads_all=True)[-1] == "config.json has other bytes"
    (fetched / "config.json").unlink()
    assert "config.json is missing" in differences(fetched, record, reads_all=False)


def test_a_record_that_points_out_of_its_folder_is_a_missing_file_and_never_read(fetched):
    (fetched.parent / "secret").write_bytes(b"config.json")
    record = read_record(fetched)
    hostile = FetchRecord(repository="x", revision="y", files={"../secret": record.files["config.json"]})
    assert differences(fetched, hostile, reads_all=True) == ["../secret is missing"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"repository": 1, "revision": "", "files": []}', "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / RECORD).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="woodshed-fetched"):
        read_record(tmp_path)


def test_a_digest_is_lower_case_hexadecimal(tmp_path):
    entry = {"size": 1, "sha256": "../../etc/passwd"}
    content = {"repository": "x", "revision": "y", "files": {"a": entry}}
    (tmp_path / RECORD).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        read_record(tmp_path)
