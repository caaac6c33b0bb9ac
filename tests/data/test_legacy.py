"""Files for and from older trainers: written as the original's own preprocessing writes them, read as what they are."""

import shutil

import pytest
import torch

from woodshed.data import passes
from woodshed.data.conditioning import lyric_text
from woodshed.data.encode import preprocess
from woodshed.data.events import Notice
from woodshed.data.latents import Posterior

LONG = "la " * 600
PADDED = "are those of older trainers: no language header before the lyrics, which end after 512 tokens"


@pytest.fixture
def original(golden):
    """The sample files that the original's preprocessing wrote for the toy base model; their prompts say 30 seconds."""
    return {name: torch.load(golden / "preprocessed_fp32" / f"sample_{name}.pt", weights_only=True) for name in "ab"}


@pytest.fixture
def run(settings_for, tmp_path, write_audio, tones, write_json, monkeypatch, original):
    """Preprocess the two songs of the original's files, with its latents: the words are what differs."""
    monkeypatch.setattr(
        passes, "encode_waveform", lambda _vae, wave: Posterior(*torch.zeros(2, wave.shape[1] // 1920, 16))
    )
    fields = {}
    for name, sample in original.items():
        write_audio(tmp_path / "music" / f"{name}.wav", tones(30.2, 8_000, channels=1), 8_000)
        known = ("caption", "lyrics", "bpm", "keyscale", "timesignature", "is_instrumental")
        fields[f"{name}.wav"] = {key: sample["metadata"][key] for key in known}

    def encode(events=None, songs=None, **changes):
        happened = list(preprocess(settings_for(dataset_json=write_json(songs or fields), **changes)))
        if events is not None:
            events += happened
        return {
            path.stem[0]: torch.load(path, weights_only=True) for path in sorted((tmp_path / "tensors").glob("*.pt"))
        }

    return encode


def near(actual, expected):
    return actual.shape == expected.shape and (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("loaded_once")
def test_legacy_conditions_are_the_originals_padding_included(run, original):
    samples = run(conditioning="legacy")
    for name, expected in original.items():
        assert near(samples[name]["encoder_hidden_states"], expected["encoder_hidden_states"])
        mask = samples[name]["encoder_attention_mask"]
        assert torch.equal(mask, expected["encoder_attention_mask"])
        assert (mask.dtype, samples[name].keys()) == (torch.bool, expected.keys())
        for key in ("target_latents", "attention_mask", "context_latents"):
            found = samples[name][key]
            assert (found.dtype, found.shape[1:]) == (expected[key].dtype, expected[key].shape[1:])
        assert torch.equal(samples[name]["context_latents"][:25], expected["context_latents"][:25])
        theirs = expected["metadata"]
        assert samples[name]["metadata"].keys() >= theirs.keys()


@pytest.mark.usefixtures("loaded_once")
def test_what_inference_reads_differs_from_them_exactly_as_documented(run, original):
    """The same prompt states, of which the valid ones are left; one header more in the lyrics; silence, not a zero."""
    ours, theirs = run(language="en")["a"], original["a"]
    mine = ours["encoder_hidden_states"]
    valid = theirs["encoder_hidden_states"][theirs["encoder_attention_mask"]]
    prompt, lyrics, header = 85, 33, 14  # the token that the template ends with is among the header's
    assert len(valid) == lyrics + 1 + prompt
    assert len(mine) == header + lyrics + 1 + prompt
    assert near(mine[-prompt:], valid[-prompt:]), "prompts have no transformer, so the lyrics change nothing there"
    assert not near(mine[-prompt - 1], valid[-prompt - 1]), "the reference"
    assert not near(mine[:lyrics], valid[:lyrics])
    assert ours["encoder_attention_mask"].all()


def test_older_trainers_had_no_header_and_a_mark_for_songs_without_words():
    assert lyric_text("la", "en", "legacy") == "la"
    assert lyric_text("", "en", "legacy") == "[Instrumental]"


@pytest.mark.usefixtures("loaded_once")
def test_what_their_shorter_limit_cuts_is_said(run):
    events = []
    sample = run(events, {"a.wav": {"lyrics": LONG}}, conditioning="legacy")["a"]
    (notice,) = (event.text for event in events if isinstance(event, Notice) and "tokens" in event.text)
    count = sample["metadata"]["woodshed"]["lyric_tokens"]
    assert notice == f"a.wav: the lyric has {count} tokens; the model reads 512, {count - 512} are cut."
    assert sample["encoder_hidden_states"].shape == (769, 32)


@pytest.mark.usefixtures("loaded_once")
def test_training_on_legacy_conditions_says_what_they_are_and_how_to_make_others(run, open_for):
    run(conditioning="legacy")
    (notice,) = open_for().notices
    assert PADDED in notice
    assert "woodshed preprocess --model acestep-v15-base" in notice
    assert len(open_for()[0].conditions) < 769, "no padding reaches the decoder, which would listen to it"


def test_a_folder_of_an_older_trainer_is_read_and_known_by_its_padding(golden, open_for, tmp_path):
    shutil.copytree(golden / "preprocessed_fp32", tmp_path / "tensors")
    dataset = open_for()
    assert "was not made by Woodshed" in dataset.notices[0]
    assert PADDED in dataset.notices[1]
    assert [len(dataset[index].conditions) for index in (0, 1)] == [119, 105]


def test_unfinished_files_and_a_stale_manifest_of_theirs_do_no_harm(golden, open_for, tmp_path):
    folder = tmp_path / "tensors"
    shutil.copytree(golden / "preprocessed_fp32", folder)
    for name in ("c.tmp.pt", "d.__writing__.pt", "sample_a.pt.__writing__", "._sample_a.pt"):
        (folder / name).write_bytes(b"half a song")
    (folder / "preprocess_meta.json").write_text('{"model_variant": "base"}')
    (folder / "manifest.json").write_text(r'{"samples": ["C:\\old\\place\\sample_a.pt", "./gone/sample_b.pt"]}')
    assert open_for().names == ("sample_a", "sample_b")
    (folder / "manifest.json").unlink()
    assert open_for().names == ("sample_a", "sample_b")
