"""Songs through the engine: the same numbers as the pieces it is made of, and the file says what made it."""

import hashlib
import json

import pytest
import torch

from woodshed.adapters.saved import read_adapter
from woodshed.data import audio
from woodshed.data.conditioning import lyric_text, prompt_text
from woodshed.errors import UserError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.encoders import encode_conditions
from woodshed.models.load import (
    load_condition_encoder,
    load_decoder,
    load_null_condition,
    load_silence,
    load_text_encoder,
    load_vae,
)
from woodshed.sampling import generate as engine
from woodshed.sampling.events import Finished, Notice, Sampled, Started, Written
from woodshed.sampling.generate import generate, silent_context
from woodshed.sampling.sampler import Guidance, draw_noise, sample_latents, timesteps, turbo_timesteps
from woodshed.sampling.waveform import PEAK, decode_latents, read_tags

CPU = {"dtype": torch.float32, "device": "cpu"}
ROUNDING = 2**-22  # of a 24-bit sample


def sound(settings):
    """Make one song and read it back."""
    (path,) = list(generate(settings))[-1].files
    return audio.decode(path)


def by_hand(root, model, *, prompt, lyrics, steps, guidance, seed, samples):
    """The same song out of the parts, each of which is tested against the original's numbers."""
    checkpoint = choose_model(find_checkpoints(root), model)
    texts = load_text_encoder(root / "Qwen3-Embedding-0.6B", **CPU)
    silence = load_silence(checkpoint)
    conditions = encode_conditions(
        load_condition_encoder(checkpoint, **CPU),
        texts.encode_text(prompt),
        texts.embed_lyrics(lyrics),
        silence[None, :750],
    )
    latents = sample_latents(
        load_decoder(checkpoint, **CPU),
        conditions=conditions,
        context=torch.cat([silence[:128], torch.ones(128, 16)], dim=1)[None],
        noise=draw_noise(seed, 128, 16),
        timesteps=steps,
        null_condition=load_null_condition(checkpoint, **CPU),
        guidance=guidance,
    )
    waveform = decode_latents(load_vae(root / "vae", **CPU), latents[0])[:, :samples]
    return waveform * PEAK / waveform.abs().max()


@pytest.mark.parametrize("model", ["acestep-v15-base", "acestep-v15-xl-turbo"])
def test_a_song_is_what_prompt_silence_sampler_and_decoder_make_together(settings_for, checkpoint_root, model):
    prompt = prompt_text("warm funk", bpm="120", timesignature="4", keyscale="C major", seconds=0.5)
    said = {"bpm": 120, "timesignature": "4", "keyscale": "C major", "lyrics": "la la", "language": "en"}
    found = sound(settings_for(model=model, steps=3, seed=5, **said))
    is_turbo = "turbo" in model
    expected = by_hand(
        checkpoint_root,
        model,
        prompt=prompt,
        lyrics=lyric_text("la la", "en"),
        steps=timesteps(3, 3.0 if is_turbo else 1.0),
        guidance=None if is_turbo else Guidance(7.0),
        seed=5,
        samples=24_000,
    )
    assert found.shape == (2, 24_000)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.fixture
def latents_of(monkeypatch):
    """Make a song up to its latents, without the VAE and without a file; one tensor for each version."""

    def make(settings):
        reached = []
        with monkeypatch.context() as patch:
            patch.setattr(engine, "write_version", lambda _plan, _parts, _version, latents: reached.append(latents))
            list(generate(settings))
        return torch.stack(reached)

    return make


def test_turbo_takes_its_own_eight_steps_unless_told_otherwise(settings_for, latents_of, monkeypatch):
    taken = []
    walked = engine.walk

    def walk(decoder, **inputs):
        taken.append((inputs["timesteps"], inputs["guidance"].scale))
        return walked(decoder, **inputs)

    monkeypatch.setattr(engine, "walk", walk)
    latents_of(settings_for(model="acestep-v15-turbo", steps="auto"))
    latents_of(settings_for(model="acestep-v15-turbo", steps=8, shift=1.8))
    assert taken == [(turbo_timesteps(3.0), 1.0), (turbo_timesteps(2.0), 1.0)]


CHANGES = [
    {"seed": 1},
    {"steps": 3},
    {"shift": 3.0},
    {"guidance": 2.0},
    {"guidance_interval": (0.0, 0.9)},
    {"prompt": "cold funk"},
    {"lyrics": "la"},
    {"language": "en"},
    {"bpm": 90},
    {"keyscale": "D minor"},
    {"timesignature": "3"},
    {"duration": 1.5},
    {"precision": "bf16"},
    {"model": "acestep-v15-sft"},
]


def test_the_same_choice_repeats_the_song_and_every_other_choice_changes_it(settings_for, latents_of):
    plain = latents_of(settings_for())
    assert torch.equal(latents_of(settings_for()), plain)
    for change in CHANGES:
        assert (latents_of(settings_for(**change)) - plain).abs().max() > 1e-3, change


