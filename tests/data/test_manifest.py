"""Manifests of ours and of ACE-Step, of any age and from any system."""

import json

import pytest

from woodshed.data.manifest import Manifest, read_manifest
from woodshed.errors import DataError


@pytest.fixture
def manifest(tmp_path):
    """Read a manifest of this content: text as it is, anything else as JSON."""

    def read(content: object) -> Manifest:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        return read_manifest(tmp_path)

    return read


def test_without_a_manifest_nothing_is_known(tmp_path):
    assert read_manifest(tmp_path) == Manifest()
    assert Manifest().samples is None


def test_the_manifest_of_the_original_is_read(golden):
    found = read_manifest(golden / "preprocessed_fp32")
    assert found == Manifest(samples=("sample_a.pt", "sample_b.pt"))


def test_our_own_says_for_which_model_and_whether_all_is_done(manifest):
    ours = {"model": "acestep-v15-sft", "fingerprint": "f00", "conditioning": "inference", "is_complete": False}
    found = manifest({"metadata": {"custom_tag": "tag"}, "samples": ["a.pt"], "woodshed": ours})
    assert found == Manifest(("a.pt",), "acestep-v15-sft", "f00", "inference", "tag", is_complete=False)


@pytest.mark.parametrize(
    ("written", "position"),
    [("append", "append"), ("replace", "replace"), ("prepend", "prepend"), (None, "prepend"), ("sideways", "prepend")],
)
def test_the_position_of_the_trigger_tag_is_read_and_upstreams_default_where_there_is_none(manifest, written, position):
    found = manifest({"metadata": {"custom_tag": "tag", "tag_position": written}, "samples": ["a.pt"]})
    assert (found.custom_tag, found.tag_position) == ("tag", position)


@pytest.mark.parametrize(
    "written", ["a.pt", "./a.pt", "datasets/old/a.pt", "/gone/a.pt", "D:\\music\\tensors\\a.pt", "tensors\\a.pt"]
)
def test_only_the_names_of_the_files_count_because_folders_move(manifest, written):
    assert manifest({"samples": [written]}).samples == ("a.pt",)


def test_a_file_named_twice_is_one_sample(manifest):
    assert manifest({"samples": ["b.pt", "a.pt", "./b.pt"]}).samples == ("b.pt", "a.pt")


@pytest.mark.parametrize("metadata", [None, [], "tag", {"custom_tag": None}, {}])
def test_an_incomplete_manifest_is_still_one(manifest, metadata):
    assert manifest({"metadata": metadata, "samples": ["a.pt"], "woodshed": None}) == Manifest(samples=("a.pt",))


def test_a_byte_order_mark_is_no_problem(manifest):
    assert manifest("\ufeff" + json.dumps({"samples": ["夜.pt"]})).samples == ("夜.pt",)


@pytest.mark.parametrize("content", [[], 3, {}, {"samples": "a.pt"}, {"samples": [1]}, {"samples": [{"path": "a.pt"}]}])
def test_json_that_is_no_manifest_is_refused(manifest, content):
    with pytest.raises(DataError, match=r'manifest\.json is no manifest: it has no list "samples".* Delete it'):
        manifest(content)


@pytest.mark.parametrize("content", ["", "{", "samples: [a.pt]", "[" * 100_000])
def test_what_is_no_json_is_refused(manifest, content):
    with pytest.raises(DataError, match=r"manifest\.json cannot be read as a manifest \(.*Delete it"):
        manifest(content)
