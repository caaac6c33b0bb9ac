"""What the passes store is what inference feeds the model, for every variant and to the last digit."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from woodshed.data import encode, passes
from woodshed.data.encode import preprocess
from woodshed.data.events import EncodeEvent, Found, Notice, SongDone, SongFailed
from woodshed.data.latents import Posterior, encode_waveform
from woodshed.errors import UserError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.encoders import TextEncoder, encode_conditions
from woodshed.models.load import load_condition_encoder, load_silence, load_vae

pytestmark = pytest.mark.usefixtures("music")
VARIANTS = ("base", "sft", "turbo", "xl-base", "xl-turbo")


@pytest.fixture
def run(settings_for, tmp_path) -> Callable[..., dict[str, dict]]:
    """Preprocess, and return the sample files by the first letter of their song."""

    def encode_all(events: list[EncodeEvent] | None = None, **changes: object) -> dict[str, dict]:
        happened = list(preprocess(settings_for(**changes)))
        if events is not None:
            events += happened
        folder = changes.get("tensor_output", tmp_path / "tensors")
        return {path.stem[0]: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}

    return encode_all


@pytest.fixture
def golden_song(golden, write_json, write_audio, tones, tmp_path) -> Path:
    """The song of the golden text cases: thirty seconds long, as its prompt says."""
    texts = json.loads((golden / "text_encoder.json").read_text())
    write_audio(tmp_path / "music" / "golden.wav", tones(30.5, 8_000, channels=1), 8_000)
    fields = {
        "caption": "an upbeat synthwave song with warm analog pads",
        "lyrics": texts["lyric_cases"]["raw_song"],
        "language": "en",
        "bpm": 120,
        "timesignature": "4",
        "keyscale": "C major",
    }
    return write_json({"golden.wav": fields})


@pytest.fixture
def no_vae(monkeypatch) -> None:
    """Latents for the price of nothing, where only the words matter."""
    monkeypatch.setattr(
        passes, "encode_waveform", lambda _vae, wave: Posterior(*torch.ones(2, wave.shape[1] // 1920, 16))
    )


def near(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_prompt_and_lyrics_become_the_states_of_the_original_with_the_header_of_inference(
    golden_song, settings_for, tmp_path, read_golden
):
    expected = read_golden("text_encoder")
    for event in preprocess(settings_for(dataset_json=golden_song)):
        if isinstance(event, SongDone) and event.step == "text":
            (path,) = (tmp_path / "tensors" / ".unfinished").glob("*.text.pt")
            states = torch.load(path, weights_only=True)
    assert near(states["prompt"], expected["text_a_longest_hidden"])
    assert near(states["lyrics"], expected["lyric_infer_song_embed"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_stored_conditions_are_those_of_the_originals_encoder_without_any_padding(
    variant, run, read_golden, monkeypatch, write_json
):
    case = {name.rsplit("/", 1)[1]: t for name, t in read_golden(f"dit_{variant}").items() if "silence_ref750" in name}
    monkeypatch.setattr(TextEncoder, "encode_text", lambda *_, **__: case["text"])
    monkeypatch.setattr(TextEncoder, "embed_lyrics", lambda *_, **__: case["lyric"])
    sample = run(model=variant, dataset_json=write_json({"a.wav": {}}))["a"]
    assert near(sample["encoder_hidden_states"], case["out"][case["out_mask"]])
    assert sample["encoder_attention_mask"].tolist() == [True] * len(case["out"][0])


@pytest.mark.parametrize("variant", ["base", "xl-turbo"])
@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_words_of_a_song_are_stored_as_inference_would_feed_them(
    variant, golden_song, run, read_golden, checkpoint_root
):
    checkpoint = choose_model(find_checkpoints(checkpoint_root), variant)
    encoder = load_condition_encoder(checkpoint, dtype=torch.float32, device="cpu")
    texts = read_golden("text_encoder")
    prompt, lyrics = texts["text_a_longest_hidden"], texts["lyric_infer_song_embed"]
    expected = encode_conditions(encoder, prompt, lyrics, load_silence(checkpoint)[None, :750])[0]
    sample = run(model=variant, dataset_json=golden_song)["g"]
    assert len(expected) == 47 + 1 + 85
    assert near(sample["encoder_hidden_states"], expected)
    record = sample["metadata"]["woodshed"]
    assert (record["prompt_tokens"], record["lyric_tokens"], record["frames"]) == (85, 47, 762)


def test_a_sample_file_has_the_six_documented_keys_in_their_shapes(run, write_json, checkpoint_root):
    fields = {"caption": "a waltz", "lyrics": "la\nla", "bpm": 90, "genre": "folk", "prompt_override": "caption"}
    sample = run(dataset_json=write_json({"a.wav": fields}, custom_tag="tag"))["a"]
    latents, context, states = (sample[key] for key in ("target_latents", "context_latents", "encoder_hidden_states"))
    assert list(sample) == [
        *("target_latents", "attention_mask", "encoder_hidden_states"),
        *("encoder_attention_mask", "context_latents", "metadata"),
    ]
    assert (latents.shape, context.shape) == ((6, 16), (6, 32))
    assert states.shape == (len(sample["encoder_attention_mask"]), 32)
    assert {tensor.dtype for tensor in (latents, context, states, sample["attention_mask"])} == {torch.float32}
    assert sample["encoder_attention_mask"].dtype == torch.bool
    assert sample["attention_mask"].tolist() == [1.0] * 6
    silence = load_silence(choose_model(find_checkpoints(checkpoint_root), "base"))
    assert torch.equal(context[:, :16], silence[:6])
    assert torch.equal(context[:, 16:], torch.ones(6, 16))
    metadata = sample["metadata"]
    assert metadata.pop("woodshed")["model"] == "acestep-v15-base"
    assert metadata.pop("audio_path").endswith("music/a.wav")
    assert metadata == {
        "filename": "a.wav",
        "caption": "a waltz",
        "lyrics": "la\nla",
        "duration": 0,
        "bpm": "90",
        "keyscale": "",
        "timesignature": "",
        "language": "unknown",
        "genre": "folk",
        "is_instrumental": False,
        "custom_tag": "tag",
        "prompt_override": "caption",
    }


@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_a_song_longer_than_the_silence_repeats_it(run, write_json, monkeypatch, checkpoint_root):
    silence = load_silence(choose_model(find_checkpoints(checkpoint_root), "base"))[:4]
    monkeypatch.setattr(passes, "load_silence", lambda _checkpoint: silence)
    context = run(dataset_json=write_json({"a.wav": {}}))["a"]["context_latents"]
    assert torch.equal(context[:, :16], torch.cat([silence, silence[:2]]))


@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_tensors_are_stored_in_the_chosen_precision(run, write_json):
    sample = run(dataset_json=write_json({"a.wav": {}}), precision="bf16")["a"]
    floats = ("target_latents", "attention_mask", "encoder_hidden_states", "context_latents")
    assert {sample[key].dtype for key in floats} == {torch.bfloat16}
    assert sample["encoder_attention_mask"].dtype == torch.bool


@pytest.mark.usefixtures("loaded_once")
def test_latents_are_drawn_from_the_vaes_posterior_by_the_seed(run, tmp_path, checkpoint_root, write_json):
    one_song = {"dataset_json": write_json({"a.wav": {}})}
    first = run(tensor_output=tmp_path / "1", **one_song)
    again = run(tensor_output=tmp_path / "2", **one_song)
    other = run(tensor_output=tmp_path / "3", seed=43, **one_song)
    assert torch.equal(again["a"]["target_latents"], first["a"]["target_latents"])
    assert not torch.equal(other["a"]["target_latents"], first["a"]["target_latents"])
    assert torch.equal(other["a"]["encoder_hidden_states"], first["a"]["encoder_hidden_states"])
    vae = load_vae(checkpoint_root / "vae", dtype=torch.float32, device="cpu")
    posterior = encode_waveform(vae, passes.audio.decode(tmp_path / "music" / "a.wav"))
    noise = (first["a"]["target_latents"] - posterior.mean) / posterior.std
    assert 0.7 < noise.std() < 1.3
    assert noise.abs().max() < 5


@pytest.mark.usefixtures("loaded_once")
def test_the_latents_of_a_song_do_not_depend_on_the_other_songs(run, tmp_path, write_json):
    all_songs = run(tensor_output=tmp_path / "all")
    alone = run(tensor_output=tmp_path / "alone", dataset_json=write_json({"a.wav": {}}))
    assert torch.equal(alone["a"]["target_latents"], all_songs["a"]["target_latents"])


@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_no_two_songs_draw_the_same_noise(run):
    found = run()
    assert (found["a"]["target_latents"] != found["b"]["target_latents"]).all()


@pytest.mark.usefixtures("loaded_once")
def test_long_songs_are_cut_and_that_is_said(run, write_json, write_audio, tones, tmp_path):
    write_audio(tmp_path / "music" / "long.wav", tones(0.5))
    exact = write_audio(tmp_path / "music" / "exact.wav", tones(0.3))
    events: list[EncodeEvent] = []
    found = run(events, dataset_json=write_json({"long.wav": {}, exact.name: {}, "a.wav": {}}), max_duration=0.3)
    assert [len(found[name]["target_latents"]) for name in ("l", "e", "a")] == [7, 7, 6]
    assert [found[name]["metadata"]["woodshed"]["is_cut"] for name in ("l", "e", "a")] == [True, False, False]
    notices = [event.text for event in events if isinstance(event, Notice) and "longer" in event.text]
    assert notices == ["1 songs are longer than 0.3 seconds (--max-duration) and are cut there: long.wav."]


@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_words_that_do_not_fit_are_reported_with_their_count(run, write_json):
    events: list[EncodeEvent] = []
    songs = {"a.wav": {"caption": "la " * 300}, "one/b.wav": {"lyrics": "la " * 3000}, "two/b.wav": {}}
    found = run(events, dataset_json=write_json(songs))
    records = {name: sample["metadata"]["woodshed"] for name, sample in found.items()}
    prompt = records["a"]["prompt_tokens"]
    (first, second) = (event.text for event in events if isinstance(event, Notice) and "tokens" in event.text)
    assert first == f"a.wav: the prompt has {prompt} tokens; the model reads 256, {prompt - 256} are cut."
    assert second.startswith("b.wav: the lyric has ")
    assert "; the model reads 2048, " in second
    assert len(found["a"]["encoder_hidden_states"]) == 256 + 1 + records["a"]["lyric_tokens"]


def spoil(monkeypatch, name: str, value: float) -> None:
    """Make a function of the passes return a number that is none, for the first song."""
    true, calls = getattr(passes, name), iter(range(100))

    def spoilt(*arguments):
        result = true(*arguments)
        if next(calls):
            return result
        return Posterior(result.mean * value, result.std) if isinstance(result, Posterior) else result * value

    monkeypatch.setattr(passes, name, spoilt)


@pytest.mark.parametrize(("function", "what"), [("encode_waveform", "latents"), ("encode_conditions", "conditions")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.usefixtures("loaded_once")
def test_a_song_whose_numbers_are_not_finite_is_refused_and_the_others_go_on(run, monkeypatch, function, what, value):
    spoil(monkeypatch, function, value)
    events: list[EncodeEvent] = []
    found = run(events)
    (failed,) = (event.problem for event in events if isinstance(event, SongFailed))
    assert f"a.wav: the model made {what} that are no finite numbers. Try --precision fp32" in failed
    assert list(found) == ["b"]


@pytest.mark.usefixtures("loaded_once", "no_vae")
def test_latents_beyond_half_precision_are_refused_not_stored_as_infinite(run, monkeypatch, write_json):
    spoil(monkeypatch, "encode_waveform", 1e9)
    events: list[EncodeEvent] = []
    run(events, dataset_json=write_json({"a.wav": {}, "one/b.wav": {}}), precision="fp16")
    assert sum(isinstance(event, SongFailed) for event in events) == 1


@pytest.mark.usefixtures("loaded_once")
def test_out_of_memory_stops_with_advice_and_keeps_what_is_done(run, monkeypatch):
    true, calls = passes.encode_conditions, iter(range(10))

    def exhaust(*arguments):
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return true(*arguments)

    monkeypatch.setattr(passes, "encode_conditions", exhaust)
    with pytest.raises(UserError, match=r"Out of memory .*b\.wav \(conditions\).*--offload-encoder") as caught:
        run()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    monkeypatch.setattr(passes, "encode_conditions", true)
    events: list[EncodeEvent] = []
    assert list(run(events)) == ["a", "b"]
    assert [event.unchanged for event in events if isinstance(event, Found)] == [1]


PARTS = ("load_vae", "load_text_encoder", "load_condition_encoder")


@pytest.mark.parametrize("offload", [False, True])
def test_offloading_leaves_only_the_part_at_work_on_the_device(settings_for, write_json, monkeypatch, offload):
    where: dict[str, str] = {}

    def follow(name: str) -> Callable[..., torch.nn.Module]:
        load = getattr(passes, name)

        def load_here(source, *, dtype, device):  # on the CPU: this machine need not have the device
            module = load(source, dtype=dtype, device="cpu")
            where[name] = str(device)
            monkeypatch.setattr(module, "to", lambda place: where.update({name: str(place)}))
            return module

        return load_here

    monkeypatch.setattr(encode, "resolve_device", lambda _name: torch.device("cuda:0"))
    for name in PARTS:
        monkeypatch.setattr(passes, name, follow(name))
    settings = settings_for(offload_encoder=offload, precision="fp32", dataset_json=write_json({"a.wav": {}}))
    seen = {event.step: dict(where) for event in preprocess(settings) if isinstance(event, SongDone)}
    idle = "cpu" if offload else "cuda:0"
    assert seen["audio"] == {"load_vae": "cuda:0", "load_text_encoder": idle}
    assert seen["text"] == {"load_vae": idle, "load_text_encoder": "cuda:0"}
    assert seen["conditions"]["load_condition_encoder"] == "cuda:0"


def test_the_condition_encoder_has_the_memory_for_itself(settings_for, write_json, monkeypatch):
    loaded: dict[str, weakref.ref[torch.nn.Module]] = {}

    def follow(name: str) -> Callable[..., torch.nn.Module]:
        load = getattr(passes, name)

        def load_and_note(*arguments, **places):
            module = load(*arguments, **places)
            loaded[name] = weakref.ref(module)
            return module

        return load_and_note

    for name in PARTS:
        monkeypatch.setattr(passes, name, follow(name))
    living = {}
    for event in preprocess(settings_for(dataset_json=write_json({"a.wav": {}}))):
        if isinstance(event, SongDone):
            gc.collect()
            living[event.step] = [name for name, module in loaded.items() if module() is not None]
    assert living == {"audio": [*PARTS[:2]], "text": [*PARTS[:2]], "conditions": [PARTS[2]]}


def test_on_a_card_it_is_said_whether_there_is_music_enough_for_the_compiler(settings_for, write_json, monkeypatch):
    def said(**changes: object) -> list[str]:
        events = preprocess(settings_for(dataset_json=write_json({"a.wav": {}}), precision="fp32", **changes))
        return [event.text for event in events if isinstance(event, Notice) and "ompile" in event.text]

    monkeypatch.setattr(encode, "resolve_device", lambda _name: torch.device("cuda:0"))
    for name in PARTS:
        load = getattr(passes, name)
        monkeypatch.setattr(passes, name, lambda source, load=load, **how: load(source, **how | {"device": "cpu"}))
    monkeypatch.setattr(torch.nn.Module, "to", lambda part, *_: part)
    for place in (passes, encode):
        monkeypatch.setattr(place, "why_not_compile", lambda _device: None)
    monkeypatch.setattr(passes, "fuse_encoder", lambda _vae: "it hurts")
    assert said() == ["compile: auto -> no (0 minutes of music are too few to wait for the compiler)"]
    assert said(compile="no") == []
    monkeypatch.setattr(passes, "WORTH_COMPILING", 0.1)
    again = {"tensor_output": settings_for().tensor_output / "other"}
    assert said(**again, compile="yes") == ["The VAE's kernels cannot be compiled here, so it goes without: it hurts"]
    monkeypatch.setattr(passes, "fuse_encoder", lambda _vae: None)
    again["tensor_output"] /= "third"
    assert said(**again) == ["compile: auto -> yes"]