def test_what_should_not_change_the_song_does_not(settings_for, latents_of):
    plain = latents_of(settings_for())
    assert torch.equal(latents_of(settings_for(lyrics="la la", instrumental=True)), plain)
    assert torch.equal(latents_of(settings_for(offload_encoder=True)), plain)


@pytest.mark.parametrize("family", ["lora", "lokr", "lokr with dora"])
def test_an_adapter_changes_the_song_and_strength_zero_is_the_base_model_bit_for_bit(
    settings_for, adapter_of, latents_of, family
):
    adapter = adapter_of(family)
    base, full = latents_of(settings_for(adapter=adapter, compare=True))
    (half,) = latents_of(settings_for(adapter=adapter, strength=0.5))
    assert (full - base).abs().max() > 1e-2
    assert (full - half).abs().max() > 1e-2
    assert torch.equal(latents_of(settings_for(adapter=adapter, strength=0))[0], base)


def test_flac_holds_the_same_sound_as_wav(settings_for, tmp_path):
    assert torch.equal(sound(settings_for(output=tmp_path / "song.FLAC")), sound(settings_for()))


def test_several_adapters_and_the_base_get_a_file_each_from_the_same_words_and_noise(
    settings_for, adapter_of, tmp_path
):
    one, two = adapter_of("lora", "one"), adapter_of("lokr", "two")
    events = list(generate(settings_for(adapter=[one, two], compare=True)))
    names = ["song-base.wav", "song-one.wav", "song-two.wav"]
    assert events[-1].files == tuple(tmp_path / name for name in names)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert torch.equal(audio.decode(tmp_path / names[0]), sound(settings_for()))
    assert torch.equal(audio.decode(tmp_path / names[2]), sound(settings_for(adapter=two)))
    assert [event.version for event in events if isinstance(event, Written)] == ["base", "one", "two"]


def test_events_tell_the_story_in_order(settings_for):
    events = list(generate(settings_for(compare=True)))
    assert [type(event) for event in events] == [Started, Notice, Sampled, Sampled, Written, Finished]
    assert events[0] == Started("acestep-v15-base", "cpu", "float32", 1, 0.5)
    assert events[1].text == "compare has no effect: there is no adapter to compare with."
    assert events[3] == Sampled("base", 1, 2, 2)


@pytest.mark.parametrize("name", ["song.wav", "song.flac"])
def test_the_recipe_can_be_read_back_from_the_file(settings_for, adapter_of, tmp_path, name):
    adapter = adapter_of("lora", custom_tag="zyx")
    sound(settings_for(adapter=adapter, output=tmp_path / name, lyrics="la\nlé", seed=9, strength=0.7))
    tags = read_tags(tmp_path / name)
    assert tags["title"] == "zyx, warm funk"
    recipe = json.loads(tags["comment"])
    weights = read_adapter(adapter).path.read_bytes()
    expected = {
        "model": "acestep-v15-base",
        "prompt": "zyx, warm funk",
        "lyrics": "la\nlé",
        "seed": 9,
        "steps": 2,
        "shift": 1.0,
        "guidance": 7.0,
        "guidance_interval": [0.0, 1.0],
        "duration": 0.5,
        "adapter": "style",
        "adapter_sha256": hashlib.sha256(weights).hexdigest(),
        "strength": 0.7,
    }
    assert {key: recipe[key] for key in expected} == expected


def test_words_that_do_not_fit_are_counted_once_however_many_versions_there_are(settings_for, adapter_of, monkeypatch):
    monkeypatch.setattr(engine, "sample_version", lambda *_: iter(()))
    monkeypatch.setattr(engine, "write_version", lambda *_: None)
    settings = settings_for(prompt="x" * 400, adapter=adapter_of(), compare=True)
    said = [event.text for event in generate(settings) if isinstance(event, Notice)]
    assert len(said) == 1
    assert said[0].startswith("prompt: ")
    assert "of which the model reads 256" in said[0]


def test_the_context_of_a_song_longer_than_the_stored_silence_goes_on_from_its_start(checkpoint_root):
    checkpoint = choose_model(find_checkpoints(checkpoint_root), "base")
    silence = load_silence(checkpoint)
    context = silent_context(checkpoint, len(silence) + 3)
    assert context.shape == (1, len(silence) + 3, 32)
    assert torch.equal(context[0, -3:, :16], silence[:3])
    assert context[..., 16:].eq(1).all()


def test_running_out_of_memory_and_of_disk_becomes_advice(settings_for, monkeypatch, tmp_path):
    def too_much(*_args, **_more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "walk", too_much)
        with pytest.raises(UserError, match=r"--offload-encoder, a shorter song \(--duration 0.25\)"):
            list(generate(settings_for()))

    def disk_full(path, *_args, **_more):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(engine, "write_sound", disk_full)
    with pytest.raises(UserError, match="No space left on device"):
        list(generate(settings_for()))
    assert not list(tmp_path.iterdir())
