"""Every preprocessing setting, changed alone."""

import json
import shutil
import wave

import numpy as np
import pytest
import torch

from woodshed.data import encode, passes
from woodshed.data.loudness import integrated_loudness
from woodshed.errors import UserError
from woodshed.models import vae
from woodshed.models.encoders import TextEncoder
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings

SONGS = {"low": 220, "high": 880}  # Hz


class Desk:
    """Preprocesses two short tones on the toy model, with whatever settings a test wants."""

    def __init__(self, root, checkpoints, patch):
        self.root, self.checkpoints, self.patch = root, checkpoints, patch
        self.runs = 0
        self.texts = []  # every text that the text encoder read, prompts only
        self.music = root / "music"
        self.music.mkdir()
        for name, hertz in SONGS.items():
            sound = 0.4 * np.sin(2 * np.pi * hertz * np.arange(48_000 * 0.4) / 48_000)
            with wave.open(str(self.music / f"{name}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(48_000)
                file.writeframes((sound * 32_767).astype("<i2").tobytes())
        for method in ("encode_text", "embed_lyrics"):
            self._listen(method)

    def _listen(self, method):
        true = getattr(TextEncoder, method)
        self.patch.setattr(
            TextEncoder,
            method,
            lambda desk, text, *how, **more: self.texts.append(text) or true(desk, text, *how, **more),
        )

    def run(self, **changes):
        """Preprocess; return the samples by the beginning of their names, and the manifest."""
        self.runs += 1
        self.texts.clear()
        values = {
            "checkpoint_dir": self.checkpoints,
            "model": "acestep-v15-base",
            "audio_dir": self.music,
            "tensor_output": self.root / f"tensors-{self.runs}",
            "device": "cpu",
        }
        settings = resolve(PreprocessSettings, [Layer("test", values | changes)]).settings
        for _ in encode.preprocess(settings):
            pass
        folder = settings.tensor_output
        samples = {path.name.split("-")[0]: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}
        (manifest,) = folder.glob("manifest*.json")
        return samples, json.loads(manifest.read_text(encoding="utf-8"))

    def describe(self, **facts):
        """Write a dataset JSON that says the same about both songs."""
        path = self.root / "dataset.json"
        samples = [{"audio_path": f"{name}.wav", "caption": f"a {name} tone", **facts} for name in SONGS]
        path.write_text(json.dumps({"metadata": {}, "samples": samples}), encoding="utf-8")
        return path

    def captions(self):
        return {text.split("# Caption\n")[1].split("\n")[0] for text in self.texts if "# Caption" in text}


@pytest.fixture
def desk(tmp_path, checkpoint_root, monkeypatch):
    return Desk(tmp_path, checkpoint_root, monkeypatch)


def test_checkpoint_dir_is_where_the_models_are_read_from(desk):
    other = desk.root / "elsewhere"
    shutil.copytree(desk.checkpoints, other)
    desk.run(checkpoint_dir=other)
    shutil.rmtree(other / "vae")
    with pytest.raises(UserError, match="elsewhere"):
        desk.run(checkpoint_dir=other)


def test_model_decides_whose_conditions_are_made(desk):
    base, turbo = (desk.run(model=f"acestep-v15-{kind}") for kind in ("base", "turbo"))
    assert turbo[1]["woodshed"]["model"] == "acestep-v15-turbo"
    assert base[1]["woodshed"]["fingerprint"] != turbo[1]["woodshed"]["fingerprint"]
    conditions = [samples["low"]["encoder_hidden_states"] for samples, _ in (base, turbo)]
    assert not torch.equal(*conditions)


def test_device_is_where_the_models_compute(desk):
    with pytest.raises(UserError, match=r"There is no device cuda:99 here\. This machine has "):
        desk.run(device="cuda:99")
    assert desk.run(device="cpu")[0].keys() == SONGS.keys()


def test_precision_is_the_format_of_compute_and_tensors(desk):
    for word, dtype in (("auto", torch.float32), ("bf16", torch.bfloat16)):
        samples, _ = desk.run(precision=word)
        for key in ("target_latents", "encoder_hidden_states", "context_latents"):
            assert samples["low"][key].dtype == dtype


def test_audio_dir_is_where_the_songs_come_from(desk):
    other = desk.root / "other"
    (other / "deep").mkdir(parents=True)
    shutil.copy(desk.music / "low.wav", other / "deep" / "only.wav")
    assert desk.run(audio_dir=other)[0].keys() == {"only"}


def test_dataset_json_gives_captions_lyrics_and_metadata(desk):
    dataset = desk.describe(bpm=91, keyscale="D minor", lyrics="la la la")
    desk.run(dataset_json=dataset)
    assert desk.captions() == {"a low tone", "a high tone"}
    text = "".join(desk.texts)
    assert "- bpm: 91\n" in text
    assert "D minor" in text
    assert "la la la" in text
    desk.run()
    assert desk.captions() == {"low", "high"}  # the words of the file names


def test_metadata_csv_describes_the_songs(desk):
    table = desk.root / "songs.csv"
    table.write_text("file;caption;bpm\nlow.wav;a deep hum;91\nhigh.wav;a whistle;92\n", encoding="utf-8")
    desk.run(metadata_csv=table)
    assert desk.captions() == {"a deep hum", "a whistle"}
    assert "- bpm: 91\n" in "".join(desk.texts)


def test_tensor_output_is_where_the_dataset_is_written(desk):
    folder = desk.root / "here"
    desk.run(tensor_output=folder)
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["high", "low", "manifest.json"]


def test_max_duration_cuts_longer_songs(desk):
    for seconds, frames in ((0, 10), (0.2, 5), (100, 10)):
        samples, _ = desk.run(max_duration=seconds)
        assert {len(sample["target_latents"]) for sample in samples.values()} == {frames}


@pytest.mark.parametrize(
    ("position", "caption"),
    [("prepend", "zydeco, a low tone"), ("append", "a low tone, zydeco"), ("replace", "zydeco")],
)
def test_tag_position_is_where_the_trigger_tag_goes(desk, position, caption):
    desk.run(dataset_json=desk.describe(), custom_tag="zydeco", tag_position=position)
    assert caption in desk.captions()


def test_custom_tag_is_put_into_every_caption_and_travels_with_the_dataset(desk):
    _, manifest = desk.run(dataset_json=desk.describe(), custom_tag="zydeco")
    assert manifest["metadata"]["custom_tag"] == "zydeco"
    assert desk.captions() == {"zydeco, a low tone", "zydeco, a high tone"}
    desk.run(dataset_json=desk.describe())
    assert desk.captions() == {"a low tone", "a high tone"}


@pytest.mark.parametrize(("share", "genres"), [(0, 0), (50, 1), (100, 2)])
def test_genre_ratio_is_the_share_of_songs_whose_genre_is_the_prompt(desk, share, genres):
    desk.run(dataset_json=desk.describe(genre="polka"), genre_ratio=share)
    prompts = [text for text in desk.texts if "# Caption" in text]
    assert sum("# Caption\npolka\n" in text for text in prompts) == genres


def test_language_is_that_of_lyrics_whose_metadata_names_none(desk):
    for facts, language in (({}, "ja"), ({"language": "en"}, "en")):
        desk.run(dataset_json=desk.describe(lyrics="la", **facts), language="ja")
        lyrics = [text for text in desk.texts if "# Lyric" in text]
        assert len(lyrics) == 2
        assert all(text.startswith(f"# Languages\n{language}\n") for text in lyrics)


def test_seed_draws_other_latents_from_the_same_songs(desk):
    first, same, other = (desk.run(seed=seed)[0]["low"]["target_latents"] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_normalize_brings_songs_to_one_level(desk):
    heard = []
    encode_waveform = passes.encode_waveform
    desk.patch.setattr(passes, "encode_waveform", lambda vae, wave: heard.append(wave) or encode_waveform(vae, wave))
    for word, peak in (("none", 0.4), ("peak", 10 ** (-1 / 20)), ("loudness", None)):
        heard.clear()
        desk.run(normalize=word)
        levels = [float(wave.abs().max()) for wave in heard]
        assert peak is None or levels == pytest.approx([peak, peak], abs=1e-3)
    assert [integrated_loudness(wave) for wave in heard] == pytest.approx([-14, -14], abs=0.1)


def test_latents_are_a_draw_or_the_mean_which_no_seed_changes(desk):
    means = [desk.run(latents="mean", seed=seed)[0]["low"]["target_latents"] for seed in (1, 2)]
    assert torch.equal(*means)
    assert not torch.equal(desk.run(seed=1)[0]["low"]["target_latents"], means[0])


def test_offload_encoder_keeps_what_is_idle_off_the_device(desk):
    """The CPU twice: by its number it plays the device, by its bare name the waiting room."""
    device = torch.device("cpu:0")
    desk.patch.setattr(encode, "resolve_device", lambda _: device)
    move, load = torch.nn.Module.to, passes.load_text_encoder
    places = []
    desk.patch.setattr(
        torch.nn.Module, "to", lambda part, place, *more: places.append(place) or move(part, place, *more)
    )
    desk.patch.setattr(
        passes,
        "load_text_encoder",
        lambda folder, **how: places.append(how["device"]) or load(folder, **how),
    )
    for is_on in (False, True):
        places.clear()
        desk.run(offload_encoder=is_on)
        assert (torch.device("cpu") in places) == is_on


def test_conditioning_is_what_inference_reads_or_what_older_trainers_wrote(desk):
    dataset = desk.describe(lyrics="la la", language="en")
    samples, manifest = desk.run(dataset_json=dataset)
    assert manifest["woodshed"]["conditioning"] == "inference"
    assert samples["low"]["encoder_attention_mask"].all()
    assert "# Languages\nen\n" in "".join(desk.texts)
    samples, manifest = desk.run(dataset_json=dataset, conditioning="legacy")
    assert manifest["woodshed"]["conditioning"] == "legacy"
    assert samples["low"]["encoder_hidden_states"].shape == (769, 32)
    assert not samples["low"]["encoder_attention_mask"].all()
    assert "la la" in desk.texts


def test_shard_is_the_part_of_the_songs_that_is_encoded(desk):
    samples = {}
    for number in (1, 2):
        folder = desk.root / f"part-{number}"
        manifest = desk.run(shard=f"{number}/2", tensor_output=folder)[1]
        assert manifest["woodshed"]["shard"]["number"] == number
        samples[number] = {path.name.split("-")[0] for path in folder.glob("*.pt")}
    assert samples == {1: {"high"}, 2: {"low"}}


def test_compile_makes_the_vaes_kernels_or_leaves_them(desk):
    desk.patch.setattr(vae, "_compiled", lambda function: function)
    made = []
    fuse = passes.fuse_encoder
    desk.patch.setattr(passes, "fuse_encoder", lambda part: made.append(part) or fuse(part))
    asked = {word: desk.run(compile=word)[0]["low"]["target_latents"] for word in ("no", "auto", "yes")}
    assert len(made) == 1
    assert isinstance(made[0].encoder, vae.FusedEncoder)
    assert torch.equal(asked["auto"], asked["no"])
    assert torch.allclose(asked["yes"], asked["no"], rtol=1e-4, atol=1e-5)
    desk.patch.setattr(encode, "why_not_compile", lambda _device: "the moon is full")
    with pytest.raises(UserError, match="--compile yes cannot work here: the moon is full"):
        desk.run(compile="yes")
