"""Fetching from an injected hub: what is taken, what is refused, and what lies on the disk afterwards."""

import hashlib
import shutil
from collections import namedtuple

import pytest

from tests.models.standin_hub import git_id
from woodshed.errors import CheckpointError, UserError
from woodshed.models.fetch import (
    FETCHED_NAMES,
    Arrived,
    Complete,
    Looked,
    Source,
    community_source,
    fetch_models,
    official_source,
)
from woodshed.models.fetched import RECORD, read_record
from woodshed.models.hub import Listing, Published, UnreachableError

COMMIT = "a" * 40
GOOD = {"config.json": b"{}", "model.safetensors": b"weights", "silence_latent.pt": b"silence"}
MINE = Source("mine", "someone/mine")
LARGE = (".safetensors", ".pt")


def published(name, content):
    if name.endswith(LARGE):
        return Published(len(content), sha256=hashlib.sha256(content).hexdigest())
    return Published(len(content), git_id=git_id(content))


class FakeHub:
    """Files by path; what is sent may differ from what is listed."""

    def __init__(self, files, sent=None):
        self.files, self.sent, self.fetched = files, sent or {}, []
        self.unreachable_after = None

    def listing(self, repository, _revision):
        if repository == "nobody/home":
            raise UnreachableError("nobody/home cannot be reached.")
        return Listing(COMMIT, {path: published(path, content) for path, content in self.files.items()})

    def fetch(self, repository, commit, path, place):
        assert commit == COMMIT
        if len(self.fetched) == self.unreachable_after:
            raise UnreachableError(f"{repository} cannot be reached.")
        self.fetched.append(path)
        place.write_bytes(self.sent.get(path, self.files[path]))
        yield place.stat().st_size


def run(root, hub, *sources, **options):
    return list(fetch_models(root, list(sources or [MINE]), hub, **options))


def listing(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "folder", "repository", "subfolder"),
    [
        ("base", "acestep-v15-base", "ACE-Step/acestep-v15-base", ""),
        ("acestep-v15-xl-sft", "acestep-v15-xl-sft", "ACE-Step/acestep-v15-xl-sft", ""),
        ("turbo", "acestep-v15-turbo", "ACE-Step/Ace-Step1.5", "acestep-v15-turbo"),
        ("vae", "vae", "ACE-Step/Ace-Step1.5", "vae"),
        ("Qwen3-Embedding-0.6B", "Qwen3-Embedding-0.6B", "ACE-Step/Ace-Step1.5", "Qwen3-Embedding-0.6B"),
    ],
)
def test_a_published_model_is_known_by_its_folder_or_its_last_words(name, folder, repository, subfolder):
    assert official_source(name) == Source(folder, repository, subfolder)


def test_an_unknown_model_is_answered_with_those_there_are_and_never_guessed():
    with pytest.raises(UserError, match=r"no model xl-tubro. Did you mean xl-turbo\?.*--repo OWNER/NAME"):
        official_source("xl-tubro")


def test_a_model_arrives_with_its_record_and_leaves_nothing_else(tmp_path):
    events = run(tmp_path, FakeHub(GOOD))
    assert isinstance(events[0], Looked)
    assert sorted(event.name for event in events if isinstance(event, Arrived)) == sorted(GOOD)
    assert isinstance(events[-1], Complete)
    assert listing(tmp_path) == {f"mine/{name}" for name in (*GOOD, RECORD)}
    record = read_record(tmp_path / "mine")
    assert {name: entry.sha256 for name, entry in record.files.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in GOOD.items()
    }


HOSTILE = (
    "modeling_acestep.py",
    "pytorch_model.bin",
    "model.pkl",
    "silence_latent.pt.py",
    "optimizer.pt",
    "../config.json",
    "../../etc/cron.d/x",
    "/etc/passwd",
    "sub/model.safetensors",
    "sub/../../config.json",
    "..\\config.json",
    "C:\\config.json",
    "config.json\n",
    "config.json:stream",
    "CON",
    ".git/config",
    "model-00001-of-00002.safetensors.py",
    "",
    RECORD,
)


def test_nothing_that_runs_and_nothing_outside_the_folder_is_ever_asked_for(tmp_path):
    root = tmp_path / "deep" / "root"
    hub = FakeHub(GOOD | dict.fromkeys(HOSTILE, b"open('owned', 'w')"))
    before = listing(tmp_path)
    (looked, *_) = run(root, hub)
    assert sorted(hub.fetched) == sorted(GOOD)
    assert listing(tmp_path) - before == {f"deep/root/mine/{name}" for name in (*GOOD, RECORD)}
    assert {"modeling_acestep.py", "pytorch_model.bin", "optimizer.pt"} <= set(looked.left_out)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_none_that_is_fetched(name):
    assert not FETCHED_NAMES.fullmatch(name)


