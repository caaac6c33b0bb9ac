"""Folders of sample files of any origin are found and read; whatever cannot be trained on is refused in words."""

import json
import os
import pickle
import shutil
import tracemalloc

import pytest
import torch

from woodshed.data import dataset
from woodshed.data.dataset import Demands, Sample, SongDataset, collate, open_dataset, read_sample, record_of
from woodshed.errors import DataError

DEMANDS = Demands(latent_channels=16, condition_width=32, fingerprint="f00")
NOT_OURS = "was not made by Woodshed: its conditions may differ"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tensors"


@pytest.fixture
def open_folder(folder):
    def open_it(path=folder, **changes) -> SongDataset:
        facts = {"latent_channels": 16, "condition_width": 32, "fingerprint": "f00", "model": "toy"} | changes
        return open_dataset(path, **facts)

    return open_it


def write_manifest(folder, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(text, encoding="utf-8")


# -- one file -------------------------------------------------------------------------------------------------------


def test_a_sample_is_read_as_it_was_written(write_sample):
    path = write_sample(frames=7, tokens=5)
    content, sample = torch.load(path, weights_only=True), read_sample(path, DEMANDS)
    assert sample.name == "song"
    assert torch.equal(sample.latents, content["target_latents"])
    assert torch.equal(sample.conditions, content["encoder_hidden_states"])
    assert torch.equal(sample.context, content["context_latents"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32, torch.bfloat16])
def test_padding_among_the_conditions_is_left_out_whatever_the_type_of_the_mask(write_sample, dtype):
    mask = torch.tensor([True, True, False, True, False])
    path = write_sample(tokens=5, encoder_attention_mask=mask.to(dtype))
    states = torch.load(path, weights_only=True)["encoder_hidden_states"]
    assert torch.equal(read_sample(path, DEMANDS).conditions, states[[0, 1, 3]])


def test_the_originals_files_are_read_and_trimmed_to_their_valid_conditions(golden, open_folder):
    found = open_folder(golden / "preprocessed_fp32")
    assert found.names == ("sample_a", "sample_b")
    assert [len(found[index].conditions) for index in (0, 1)] == [119, 105]
    assert [found[index].latents.shape for index in (0, 1)] == [(25, 16), (26, 16)]
    stored = torch.load(golden / "preprocessed_fp32" / "sample_a.pt", weights_only=True)
    assert torch.equal(found[0].conditions, stored["encoder_hidden_states"][stored["encoder_attention_mask"]])
    assert NOT_OURS in found.notices[0]


@pytest.mark.parametrize(
    "key", ["target_latents", "attention_mask", "encoder_hidden_states", "context_latents", "metadata"]
)
def test_a_missing_key_is_named(write_sample, key):
    with pytest.raises(DataError, match=rf"^song\.pt: it lacks {key}\. Preprocess that song again\.$"):
        read_sample(write_sample(**{key: ...}), DEMANDS)


def test_an_unfinished_file_of_another_tool_lacks_its_conditions(write_sample):
    with pytest.raises(DataError, match="it lacks encoder_hidden_states, encoder_attention_mask"):
        read_sample(write_sample(encoder_hidden_states=..., encoder_attention_mask=...), DEMANDS)


def test_what_is_no_tensor_is_named(write_sample):
    with pytest.raises(DataError) as refusal:
        read_sample(write_sample(target_latents=[1.0, 2.0], context_latents=None), DEMANDS)
    assert refusal.value.problems == (
        "song.pt: target_latents is no tensor. Preprocess that song again.",
        "song.pt: context_latents is no tensor. Preprocess that song again.",
    )


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], "words"])
def test_a_file_without_a_dictionary_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "song.pt")
    with pytest.raises(DataError, match=f"it holds a {type(content).__name__} instead of a dictionary"):
        read_sample(tmp_path / "song.pt", DEMANDS)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("target_latents", (6, 64)),
        ("target_latents", (1, 6, 16)),
        ("context_latents", (6, 33)),
        ("context_latents", (5, 32)),
        ("encoder_hidden_states", (4, 2048)),
        ("encoder_hidden_states", (4,)),
        ("encoder_attention_mask", (3,)),
        ("encoder_attention_mask", (4, 1)),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(write_sample, key, shape):
    with pytest.raises(DataError) as refusal:
        read_sample(write_sample(**{key: torch.ones(shape)}), DEMANDS)
    assert f"song.pt: {key} has the shape {shape} instead of (" in str(refusal.value)
    assert "so it was made for another model" in str(refusal.value)


