"""Samples while it trains: heard as the base model and as the adapter, and never in the training's way."""

import json
import re
import sys

import pytest
import torch

from woodshed.data.audio import decode
from woodshed.errors import UserError
from woodshed.models.load import load_vae as true_load
from woodshed.sampling import preview
from woodshed.sampling.generate import encode_versions, encode_words, silent_context
from woodshed.sampling.parts import Parts
from woodshed.sampling.plan import prepare
from woodshed.sampling.recipes import Playback
from woodshed.sampling.sampler import draw_noise
from woodshed.sampling.waveform import read_tags
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import GenerateSettings
from woodshed.training.events import Notice, SampleMade, StepDone
from woodshed.training.loop import train
from woodshed.training.preflight import check
from woodshed.training.run import load_run


@pytest.fixture
def settings_for(training_settings_for):
    return training_settings_for


def is_sample(event):
    return isinstance(event, SampleMade)


def adapter_bytes(folder):
    return (folder / "final" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_adapter_is_the_same_to_the_last_byte_with_and_without_samples(settings_for, tmp_path, precision):
    made = [e for e in train(settings_for("with", precision=precision)) if isinstance(e, SampleMade)]
    list(train(settings_for("without", precision=precision, sample_every_n_epochs=0)))
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")
    assert [event.path.relative_to(tmp_path / "with").as_posix() for event in made] == [
        f"samples/{version}/{name}.wav" for version in ("base", "epoch-1", "epoch-2") for name in ("1-a-song", "2-b")
    ]
    sounds = [event.path.read_bytes() for event in made]
    assert len({sound[100:] for sound in sounds}) == 6  # songs and versions all differ


def test_an_adapter_that_learns_nothing_sounds_like_the_base_model(settings_for):
    made = [e for e in train(settings_for(learning_rate=1e-30)) if isinstance(e, SampleMade)]
    tail = [event.path.read_bytes()[-40_000:] for event in made]  # without the tags
    assert tail[:2] == tail[2:4] == tail[4:]


def test_the_page_holds_every_version_of_every_song_and_asks_nothing_of_the_net(settings_for, tmp_path):
    list(train(settings_for()))
    text = (tmp_path / "out" / "samples" / "index.html").read_text(encoding="utf-8")
    assert "https:" not in text
    rows = json.loads(re.search(r'application/json">(.*)</script>', text)[1])
    assert [row["title"] for row in rows] == ["a song", "b"]
    for row in rows:
        assert [sound["label"] for sound in row["sounds"]] == ["base model", "epoch 1", "epoch 2"]
        for sound in row["sounds"]:
            assert (tmp_path / "out" / "samples" / sound["source"]).is_file()


OUT = torch.OutOfMemoryError("CUDA out of memory")
FAILURES = [
    ("decode_latents", 3, OUT, {0}),  # of the first epoch's second sample: the base model's are there
    ("sample_latents", 2, OUT, {0}),
    ("sample_latents", 0, OUT, set()),
    ("load_vae", 0, OUT, set()),
    ("load_text_encoder", 0, OUT, set()),
    ("load_condition_encoder", 0, RuntimeError("MPS backend out of memory\nTried to allocate"), set()),
    ("write_sound", 3, OSError(28, "No space left on device"), {0}),
    ("write_page", 1, OSError(28, "No space left on device"), {0}),
    ("write_page", 0, UserError("No."), set()),
    ("sample_latents", 1, RuntimeError(), set()),
]


@pytest.fixture(scope="module")
def without():
    """Bytes of the adapter of a run that makes no samples: trained once, whoever asks first."""
    return {}


@pytest.mark.parametrize(("what", "when", "error", "epochs"), FAILURES, ids=str)
def test_a_sample_that_fails_costs_the_samples_and_not_the_training(
    settings_for, tmp_path, monkeypatch, without, what, when, error, epochs
):
    calls = iter(range(100))
    true_work = getattr(preview, what)

    def work(*arguments, **options):
        if next(calls) == when:
            raise error
        return true_work(*arguments, **options)

    changes = {}
    if "encoder" in what:
        (tmp_path / "prompts.txt").write_text("one\ntwo", encoding="utf-8")
        changes["sample_prompts"] = tmp_path / "prompts.txt"
    monkeypatch.setattr(preview, what, work)
    events = list(train(settings_for("with", **changes)))
    (said,) = [e.text for e in events if isinstance(e, Notice) and "No more samples are made" in e.text]
    assert "training goes on: " in said
    assert "\n" not in said
    assert not said.endswith(": .")
    assert {e.epoch for e in events if is_sample(e)} == epochs
    assert len([e for e in events if isinstance(e, StepDone)]) == 2
    if not without:
        without["bytes"] = trained_without(settings_for, tmp_path)
    assert adapter_bytes(tmp_path / "with") == without["bytes"]


def trained_without(settings_for, tmp_path):
    list(train(settings_for("without", sample_every_n_epochs=0)))
    return adapter_bytes(tmp_path / "without")


@pytest.mark.skipif(sys.platform == "win32", reason="files have no largest size on Windows")
def test_a_disk_that_is_full_while_a_sample_is_written_leaves_no_half_file(settings_for, tmp_path):
    """Really full: the system takes no file of more than a limit, which a sample exceeds and nothing else does."""
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        events = list(train(settings_for(epochs=1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    (said,) = [e.text for e in events if isinstance(e, Notice) and "No more samples are made" in e.text]
    assert "File too large" in said or "No space" in said
    assert not [path for path in (tmp_path / "out" / "samples").rglob("*") if path.is_file()]
    assert (tmp_path / "out" / "final" / "adapter_model.safetensors").is_file()


def test_the_vae_is_loaded_once_and_the_base_model_played_once(settings_for, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(preview, "load_vae", lambda *a, **how: loads.append(1) or true_load(*a, **how))
    list(train(settings_for(save_every=1)))
    assert len(loads) == 1
    before = (tmp_path / "out" / "samples" / "base" / "1-a-song.wav").stat().st_mtime_ns
    made = [e for e in train(settings_for(epochs=3, resume_from="latest")) if isinstance(e, SampleMade)]
    assert {event.epoch for event in made} == {3}
    assert (tmp_path / "out" / "samples" / "base" / "1-a-song.wav").stat().st_mtime_ns == before


def test_a_sample_says_what_made_it_and_may_be_flac(settings_for):
    made = [e for e in train(settings_for(sample_format="flac", epochs=1)) if is_sample(e)]
    wav = [e for e in train(settings_for("wav", epochs=1)) if is_sample(e)]
    assert {event.path.suffix for event in made} == {".flac"}
    for one, other in zip(made, wav, strict=True):
        assert torch.equal(decode(one.path), decode(other.path))
        assert read_tags(one.path) | {"encoder": ""} == read_tags(other.path) | {"encoder": ""}
    tags = read_tags(made[-1].path)
    assert tags["title"] == "b (epoch 1)"
    recipe = json.loads(tags["comment"])
    assert (recipe["model"], recipe["epoch"], recipe["seed"]) == ("acestep-v15-base", 1, 43)
    assert (recipe["steps"], recipe["shift"], recipe["guidance"]) == (2, 1.0, 7.0)


def test_what_samples_lack_is_found_before_anything_is_loaded_all_at_once(settings_for, tmp_path, checkpoint_root):
    root = tmp_path / "models"
    root.mkdir()
    (root / "acestep-v15-base").symlink_to(checkpoint_root / "acestep-v15-base")
    with pytest.raises(UserError) as caught:
        check(settings_for(checkpoint_dir=root, sample_prompts=tmp_path / "nowhere.txt"))
    for part in ("no folder vae", "no folder Qwen3-Embedding-0.6B", "nowhere.txt cannot be read"):
        assert sum(part in problem for problem in caught.value.problems) == 1
    check(settings_for(checkpoint_dir=root, sample_every_n_epochs=0))
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no sample prompts"):
        check(settings_for(sample_prompts=tmp_path / "empty.txt"))


def test_prompts_beyond_the_count_are_named_and_not_played(settings_for, tmp_path):
    (tmp_path / "three.txt").write_text("one\ntwo\nthree", encoding="utf-8")
    found = check(settings_for(sample_prompts=tmp_path / "three.txt"))
    assert any("--sample-count 3 plays all" in line for line in found.notices)
    assert found.preview.lines == ("one", "two")


def test_prompts_are_encoded_as_generate_encodes_them_with_the_datasets_tag_and_the_samples_length(
    settings_for, tmp_path, checkpoint_root
):
    (tmp_path / "one.txt").write_text("warm funk\n", encoding="utf-8")
    found = check(settings_for(sample_prompts=tmp_path / "one.txt", sample_seconds=2))
    place = {"dtype": torch.float32, "device": torch.device("cpu")}
    (words,) = preview.encode_lines(found.preview, found.checkpoint, tag="toybox", position="prepend", **place)
    changes = {"prompt": "toybox, warm funk", "duration": 2, "output": tmp_path / "a.wav", "device": "cpu"}
    values = {"checkpoint_dir": checkpoint_root, "model": "acestep-v15-base"} | changes
    plan = prepare(resolve(GenerateSettings, [Layer("test", values)]).settings)
    parts = Parts(plan)
    encoded, _ = encode_words(plan, parts)
    (conditions,) = encode_versions(plan, parts, encoded).values()
    assert torch.equal(words.conditions, conditions[0])
    assert torch.equal(words.context, silent_context(found.checkpoint, 50)[0])
    (other,) = preview.encode_lines(found.preview, found.checkpoint, tag="", position="prepend", **place)
    assert other.digest != words.digest
    assert not torch.equal(other.conditions, words.conditions)


@pytest.mark.parametrize("offload", [True, False])
def test_with_offload_the_vae_is_on_the_device_only_while_it_decodes(settings_for, tmp_path, monkeypatch, offload):
    log = []

    def load(*given, **how):
        log.append(("loaded", str(how["device"])))
        vae = true_load(*given, **how)
        move = vae.to
        vae.to = lambda where: log.append(("moved", str(where))) or move(where)
        return vae

    def decode_one(*given, **how):
        log.append("decoded")
        return true_decode(*given, **how)

    true_decode = preview.decode_latents
    monkeypatch.setattr(preview, "load_vae", load)
    monkeypatch.setattr(preview, "decode_latents", decode_one)
    run = load_run(check(settings_for(sample_count=1)))
    plan, place = run.preflight.preview, {"dtype": torch.float32, "device": torch.device("cpu:0")}
    made = preview.Preview(
        plan,
        preview.song_words(run.preflight.dataset, plan),
        Playback(1.0, 1, 7.0),
        checkpoint=run.preflight.checkpoint,
        seed=1,
        folder=tmp_path / "samples",
        offload=offload,
        **place,
    ).make(run.decoder.eval(), run.null_condition, 0)
    assert [one.path.name for one in made] == ["1-a-song.wav"]
    if offload:
        assert log == [("loaded", "cpu"), ("moved", "cpu:0"), "decoded", ("moved", "cpu")]
    else:
        assert log == [("loaded", "cpu:0"), "decoded"]


def test_who_asks_to_stop_while_samples_are_made_waits_for_one_song_and_nothing_is_written(settings_for, tmp_path):
    run = load_run(check(settings_for()))
    plan = run.preflight.preview
    made = preview.Preview(
        plan,
        preview.song_words(run.preflight.dataset, plan),
        Playback(1.0, 2, 7.0),
        checkpoint=run.preflight.checkpoint,
        seed=1,
        folder=tmp_path / "samples",
        dtype=torch.float32,
        device=torch.device("cpu"),
        offload=False,
    )
    asked = []
    assert made.make(run.decoder.eval(), run.null_condition, 1, lambda: len(asked) or asked.append(1)) == []
    assert asked == [1]
    assert not (tmp_path / "samples").exists()


def test_two_samples_have_noise_of_their_own_and_the_same_in_every_epoch(settings_for, monkeypatch):
    drawn = []
    monkeypatch.setattr(preview, "draw_noise", lambda seed, *size: drawn.append(seed) or draw_noise(seed, *size))
    list(train(settings_for(seed=5)))
    assert drawn == [5, 6] * 3
