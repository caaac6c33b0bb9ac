"""Preprocessing as a whole: what a folder holds afterwards, what a second run redoes, what a stop in between leaves."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from woodshed import cli
from woodshed.data import passes
from woodshed.data.encode import preprocess
from woodshed.data.events import Finished, Found, SongDone, SongFailed
from woodshed.data.manifest import read_manifest
from woodshed.errors import DataError, UserError
from woodshed.settings.schema import PreprocessSettings

pytestmark = pytest.mark.usefixtures("loaded_once", "music")
SONGS = {"a.wav": {}, "one/b.wav": {}, "two/b.wav": {}}


@pytest.fixture
def counts(settings_for):
    """Preprocess and return (encoded, unchanged, failed)."""

    def run(**changes: object) -> tuple[int, int, int]:
        end = list(preprocess(settings_for(**changes)))[-1]
        assert isinstance(end, Finished)
        return end.encoded, end.unchanged, end.failed

    return run


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed_files(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """Return which files are new or different, without the ending and the digest."""
    return {name.rsplit("-", 1)[0] for name in after if before.get(name) != after[name] and name != "manifest.json"}


def stop_after(settings: PreprocessSettings, step: str, songs: int) -> None:
    """Close the generator in the middle, as Ctrl-C and a dead terminal do."""
    events = preprocess(settings)
    for event in events:
        if isinstance(event, SongDone) and (event.step, event.done) == (step, songs):
            events.close()
            return
    pytest.fail("it ended before")


def test_events_tell_what_happens_in_order(settings_for):
    events = list(preprocess(settings_for()))
    looked = events[:3]
    assert [(event.done, event.total) for event in looked] == [(1, 3), (2, 3), (3, 3)]
    assert looked[-1].bytes_done == looked[-1].bytes_total > looked[0].bytes_done > 0
    assert events[3] == Found(3, 0, "cpu", "float32")
    done = [event for event in events if isinstance(event, SongDone)]
    assert [(event.step, event.done, event.total) for event in done] == [
        (step, number, 3) for step in ("audio", "text", "conditions") for number in (1, 2, 3)
    ]
    assert {event.audio_seconds for event in done} == {0.25}
    end = events[-1]
    assert (end.encoded, end.unchanged, end.failed, end.audio_seconds) == (3, 0, 0, 0.75)
    assert end.seconds > 0


def test_the_folder_holds_a_file_for_every_song_a_manifest_and_nothing_else(counts, tmp_path):
    assert counts() == (3, 0, 0)
    names = sorted(content_of(tmp_path / "tensors"))
    assert [name.rsplit("-", 1)[0] for name in names] == ["a", "b", "b", "manifest.json"]


def test_the_manifest_is_one_that_other_tools_read(settings_for, write_json, tmp_path):
    path = write_json(SONGS, name="mine", custom_tag="tag", tag_position="append", genre_ratio=10)
    list(preprocess(settings_for(dataset_json=path)))
    manifest = json.loads((tmp_path / "tensors" / "manifest.json").read_text())
    ours = manifest.pop("woodshed")
    assert [name.rsplit("-", 1)[0] for name in manifest["samples"]] == ["a", "b", "b"]
    assert all((tmp_path / "tensors" / name).is_file() for name in manifest.pop("samples"))
    assert manifest == {
        "metadata": {
            "name": "mine",
            "custom_tag": "tag",
            "tag_position": "append",
            "num_samples": 3,
            "all_instrumental": False,
            "genre_ratio": 10,
        },
        "num_samples": 3,
    }
    assert (ours["model"], ours["conditioning"], ours["is_complete"]) == ("acestep-v15-base", "inference", True)


def test_the_manifest_says_what_the_user_chose_over_the_json(settings_for, write_json, tmp_path):
    path = write_json(SONGS, custom_tag="tag", tag_position="append", genre_ratio=10)
    list(preprocess(settings_for(dataset_json=path, tag_position="prepend", custom_tag="mine", genre_ratio=0)))
    metadata = json.loads((tmp_path / "tensors" / "manifest.json").read_text())["metadata"]
    assert (metadata["custom_tag"], metadata["tag_position"], metadata["genre_ratio"]) == ("mine", "prepend", 0)
    assert metadata["name"] == "tensors"


def test_a_dataset_of_instrumentals_says_so(settings_for, write_json, tmp_path):
    list(preprocess(settings_for(dataset_json=write_json({"a.wav": {"is_instrumental": True}}))))
    assert json.loads((tmp_path / "tensors" / "manifest.json").read_text())["metadata"]["all_instrumental"] is True


def test_training_opens_what_preprocessing_made(counts, open_for, tmp_path):
    counts(custom_tag="tag")
    dataset = open_for()
    assert len(dataset) == 3
    assert dataset.notices == ()
    assert dataset.custom_tag == "tag"
    sample = dataset[0]
    stored = torch.load(tmp_path / "tensors" / f"{sample.name}.pt", weights_only=True)
    assert torch.equal(sample.latents, stored["target_latents"])
    assert torch.equal(sample.conditions, stored["encoder_hidden_states"]), "nothing to trim"


def test_another_model_refuses_the_dataset_by_name_with_and_without_its_manifest(counts, open_for, tmp_path):
    counts()
    with pytest.raises(
        DataError, match="was made for acestep-v15-base, whose conditions mean nothing to acestep-v15-sft"
    ):
        open_for("sft")
    (tmp_path / "tensors" / "manifest.json").unlink()
    assert len(open_for("base")) == 3
    with pytest.raises(
        DataError, match=r"it was made for acestep-v15-base, whose conditions mean nothing to this model"
    ):
        open_for("sft")


def test_a_second_run_changes_nothing_and_loads_nothing(settings_for, tmp_path, monkeypatch):
    list(preprocess(settings_for()))
    before = content_of(tmp_path / "tensors")
    for name in ("load_vae", "load_text_encoder", "load_condition_encoder"):
        monkeypatch.delattr(passes, name)
    events = list(preprocess(settings_for()))
    assert events[3] == Found(3, 3, "cpu", "float32")
    assert not any(isinstance(event, SongDone) for event in events)
    assert (events[-1].encoded, events[-1].unchanged, events[-1].audio_seconds) == (0, 3, 0)
    assert content_of(tmp_path / "tensors") == before


def test_a_moved_folder_of_songs_and_a_moved_dataset_are_still_done(counts, music, tmp_path):
    counts()
    music.rename(tmp_path / "songs")
    (tmp_path / "tensors").rename(tmp_path / "moved")
    assert counts(audio_dir=tmp_path / "songs", tensor_output=tmp_path / "moved") == (0, 3, 0)


@pytest.mark.parametrize("change", [{"caption": "other"}, {"lyrics": "la la"}])
def test_a_changed_word_redoes_that_song_only(counts, write_json, tmp_path, change):
    counts(dataset_json=write_json(SONGS))
    before = content_of(tmp_path / "tensors")
    assert counts(dataset_json=write_json(SONGS | {"a.wav": change})) == (1, 2, 0)
    assert changed_files(before, content_of(tmp_path / "tensors")) == {"a"}


@pytest.mark.parametrize(
    ("changes", "heard"),
    [
        ({"custom_tag": "tag"}, 0),
        ({"model": "acestep-v15-sft"}, 0),
        ({"conditioning": "legacy"}, 0),
        ({"max_duration": 0.2}, 3),
        ({"seed": 43}, 3),
        ({"latents": "mean"}, 3),
        ({"normalize": "peak"}, 3),
    ],
)
def test_songs_are_heard_again_only_for_what_changes_their_sound(
    settings_for, counts, tmp_path, monkeypatch, changes, heard
):
    counts()
    decoded, true = [], passes.audio.decode
    monkeypatch.setattr(passes.audio, "decode", lambda path, **how: decoded.append(path) or true(path, **how))
    assert counts(**changes) == (3, 0, 0)
    assert len(decoded) == heard
    list(preprocess(settings_for(tensor_output=tmp_path / "anew" / "tensors", **changes)))
    names = [path.name for path in (tmp_path / "anew" / "tensors").glob("*.pt")]
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "tensors" / name).read_bytes() == (tmp_path / "anew" / "tensors" / name).read_bytes()


def test_changed_sound_redoes_that_song_only_and_the_old_one_takes_no_part(
    counts, music, write_audio, tones, tmp_path, open_for
):
    counts()
    before = content_of(tmp_path / "tensors")
    write_audio(music / "one" / "b.wav", tones(0.3, channels=1))
    assert counts() == (1, 2, 0)
    assert changed_files(before, content_of(tmp_path / "tensors")) == {"b"}
    assert sorted(len(open_for()[index].latents) for index in range(3)) == [6, 6, 7]


@pytest.mark.parametrize("change", [{"seed": 43}, {"model": "acestep-v15-sft"}])
def test_a_changed_setting_redoes_every_song(counts, tmp_path, change):
    counts()
    before = content_of(tmp_path / "tensors")
    assert counts(**change) == (3, 0, 0)
    assert len([name for name, data in content_of(tmp_path / "tensors").items() if before[name] != data]) >= 3


def test_a_longer_limit_redoes_only_the_songs_that_were_cut(counts, music, write_audio, tones):
    write_audio(music / "long.wav", tones(0.5))
    assert counts(max_duration=0.4) == (4, 0, 0)
    assert counts(max_duration=0.45) == (1, 3, 0)


def test_more_songs_are_added_and_songs_that_are_gone_are_left_out(counts, music, write_audio, tones, open_for):
    counts()
    write_audio(music / "new.wav", tones(0.2))
    (music / "a.wav").unlink()
    assert counts() == (1, 2, 0)
    assert [name.rsplit("-", 1)[0] for name in open_for().names] == ["new", "b", "b"]


def test_songs_of_one_name_are_all_there(counts, open_for):
    counts()
    latents = [open_for()[index].latents for index in (1, 2)]
    assert not torch.equal(*latents)


def test_a_song_that_fails_is_named_and_counted_and_the_others_are_done(settings_for, music, open_for):
    (music / "a.wav").write_bytes(b"no sound at all")
    events = list(preprocess(settings_for()))
    (failed,) = (event for event in events if isinstance(event, SongFailed))
    assert "a.wav is no audio file that can be read" in failed.problem
    assert (events[-1].encoded, events[-1].failed) == (2, 1)
    assert len(open_for()) == 2


def test_a_mended_song_is_added_by_the_next_run(counts, music, write_audio, tones):
    (music / "a.wav").write_bytes(b"no sound at all")
    assert counts() == (2, 0, 1)
    assert counts() == (0, 2, 1)
    write_audio(music / "a.wav", tones(0.2))
    assert counts() == (1, 2, 0)


def test_nothing_but_failures_is_an_error_and_leaves_nothing(settings_for, music, tmp_path):
    for path in music.rglob("*.wav"):
        path.write_bytes(b"no sound at all")
    with pytest.raises(DataError, match="No song could be encoded: all 3 failed for the reasons above"):
        list(preprocess(settings_for()))
    assert [path.name for path in tmp_path.iterdir()] == ["music"]


@pytest.mark.parametrize(("step", "songs"), [("audio", 1), ("text", 2), ("conditions", 1)])
def test_a_run_that_is_stopped_goes_on_where_it_was(settings_for, counts, tmp_path, monkeypatch, step, songs):
    whole = settings_for(tensor_output=tmp_path / "whole")
    list(preprocess(whole))
    stop_after(settings_for(), step, songs)
    decoded: Counter[str] = Counter()
    true = passes.audio.decode
    monkeypatch.setattr(
        passes.audio, "decode", lambda path, **limit: (decoded.update([path.name]), true(path, **limit))[1]
    )
    already = songs if step == "conditions" else 0
    assert counts() == (3 - already, already, 0)
    assert decoded.total() == (3 - songs if step == "audio" else 0), "no song is decoded twice"
    found, expected = content_of(tmp_path / "tensors"), content_of(tmp_path / "whole")
    found.pop("manifest.json"), expected.pop("manifest.json")
    assert found == expected


def test_what_a_stopped_run_leaves_can_be_trained_on_and_says_what_it_is(settings_for, open_for, tmp_path):
    stop_after(settings_for(), "conditions", 2)
    dataset = open_for()
    assert len(dataset) == 2
    assert "was interrupted: only the songs that were finished take part" in dataset.notices[0]
    assert not read_manifest(tmp_path / "tensors").is_complete
    list(preprocess(settings_for()))
    assert open_for().notices == ()


def test_a_run_that_is_killed_goes_on_too_and_is_known_to_be_unfinished(settings_for, counts, open_for, tmp_path):
    stop_after(settings_for(), "conditions", 2)
    (tmp_path / "tensors" / "manifest.json").unlink()  # a killed process writes none
    assert "was interrupted" in open_for().notices[0]
    assert counts() == (1, 2, 0)


def test_a_killed_change_of_model_is_no_mixture_of_conditions(settings_for, counts, open_for, tmp_path):
    counts()
    shutil.copy(tmp_path / "tensors" / "manifest.json", tmp_path / "old.json")
    stop_after(settings_for(model="acestep-v15-sft"), "conditions", 2)
    (tmp_path / "old.json").replace(tmp_path / "tensors" / "manifest.json")
    for model in ("base", "sft"):
        with pytest.raises(DataError, match="whose conditions mean nothing"):
            open_for(model)
    assert counts() == (2, 1, 0), "the two that the other run has replaced are made again"
    assert len(open_for()) == 3


def test_a_run_stopped_before_the_first_song_leaves_the_older_dataset_alone(settings_for, counts, open_for):
    counts()
    stop_after(settings_for(seed=43), "text", 3)
    assert len(open_for()) == 3


def test_damaged_intermediate_results_are_made_again(settings_for, counts, tmp_path):
    stop_after(settings_for(), "audio", 3)
    for path in (tmp_path / "tensors" / ".unfinished").glob("*.latents.pt"):
        path.write_bytes(path.read_bytes()[:-300])
    assert counts() == (3, 0, 0)


def test_intermediate_results_of_other_settings_are_not_used(settings_for, counts, tmp_path):
    counts(tensor_output=tmp_path / "whole", seed=43)
    stop_after(settings_for(seed=42), "audio", 3)
    counts(seed=43)
    found, expected = content_of(tmp_path / "tensors"), content_of(tmp_path / "whole")
    assert {name: data for name, data in found.items() if name.endswith(".pt")} == {
        name: data for name, data in expected.items() if name.endswith(".pt")
    }


@pytest.mark.parametrize("function", ["encode_waveform", "encode_conditions"])
def test_a_bug_of_ours_keeps_its_traceback_and_leaves_nothing_half_written(
    settings_for, monkeypatch, tmp_path, function
):
    true, calls = getattr(passes, function), iter(range(10))

    def fail(*arguments):
        if next(calls) == 1:
            raise ZeroDivisionError
        return true(*arguments)

    monkeypatch.setattr(passes, function, fail)
    with pytest.raises(ZeroDivisionError):
        list(preprocess(settings_for()))
    assert not list(tmp_path.rglob("*.writing"))
    finished = list((tmp_path / "tensors").glob("*.pt"))
    assert len(finished) == (1 if function == "encode_conditions" else 0)
    assert (tmp_path / "tensors" / "manifest.json").exists() == bool(finished)


def test_everything_wrong_is_said_before_the_first_song(settings_for, tmp_path):
    (tmp_path / "file").touch()
    settings = settings_for(
        model="acestep-v16", device="cuda:99", audio_dir=tmp_path / "gone", tensor_output=tmp_path / "file"
    )
    with pytest.raises(UserError) as refusal:
        list(preprocess(settings))
    said = refusal.value.problems
    assert len(said) == 4
    for words in ("no device cuda:99", "no model acestep-v16", "no audio folder", "cannot be made:"):
        assert any(words in problem for problem in said)


@pytest.mark.parametrize("missing", ["vae", "Qwen3-Embedding-0.6B"])
def test_a_missing_part_of_the_model_is_said(settings_for, checkpoint_root, tmp_path, missing):
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoint_root, root, ignore=shutil.ignore_patterns(missing, "*xl*", "*sft", "*turbo"))
    with pytest.raises(UserError, match=f"has no folder {missing}"):
        list(preprocess(settings_for(checkpoint_dir=root)))


@pytest.mark.parametrize(
    "file",
    ["vae/diffusion_pytorch_model.safetensors", "Qwen3-Embedding-0.6B/tokenizer.json", "vae/config.json"],
)
def test_another_vae_or_text_encoder_redoes_every_song(counts, checkpoint_root, tmp_path, file):
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoint_root, root, ignore=shutil.ignore_patterns("*xl*", "*sft", "*turbo"))
    assert counts(checkpoint_dir=root) == (3, 0, 0)
    shutil.copytree(root, tmp_path / "moved")
    assert counts(checkpoint_dir=tmp_path / "moved") == (0, 3, 0), "where they lie does not matter"
    with (root / file).open("ab") as written:
        written.write(b" ")
    if file.endswith("safetensors"):
        content = bytearray((checkpoint_root / file).read_bytes())
        content[-2] ^= 1
        (root / file).write_bytes(content)
    assert counts(checkpoint_dir=root) == (3, 0, 0)


def test_names_that_are_no_text_and_names_that_are_very_long_are_encoded(counts, music, open_for):
    (music / "a.wav").rename(music / ("夜の歌" * 27 + ".wav"))
    (music / "one" / "b.wav").rename(music / "one" / "caf\udce9 \U0001f3b5.wav")
    assert counts() == (3, 0, 0)
    assert counts() == (0, 3, 0)
    assert len(open_for()) == 3


def test_the_command_fails_when_any_song_fails(music, checkpoint_root, tmp_path, capsys):
    words = ["preprocess", "--plain", "--checkpoint-dir", str(checkpoint_root), "--model", "base", "--device", "cpu"]
    words += ["--audio-dir", str(music), "--tensor-output", str(tmp_path / "tensors")]
    assert cli.main(words) == 0
    (music / "a.wav").write_bytes(b"no sound at all")
    assert cli.main(words) == 1
    assert "a.wav is no audio file" in " ".join("".join(capsys.readouterr()).split())
