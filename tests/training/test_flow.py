"""The objective: identities and limits, and the original's loss and gradients on every variant."""

import json

import pytest
import torch

from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.keys import diffusers_to_original
from woodshed.models.load import load_decoder, load_null_condition
from woodshed.training.flow import drop_conditions, flow_matching_loss, mix_with_noise, true_velocity

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_at_zero_there_is_the_song_and_at_one_there_is_noise():
    latents, noise = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    t = torch.tensor([0.0, 1.0])
    mixed = mix_with_noise(latents, noise, t)
    assert torch.equal(mixed[0], latents[0])
    assert torch.equal(mixed[1], noise[1])


def test_following_the_velocity_from_noise_reaches_the_song():
    latents, noise = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    x, t = noise, 1.0
    for _ in range(10):
        x = x - 0.1 * true_velocity(latents, noise)
        t -= 0.1
    torch.testing.assert_close(x, latents)


def test_the_velocity_is_the_derivative_of_the_mix():
    latents, noise = draw(1, 4, 2).double(), draw(1, 4, 2, seed=1).double()
    t = torch.tensor([0.37], dtype=torch.double)
    slope = (mix_with_noise(latents, noise, t + 1e-6) - mix_with_noise(latents, noise, t - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, true_velocity(latents, noise))


def test_a_perfect_model_has_zero_loss_and_a_flipped_sign_has_not():
    latents, noise = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    velocity = true_velocity(latents, noise)
    assert torch.equal(flow_matching_loss(velocity, latents, noise, None), torch.zeros(2))
    assert (flow_matching_loss(-velocity, latents, noise, None) > 1).all()


def test_the_loss_is_the_plain_mean_square_per_song():
    latents, noise, predicted = (draw(3, 7, 4, seed=seed) for seed in range(3))
    expected = ((predicted - (noise - latents)) ** 2).mean(dim=(1, 2))
    torch.testing.assert_close(flow_matching_loss(predicted, latents, noise, None), expected)
    full = torch.tensor([7, 7, 7])
    torch.testing.assert_close(flow_matching_loss(predicted, latents, noise, full), expected)


def test_frames_beyond_a_songs_end_do_not_count():
    latents, noise, predicted = (draw(2, 7, 4, seed=seed) for seed in range(3))
    lengths = torch.tensor([7, 3])
    loss = flow_matching_loss(predicted, latents, noise, lengths)
    alone = flow_matching_loss(predicted[1:, :3], latents[1:, :3], noise[1:, :3], None)
    torch.testing.assert_close(loss[1:], alone)
    predicted[1, 3:] = 1e6
    assert torch.equal(flow_matching_loss(predicted, latents, noise, lengths), loss)


def test_a_half_precision_velocity_is_compared_in_float32():
    latents, noise = draw(1, 5, 3) * 300, draw(1, 5, 3, seed=1) * 300
    loss = flow_matching_loss(torch.zeros(1, 5, 3, dtype=torch.float16), latents, noise, None)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()


def test_dropped_songs_get_the_null_embedding_everywhere_and_others_keep_their_conditions():
    conditions, null = draw(3, 5, 4), draw(1, 1, 4, seed=1)
    out = drop_conditions(conditions, null, torch.tensor([True, False, True]))
    assert torch.equal(out[0], null[0].expand(5, 4))
    assert torch.equal(out[1], conditions[1])
    assert torch.equal(out[2], null[0].expand(5, 4))


VARIANTS = ["base", "sft", "turbo", "xl-base", "xl-turbo"]


def cases():
    return [(variant, case) for variant in VARIANTS for case in ("b2_T40", "b4_T33_drop")]


@pytest.fixture(scope="module")
def model_of(checkpoint_root):
    found = find_checkpoints(checkpoint_root)
    loaded = {}

    def load(variant):
        if variant not in loaded:
            checkpoint = choose_model(found, f"acestep-v15-{variant}")
            decoder = load_decoder(checkpoint, dtype=torch.float32, device=CPU).requires_grad_(True)
            loaded[variant] = decoder, load_null_condition(checkpoint, dtype=torch.float32, device=CPU)
        return loaded[variant]

    return load


@pytest.mark.parametrize(("variant", "case"), cases())
def test_loss_and_every_gradient_norm_equal_the_originals(golden, read_golden, model_of, variant, case):
    decoder, null = model_of(variant)
    tensors = {
        name.removeprefix(f"train/{case}/"): value
        for name, value in read_golden(f"dit_{variant}").items()
        if name.startswith(f"train/{case}/")
    }
    facts = json.loads((golden / f"dit_{variant}.json").read_text())["cases"][f"train/{case}/"]
    latents, noise, t = tensors["x0"], tensors["noise"], tensors["t"]
    dropped = tensors["rand_u"] < facts["cfg_ratio"]
    conditions = drop_conditions(tensors["encoder_hidden_states_before_dropout"], null, dropped)
    torch.testing.assert_close(conditions, tensors["encoder_hidden_states"])
    decoder.zero_grad()
    velocity = decoder(
        mix_with_noise(latents, noise, t),
        timestep=t,
        timestep_r=t,
        encoder_hidden_states=conditions,
        context_latents=tensors["context_latents"],
    ).sample
    losses = flow_matching_loss(velocity, latents, noise, None)
    losses.mean().backward()
    torch.testing.assert_close(losses, tensors["per_sample_mse"], rtol=1e-5, atol=0)
    assert losses.mean().item() == pytest.approx(facts["loss"], rel=1e-5)
    grads = {diffusers_to_original(name): p.grad for name, p in decoder.named_parameters()}
    found = {name: grad.norm().item() for name, grad in grads.items()}
    assert found.keys() == facts["grad_norms"].keys()
    total = facts["grad_total_norm"]
    for name, norm in facts["grad_norms"].items():
        assert found[name] == pytest.approx(norm, rel=1e-5, abs=1e-6 * total), name
    for name, grad in tensors.items():
        if name.startswith("grad/"):
            worst = (grads[name.removeprefix("grad/")] - grad).abs().max() / grad.abs().max()
            assert worst < 1e-5, name
