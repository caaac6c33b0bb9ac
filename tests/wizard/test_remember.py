"""What is remembered comes back, and what is suggested is there."""

import pytest

from tests.wizard.conftest import write_song
from woodshed.settings.schema import EstimateSettings, GenerateSettings
from woodshed.wizard import remember
from woodshed.wizard.draft import Draft


def test_the_last_dataset_is_suggested_as_long_as_it_is_there(draft, tmp_path):
    write_song(tmp_path / "far away")
    remember.remember_dataset(tmp_path / "far away")
    assert remember.suggest("dataset_dir", draft, "train") == str(tmp_path / "far away")
    (tmp_path / "far away" / "a.pt").unlink()
    assert remember.suggest("dataset_dir", draft, "train") == "songs"


def test_a_dataset_is_found_below_the_working_folder_but_silence_is_none(home, draft):
    (home / "songs").rename(home / "data")
    assert remember.suggest("dataset_dir", draft, "train") == "data"
    (home / "data" / "a.pt").rename(home / "data" / "silence_latent.pt")
    assert remember.suggest("dataset_dir", draft, "train") is None


def test_a_folder_with_audio_is_suggested_for_preprocessing(home, song_draft):
    assert remember.suggest("audio_dir", song_draft, "preprocess") is None
    (home / "deep" / "music").mkdir(parents=True)
    (home / "deep" / "music" / "A.FLAC").touch()
    assert remember.suggest("audio_dir", song_draft, "preprocess") == str(home / "deep" / "music").removeprefix(
        f"{home}/"
    )


def test_an_output_folder_is_named_for_model_and_adapter_and_never_taken(home, draft):
    draft.try_answer("model", "acestep-v15-xl-turbo")
    assert remember.suggest("output_dir", draft, "train") == "output/xl-turbo-lora-1"
    (home / "output" / "xl-turbo-lora-1").mkdir(parents=True)
    assert remember.suggest("output_dir", draft, "train") == "output/xl-turbo-lora-2"


@pytest.mark.parametrize(
    ("kind", "job", "name"),
    [(EstimateSettings, "estimate", "estimate-1.json"), (GenerateSettings, "generate", "song-1.wav")],
)
def test_output_files_are_named_for_what_they_hold(kind, job, name):
    assert remember.suggest("output", Draft(kind), job) == f"output/{name}"


def test_looking_for_folders_ends_soon(home, monkeypatch):
    monkeypatch.setattr(remember, "MOST_FOLDERS", 5)
    for number in range(20):
        (home / f"x{number}").mkdir()
    assert len(list(remember.folders_below(home))) == 5


def test_only_known_bases_are_believed():
    remember.remember_base("mine", "sft")
    assert remember.known_base("mine") == "sft"
    remember.remember_base("mine", "nonsense")
    assert remember.known_base("mine") is None


def test_the_adapter_that_was_trained_last_is_suggested_as_long_as_it_is_there(home, draft):
    (home / "out" / "final").mkdir(parents=True)
    remember.remember_adapter(home / "out" / "final")
    assert remember.suggest("path", draft, "inspect") == "out/final"
    (home / "out" / "final").rmdir()
    assert remember.suggest("path", draft, "inspect") is None
