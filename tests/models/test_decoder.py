"""The decoder against the original model's numbers, against diffusers, and against itself without padding."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AceStepTransformer1DModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from woodshed.models.checkpoints import Checkpoint
from woodshed.models.decoder import Decoder, build_decoder
from woodshed.models.keys import diffusers_to_original
from woodshed.models.load import load_decoder

INPUTS = ("hidden_states", "timestep", "timestep_r", "encoder_hidden_states", "context_latents")


@pytest.fixture
def decoder(checkpoint: Checkpoint) -> Decoder:
    return load_decoder(checkpoint, dtype=torch.float32, device="cpu")


@pytest.fixture
def base_decoder(base: Checkpoint) -> Decoder:
    return load_decoder(base, dtype=torch.float32, device="cpu")


@pytest.fixture
def cases(variant: str, read_golden: Callable[[str], dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Case -> its tensors, of the variant at hand: `decoder/T1_b1`, `train/b2_T40`."""
    by_case: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_golden(f"dit_{variant}").items():
        part, case, leaf = name.split("/", 2)
        by_case.setdefault(f"{part}/{case}", {})[leaf] = tensor
    return by_case


def draw_songs(decoder: Decoder, frames: list[int], conditions: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """Return one batch of a single song per entry, with inputs of their own lengths."""
    generator = torch.Generator().manual_seed(seed)
    channels, width = decoder.config.audio_acoustic_hidden_dim, decoder.config.encoder_hidden_size
    songs = []
    for song_frames, song_conditions in zip(frames, conditions, strict=True):
        t = torch.rand(1, generator=generator)
        songs.append(
            {
                "hidden_states": torch.randn(1, song_frames, channels, generator=generator),
                "timestep": t,
                "timestep_r": t * torch.rand(1, generator=generator),
                "encoder_hidden_states": torch.randn(1, song_conditions, width, generator=generator),
                "context_latents": torch.randn(1, song_frames, 2 * channels, generator=generator),
            }
        )
    return songs


def pad_together(songs: list[dict[str, Tensor]], padding: float) -> dict[str, Tensor]:
    """Return the songs as one batch, padded at the end with some value."""
    batch = {}
    for name in INPUTS:
        tensors = [song[name][0] for song in songs]
        if tensors[0].dim():
            batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)
        else:
            batch[name] = torch.stack(tensors)
    lengths = {"frame_lengths": "hidden_states", "condition_lengths": "encoder_hidden_states"}
    for name, source in lengths.items():
        batch[name] = torch.tensor([song[source].shape[1] for song in songs])
    return batch


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_velocities_equal_those_of_the_original(decoder, cases, assert_equal):
    compared = 0
    for name, case in cases.items():
        if name.startswith("decoder/"):
            output = decoder(case["x"], case["t"], case["r"], case["enc"], case["context"]).sample
            assert_equal(output, case["velocity"])
            compared += 1
    assert compared >= 4


def test_loss_and_gradients_equal_those_of_the_original(decoder, cases, variant, golden: Path):
    described = json.loads((golden / f"dit_{variant}.json").read_text())["cases"]
    decoder.requires_grad_(requires_grad=True)
    for name in ("train/b2_T40", "train/b4_T33_drop"):
        case, expected = cases[name], described[f"{name}/"]
        t = case["t"][:, None, None]
        noisy = t * case["noise"] + (1 - t) * case["x0"]
        velocity = decoder(noisy, case["t"], case["t"], case["encoder_hidden_states"], case["context_latents"]).sample
        loss = (velocity - (case["noise"] - case["x0"])).pow(2).mean()
        decoder.zero_grad()
        loss.backward()
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
        norms = {diffusers_to_original(key): p.grad.norm().item() for key, p in decoder.named_parameters()}
        assert norms == pytest.approx(expected["grad_norms"], rel=1e-5)


def test_diffusers_own_forward_gives_the_same(decoder):
    theirs = AceStepTransformer1DModel(**decoder.config)
    theirs.load_state_dict(decoder.state_dict(), strict=True)
    for frames in (1, 2, 17, 18, 19, 33, 95):  # 18 frames are the 9 tokens that one window spans
        (song,) = draw_songs(decoder, [frames], [7], seed=frames)
        expected = theirs.eval()(**song, return_dict=False)[0]
        assert relative_error(decoder(**song, return_dict=False)[0], expected) < 1e-5


@pytest.mark.parametrize("padding", [0.0, 100.0, float("nan")])
@pytest.mark.parametrize(
    ("frames", "conditions"),
    [([37, 64], [5, 21]), ([3, 50, 1, 50], [9, 1, 30, 9]), ([16, 12], [4, 4]), ([9, 40], [8, 3])],
)
def test_a_padded_batch_gives_each_song_what_it_gets_alone(decoder, frames, conditions, padding):
    songs = draw_songs(decoder, frames, conditions)
    batch = pad_together(songs, padding)
    if padding != padding:  # the conditions pass a linear layer first: NaN times nothing is still NaN
        batch["encoder_hidden_states"] = batch["encoder_hidden_states"].nan_to_num(1e3)
    together = decoder(**batch).sample
    for output, song, length in zip(together, songs, frames, strict=True):
        assert relative_error(output[:length], decoder(**song).sample[0]) < 1e-5
        assert output[length:].abs().sum() == 0