def test_every_wrong_shape_is_said(write_sample):
    with pytest.raises(DataError) as refusal:
        read_sample(write_sample(context_latents=torch.ones(2, 2), encoder_hidden_states=torch.ones(4, 3)), DEMANDS)
    assert len(refusal.value.problems) == 2


@pytest.mark.parametrize("latents", [torch.ones(0, 16), torch.tensor(1.0)])
def test_a_song_without_frames_is_refused(write_sample, latents):
    with pytest.raises(DataError, match="it has no frames"):
        read_sample(write_sample(target_latents=latents), DEMANDS)


def test_a_song_without_valid_conditions_is_refused(write_sample):
    with pytest.raises(DataError, match="it has no conditions"):
        read_sample(write_sample(encoder_attention_mask=torch.zeros(4, dtype=torch.bool)), DEMANDS)


@pytest.mark.parametrize("key", ["target_latents", "context_latents", "encoder_hidden_states"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(write_sample, key, value):
    whole = torch.load(write_sample(), weights_only=True)[key]
    whole[-1, -1] = value
    with pytest.raises(DataError, match=rf"song\.pt: {key} holds numbers that are not finite"):
        read_sample(write_sample(**{key: whole}), DEMANDS)


def test_a_sample_that_says_it_is_for_another_model_is_refused(write_sample):
    record = {"woodshed": {"fingerprint": "other", "model": "acestep-v15-sft"}}
    with pytest.raises(DataError, match=r"it was made for acestep-v15-sft, whose conditions mean nothing to this"):
        read_sample(write_sample(metadata=record), DEMANDS)
    assert read_sample(write_sample(metadata={"woodshed": {"fingerprint": "f00"}}), DEMANDS).name == "song"


@pytest.mark.parametrize("content", [None, [], {}, {"metadata": None}, {"metadata": {"woodshed": "x"}}])
def test_files_of_other_tools_have_no_record_of_ours(content):
    assert record_of(content) == {}


def test_nothing_in_a_sample_file_is_executed(write_sample, tmp_path, open_folder, bomb):
    write_sample("a")
    torch.save({"target_latents": bomb(tmp_path / "exploded")}, tmp_path / "tensors" / "b.pt")
    (tmp_path / "tensors" / "c.pt").write_bytes(pickle.dumps(bomb(tmp_path / "exploded")))
    with pytest.raises(DataError) as refusal:
        open_folder()
    assert [problem.split()[0] for problem in refusal.value.problems] == ["b.pt", "c.pt"]
    assert not (tmp_path / "exploded").exists()


# -- a folder -------------------------------------------------------------------------------------------------------


def test_without_a_manifest_every_pt_file_is_a_song_in_order(write_sample, open_folder):
    for name in ("b", "a", "夜の歌"):
        write_sample(name)
    found = open_folder()
    assert found.names == ("a", "b", "夜の歌")
    assert len(found) == 3
    assert found.custom_tag == ""
    assert NOT_OURS in found.notices[0]


@pytest.mark.parametrize("name", ["x.tmp.pt", ".x.pt", "._x.pt", ".x.pt.writing", "x.__writing__", "x.__writing__.pt"])
def test_unfinished_and_hidden_files_are_no_songs(write_sample, open_folder, folder, name):
    write_sample("song")
    (folder / name).write_bytes(b"half a file")
    assert open_folder().names == ("song",)


@pytest.mark.parametrize("name", ["my.writing-1a2b", "demo.tmp-1a2b", "a__writing__b", "x.pt"])
def test_songs_called_like_unfinished_files_are_songs(write_sample, open_folder, name):
    write_sample(name)
    assert open_folder().names == (name,)


def test_the_manifest_says_which_files_take_part_and_in_which_order(write_sample, open_folder, folder):
    for name in ("a", "b", "c"):
        write_sample(name)
    write_manifest(folder, '{"metadata": {"custom_tag": "tag"}, "samples": ["c.pt", "D:\\\\old place\\\\a.pt"]}')
    found = open_folder()
    assert found.names == ("c", "a")
    assert found.custom_tag == "tag"


def test_a_folder_that_was_moved_with_a_stale_manifest_is_read(golden, open_folder, folder):
    shutil.copytree(golden / "preprocessed_fp32", folder)
    write_manifest(folder, '{"samples": ["./datasets/tiny/sample_b.pt", "/home/me/tiny/sample_a.pt"]}')
    assert open_folder().names == ("sample_b", "sample_a")


def test_files_that_the_manifest_names_and_nobody_has_are_listed(write_sample, open_folder, folder):
    write_sample("a")
    names = ", ".join(f'"{number}.pt"' for number in range(10))
    write_manifest(folder, f'{{"samples": ["a.pt", {names}]}}')
    with pytest.raises(DataError, match=r"names files that are not there: 0\.pt, 1\.pt.* and 2 more\. Run woodshed"):
        open_folder()


def test_a_manifest_without_songs_is_refused(write_sample, open_folder, folder):
    write_sample("a")
    write_manifest(folder, '{"samples": []}')
    with pytest.raises(DataError, match="names no songs"):
        open_folder()


def test_a_folder_that_is_missing_or_empty_is_said(open_folder, folder):
    with pytest.raises(DataError, match=r"There is no dataset folder .*tensors\. Make one with woodshed preprocess"):
        open_folder()
    folder.mkdir()
    (folder / "song.wav").touch()
    with pytest.raises(DataError, match=r"There are no \.pt files in"):
        open_folder()


def test_a_dataset_for_another_variant_is_refused_by_name_before_its_files_are_read(write_sample, open_folder, folder):
    write_sample("a", target_latents=torch.ones(1))
    ours = '{"model": "acestep-v15-xl-turbo", "fingerprint": "other"}'
    write_manifest(folder, f'{{"samples": ["a.pt"], "woodshed": {ours}}}')
    with pytest.raises(DataError) as refusal:
        open_folder()
    assert str(refusal.value) == (
        f"The dataset {folder} was made for acestep-v15-xl-turbo, whose conditions mean nothing to toy. Preprocess the "
        "songs again with --model toy, or train on acestep-v15-xl-turbo."
    )


def test_a_dataset_of_ours_that_is_complete_needs_no_notice(write_sample, open_folder, folder):
    write_sample("a")
    write_manifest(folder, '{"samples": ["a.pt"], "woodshed": {"fingerprint": "f00", "is_complete": true}}')
    assert open_folder().notices == ()
    write_manifest(folder, '{"samples": ["a.pt"], "woodshed": {"fingerprint": "f00", "is_complete": false}}')
    assert "was interrupted" in open_folder().notices[0]


def test_every_file_that_cannot_be_used_is_named_at_once(write_sample, open_folder):
    write_sample("good")
    for number in range(3):
        write_sample(f"bad{number}", metadata=...)
    with pytest.raises(DataError) as refusal:
        open_folder()
    assert [problem.split(":")[0] for problem in refusal.value.problems] == ["bad0.pt", "bad1.pt", "bad2.pt"]


def test_a_wholly_wrong_folder_does_not_flood_the_screen(write_sample, open_folder):
    for number in range(20):
        write_sample(f"bad{number:02}", metadata=...)
    with pytest.raises(DataError) as refusal:
        open_folder()
    assert len(refusal.value.problems) == 9
    assert refusal.value.problems[-1] == "There are 12 more problems of this kind."


def test_a_large_dataset_is_opened_without_reading_its_files(write_sample, open_folder, monkeypatch):
    for name in ("a", "b", "c"):
        write_sample(name, metadata=...)
    monkeypatch.setattr(dataset, "CHECKED_AT_OPENING", 2)
    found = open_folder()
    assert len(found) == 3
    with pytest.raises(DataError, match=r"^b\.pt: it lacks metadata"):
        found[1]


def test_the_weight_is_that_of_the_files_and_no_more_are_looked_at_than_must_be(write_sample, open_folder):
    weights = [write_sample(name, frames=frames).stat().st_size for name, frames in (("a", 5), ("b", 500))]
    found = open_folder()
    assert found.weight_up_to(sum(weights)) == sum(weights)
    assert found.weight_up_to(sum(weights) - 1) is None
    found.files[1].unlink()
    assert found.weight_up_to(weights[0] - 1) is None, "the first says it already"


def test_many_songs_are_a_few_hundred_bytes_each(write_sample, open_folder, folder):
    first = write_sample("song 0")
    names = ["song 0.pt", *(f"a song with a long name, number {number:06}.pt" for number in range(20_000))]
    for name in names[1:]:
        os.link(first, folder / name)
    write_manifest(folder, json.dumps({"samples": names, "woodshed": {"fingerprint": "f00"}}))
    tracemalloc.start()
    found = open_folder()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == len(names)
    assert held / len(names) < 500
    assert most / len(names) < 1500, "while the manifest is read"
    assert found[12_345].name == "a song with a long name, number 012344"


def test_a_dataset_travels_to_a_worker_small_and_whole(write_sample, open_folder):
    write_sample("a", frames=5_000)
    packed = pickle.dumps(open_folder())
    assert len(packed) < 2_000
    assert pickle.loads(packed)[0].latents.shape == (5_000, 16)


# -- a batch --------------------------------------------------------------------------------------------------------


def sample(name: str, frames: int, tokens: int) -> Sample:
    return Sample(name, torch.rand(frames, 2) + 1, torch.rand(tokens, 3) + 1, torch.rand(frames, 4) + 1)


def test_songs_of_one_length_lie_side_by_side_without_lengths():
    songs = [sample("a", 5, 3), sample("b", 5, 3)]
    batch = collate(songs)
    assert (batch.names, batch.frames) == (("a", "b"), (5, 5))
    assert batch.frame_lengths is None
    assert batch.condition_lengths is None
    for name in ("latents", "context", "conditions"):
        assert torch.equal(getattr(batch, name), torch.stack([getattr(song, name) for song in songs]))


def test_shorter_songs_are_padded_with_zeros_at_their_ends_and_their_lengths_are_kept():
    songs = [sample("a", 5, 3), sample("b", 2, 7)]
    batch = collate(songs)
    assert batch.frame_lengths.tolist() == [5, 2]
    assert batch.condition_lengths.tolist() == [3, 7]
    for row, song in enumerate(songs):
        for name in ("latents", "context", "conditions"):
            mine, padded = getattr(song, name), getattr(batch, name)[row]
            assert torch.equal(padded[: len(mine)], mine)
            assert not padded[len(mine) :].any()


@pytest.mark.parametrize(("second", "frames", "tokens"), [((5, 7), False, True), ((2, 3), True, False)])
def test_lengths_are_given_only_for_what_differs(second, frames, tokens):
    batch = collate([sample("a", 5, 3), sample("b", *second)])
    assert (batch.frame_lengths is not None) == frames
    assert (batch.condition_lengths is not None) == tokens


def test_a_batch_of_one_song_is_that_song():
    song = sample("a", 5, 3)
    batch = collate([song])
    assert torch.equal(batch.latents[0], song.latents)
    assert batch.frame_lengths is batch.condition_lengths is None


def test_a_batch_moves_to_a_device_and_a_precision_with_its_lengths_whole():
    batch = collate([sample("a", 5, 3), sample("b", 2, 7)]).to(torch.device("cpu"), torch.bfloat16)
    assert {batch.latents.dtype, batch.context.dtype, batch.conditions.dtype} == {torch.bfloat16}
    assert batch.frame_lengths.dtype == batch.condition_lengths.dtype == torch.long
    meta = batch.to(torch.device("meta"), torch.float32)
    places = {tensor.device.type for tensor in (meta.latents, meta.context, meta.conditions, meta.frame_lengths)}
    assert places == {"meta"}
    assert meta.names == ("a", "b")


def test_pinning_reaches_every_tensor_of_a_batch(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor), tensor.clone())[1])
    batch = collate([sample("a", 5, 3), sample("b", 2, 7)])
    copy = batch.pin_memory()
    assert len(pinned) == 5
    assert torch.equal(copy.latents, batch.latents)
    assert collate([sample("a", 5, 3)]).pin_memory().frame_lengths is None