def test_a_subfolder_of_a_repository_is_one_model_and_not_its_neighbours(tmp_path):
    files = {f"vae/{name}": content for name, content in GOOD.items()}
    hub = FakeHub(files | {"vae-old/config.json": b"old", "config.json": b"root"})
    run(tmp_path, hub, Source("vae", "x/y", "vae"))
    assert sorted(hub.fetched) == sorted(files)


@pytest.mark.parametrize(
    "name", ["../up", "/abs", "a/b", "con", "NUL.txt", "dot.", ".hidden", "a b", "-x", "x" * 200, "."]
)
def test_a_folder_name_that_leads_elsewhere_or_means_a_device_is_refused(name):
    with pytest.raises(UserError, match="cannot be called"):
        community_source("someone/mine", name)


@pytest.mark.parametrize("repository", ["mine", "a/b/c", "../x", "https://evil/x", "a/..", "a\\b/c", "/x", "a/b?x=1"])
def test_a_repository_name_that_is_none_is_refused(repository):
    with pytest.raises(UserError, match="OWNER/NAME"):
        community_source(repository)


@pytest.mark.parametrize("subfolder", ["../x", "/x", "a/../../b", "a//../b", ".git"])
def test_a_subfolder_that_leads_elsewhere_is_refused(subfolder):
    with pytest.raises(UserError, match="subfolder"):
        community_source("someone/mine", "", subfolder)


def test_a_community_model_is_called_like_its_subfolder_or_repository_unless_named():
    assert community_source("someone/mine").folder == "mine"
    assert community_source("someone/many", "", "sets/jazz") == Source("jazz", "someone/many", "sets/jazz")
    assert community_source("someone/mine", "other").folder == "other"


@pytest.mark.parametrize("link", ["mine", ".mine.fetching", "mine/model.safetensors"])
def test_nothing_is_written_through_a_link(tmp_path, link):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"kept")
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(elsewhere / "kept" if link.endswith(".safetensors") else elsewhere)
    hub = FakeHub(GOOD)
    with pytest.raises(CheckpointError, match="is a link to"):
        run(root, hub)
    assert hub.fetched == []
    assert listing(elsewhere) == {"kept"}
    assert (elsewhere / "kept").read_bytes() == b"kept"


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:-1] + b"!"])
def test_a_file_with_other_bytes_than_stated_never_gets_its_name(tmp_path, name, change):
    hub = FakeHub(GOOD, {name: change(GOOD[name])})
    with pytest.raises(CheckpointError, match=f"{name} of someone/mine came with other bytes"):
        run(tmp_path, hub)
    assert f"mine/{name}" not in listing(tmp_path)
    assert f"mine/{RECORD}" not in listing(tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    run(tmp_path, FakeHub(GOOD))  # and it goes on
    assert f"mine/{name}" in listing(tmp_path)


def test_what_is_there_is_not_fetched_again_and_what_is_missing_is(tmp_path):
    run(tmp_path, FakeHub(GOOD))
    (tmp_path / "mine" / "config.json").unlink()
    hub = FakeHub(GOOD)
    run(tmp_path, hub)
    assert hub.fetched == ["config.json"]
    assert sorted(read_record(tmp_path / "mine").files) == sorted(GOOD)


def test_files_of_the_users_own_are_replaced_only_when_asked_for(tmp_path):
    run(tmp_path, FakeHub(GOOD))
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"my own fine-tune")
    with pytest.raises(
        CheckpointError, match=r"other bytes than someone/mine publishes in model\.safetensors.*--replace"
    ):
        run(tmp_path, FakeHub(GOOD))
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == b"my own fine-tune"
    run(tmp_path, FakeHub(GOOD), replace=True)
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == GOOD["model.safetensors"]


def test_a_disk_that_is_too_full_is_said_before_the_first_byte(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 95, 5))
    hub = FakeHub(GOOD)
    with pytest.raises(UserError, match=r"needs .* more"):
        run(tmp_path, hub)
    assert (hub.fetched, listing(tmp_path)) == ([], set())


def test_a_repository_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        run(tmp_path, FakeHub({"config.json": b"{}", "pytorch_model.bin": b"pickle"}))
    assert listing(tmp_path) == set()


def test_what_was_complete_before_the_network_went_stays_and_the_rest_is_named(tmp_path):
    hub = FakeHub(GOOD)
    hub.unreachable_after = 4
    with pytest.raises(UserError) as caught:
        run(tmp_path, hub, MINE, Source("second", "x/second"), Source("third", "nobody/home"))
    assert "Missing in" in caught.value.problems[-1]
    assert "third" in caught.value.problems[-1]
    assert "mine," not in caught.value.problems[-1]
    assert f"mine/{RECORD}" in listing(tmp_path)