def test_a_padded_batch_gives_the_gradients_of_its_songs_alone(decoder):
    decoder.requires_grad_(requires_grad=True)
    songs = draw_songs(decoder, [37, 64, 5], [5, 21, 8])

    def gradients(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        decoder.zero_grad()
        for batch in batches:
            decoder(**batch).sample.pow(2).sum().backward()
        return {name: p.grad.clone() for name, p in decoder.named_parameters()}

    together, alone = gradients([pad_together(songs, 3.0)]), gradients(songs)
    for name, gradient in alone.items():
        assert relative_error(together[name], gradient) < 1e-5, name


def test_without_lengths_the_padding_would_be_heard(base_decoder):
    """The tests above can fail: the model itself does attend to padding."""
    songs = draw_songs(base_decoder, [37, 64], [5, 21])
    batch = pad_together(songs, 0.0)
    for ignored in ("frame_lengths", "condition_lengths"):
        heard = base_decoder(**(batch | {ignored: None})).sample[0, :37]
        assert relative_error(heard, base_decoder(**songs[0]).sample[0]) > 1e-3


def test_lengths_that_say_nothing_is_padded_change_nothing(base_decoder):
    (song,) = draw_songs(base_decoder, [45], [6])
    lengths = {"frame_lengths": torch.tensor([45]), "condition_lengths": torch.tensor([6])}
    assert relative_error(base_decoder(**song, **lengths).sample, base_decoder(**song).sample) < 1e-5


@pytest.mark.parametrize("is_training", [True, False])
def test_checkpointing_computes_the_layers_again_and_gives_the_same_gradients(base_decoder, is_training):
    base_decoder.train(is_training)
    layer = base_decoder.layers[0].self_attn.to_q
    layer.requires_grad_(requires_grad=True)
    batch = pad_together(draw_songs(base_decoder, [37, 64], [5, 21]), 1.0)
    calls, seen = 0, []

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    base_decoder.layers[-1].register_forward_pre_hook(count)
    for is_checkpointed in (False, True):
        if is_checkpointed:
            base_decoder.enable_gradient_checkpointing()
        calls = 0
        base_decoder.zero_grad()
        base_decoder(**batch).sample.pow(2).sum().backward()
        seen.append(layer.weight.grad.clone())
        assert calls == (2 if is_checkpointed else 1)  # once more for the backward pass
    assert torch.equal(*seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_stays_near_float32(base: Checkpoint, base_decoder, dtype):
    half = load_decoder(base, dtype=dtype, device="cpu")
    batch = pad_together(draw_songs(half, [37, 64], [5, 21]), 1.0)
    with torch.autocast("cpu", dtype=dtype):
        output = half(**batch).sample
    assert output.dtype == dtype
    assert relative_error(output.float(), base_decoder(**batch).sample) < 0.05


def test_half_precision_weights_need_no_autocast(base: Checkpoint):
    half = load_decoder(base, dtype=torch.bfloat16, device="cpu")
    (song,) = draw_songs(half, [37], [5])
    tensors = {name: value if name.startswith("timestep") else value.bfloat16() for name, value in song.items()}
    assert half(**tensors).sample.dtype == torch.bfloat16


def test_timesteps_stay_in_float32_when_everything_else_is_bf16(base: Checkpoint):
    half = load_decoder(base, dtype=torch.bfloat16, device="cpu")
    seen = []
    half.time_embed.time_sinusoid.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (song,) = draw_songs(half, [8], [3])
    song["timestep"] = torch.tensor([0.7371])  # in bf16: 0.7383, and times 1000 off by 1.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half(**song)
    torch.testing.assert_close(seen[0], torch.tensor([737.1]))


def test_a_lora_scale_is_passed_on(base_decoder):
    from peft import LoraConfig

    base_decoder.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    (song,) = draw_songs(base_decoder, [20], [5])
    full, none = base_decoder(**song).sample, base_decoder(**song, attention_kwargs={"scale": 0.0}).sample
    base_decoder.disable_adapters()
    assert torch.equal(none, base_decoder(**song).sample)
    assert not torch.allclose(full, none)


def test_no_step_of_a_long_song_is_as_large_as_its_length_squared(base: Checkpoint):
    """Shapes only, at a length where one score per pair of tokens would be the largest tensor by far."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            is_score = "scaled_dot_product" not in str(func)  # the kernel itself keeps none of them
            if isinstance(result, Tensor) and is_score:
                largest = max(largest, result.numel())
            return result

    with FakeTensorMode():
        decoder = build_decoder(base.config)
        batch = pad_together_shapes(frames=8000, conditions=20)
        with Watch():
            decoder(**batch)
    assert 0 < largest < 4000 * 4000 / 8


def pad_together_shapes(frames: int, conditions: int) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.empty(1, frames, 16),
        "timestep": torch.empty(1),
        "timestep_r": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, conditions, 32),
        "context_latents": torch.empty(1, frames, 32),
        "frame_lengths": torch.empty(1, dtype=torch.long),
        "condition_lengths": torch.empty(1, dtype=torch.long),
    }


def test_the_stream_through_the_layers_is_contiguous(base_decoder):
    seen = []
    base_decoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    (song,) = draw_songs(base_decoder, [20], [5])
    base_decoder(**song)
    assert seen == [True]
