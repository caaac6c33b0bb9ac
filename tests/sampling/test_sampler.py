"""Sampling equals the original's trajectories on every variant."""

import json

import pytest
import torch

from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_decoder, load_null_condition
from woodshed.sampling.sampler import (
    Guidance,
    draw_noise,
    plan_timesteps,
    sample_latents,
    timesteps,
    turbo_timesteps,
    walk,
)
from woodshed.training.timesteps import TURBO_TIMESTEPS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model_of(checkpoint_root):
    found, loaded = find_checkpoints(checkpoint_root), {}

    def load(variant):
        if variant not in loaded:
            checkpoint = choose_model(found, f"acestep-v15-{variant}")
            null = load_null_condition(checkpoint, dtype=torch.float32, device=CPU)
            loaded[variant] = load_decoder(checkpoint, dtype=torch.float32, device=CPU), null
        return loaded[variant]

    return load


def inputs_of(golden):
    source = golden["sample/common/src_latents"]
    return {
        "conditions": golden["sample/common/enc"],
        "context": torch.cat([source, torch.ones_like(source)], dim=-1),
        "noise": golden["sample/common/noise_seed1234"],
    }


def assert_close(found, expected):
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("variant", ["turbo", "xl-turbo"])
def test_turbo_sampling_equals_the_originals(read_golden, model_of, variant, shift):
    decoder, _ = model_of(variant)
    golden = read_golden(f"dit_{variant}")
    steps = turbo_timesteps(shift)
    assert steps == pytest.approx(golden[f"sample/ode_shift{shift}/timesteps"].tolist())
    assert_close(
        sample_latents(decoder, timesteps=steps, **inputs_of(golden)), golden[f"sample/ode_shift{shift}/final"]
    )


def cases():
    names = ["ode10_cfg7_apg", "ode10_cfg7_apg_shift3", "ode10_nocfg", "ode10_cfg4_interval"]
    return [(variant, case) for variant in ("base", "xl-base") for case in names] + [
        ("sft", "ode10_cfg7_apg"),
        ("sft", "ode10_nocfg"),
    ]


@pytest.mark.parametrize(("variant", "case"), cases())
def test_guided_sampling_equals_the_originals(golden, read_golden, model_of, variant, case):
    decoder, null = model_of(variant)
    stored = read_golden(f"dit_{variant}")
    given = json.loads((golden / f"dit_{variant}.json").read_text())["cases"][f"sample/{case}/"]["args"]
    scale = given.get("diffusion_guidance_sale", given.get("diffusion_guidance_scale"))
    interval = (given.get("cfg_interval_start", 0.0), given.get("cfg_interval_end", 1.0))
    steps = timesteps(given["infer_steps"], given.get("shift", 1.0))
    assert steps == pytest.approx(stored[f"sample/{case}/timesteps"].tolist())
    latents = sample_latents(
        decoder, timesteps=steps, null_condition=null, guidance=Guidance(scale, interval), **inputs_of(stored)
    )
    assert_close(latents, stored[f"sample/{case}/final"])


@pytest.mark.parametrize("case", ["ode10_cfg7_apg", "ode10_nocfg"])
def test_every_step_of_a_walk_equals_the_originals(read_golden, model_of, case):
    decoder, null = model_of("base")
    stored = read_golden("dit_base")
    walked = walk(
        decoder,
        timesteps=stored[f"sample/{case}/timesteps"].tolist(),
        null_condition=null,
        guidance=Guidance(7.0 if "cfg7" in case else 1.0),
        **inputs_of(stored),
    )
    for found, expected in zip(
        [inputs_of(stored)["noise"], *walked], stored[f"sample/{case}/x_per_step"], strict=False
    ):
        assert_close(found[0], expected)


def test_turbo_models_snap_to_their_tables_in_eight_steps_only():
    assert plan_timesteps(8, 2.6, is_turbo=True) == turbo_timesteps(3.0)
    assert plan_timesteps(8, 2.6, is_turbo=False) == timesteps(8, 2.6)
    assert plan_timesteps(12, 2.6, is_turbo=True) == timesteps(12, 2.6)


def test_the_turbo_table_is_the_one_that_vanilla_training_uses():
    assert turbo_timesteps(3.0) == pytest.approx(TURBO_TIMESTEPS)


@pytest.mark.parametrize(("given", "nearest"), [(0.2, 1), (1.6, 2), (2.4, 2), (9, 3)])
def test_turbo_shifts_are_snapped_to_the_nearest_table(given, nearest):
    assert turbo_timesteps(given) == turbo_timesteps(nearest)


def test_guidance_of_one_does_nothing_and_outside_its_interval_neither():
    assert not Guidance(1.0).acts_at(0.5)
    assert Guidance(7.0, (0.25, 0.75)).acts_at(0.25)
    assert not Guidance(7.0, (0.25, 0.75)).acts_at(0.2)


def test_guidance_adds_nothing_along_the_conditional_velocity():
    with_condition, without = draw_noise(1, 50, 4), draw_noise(2, 50, 4)
    added = Guidance(3.0)(with_condition, without) - with_condition
    along = (added.double() * with_condition.double()).sum(dim=1)
    assert along.abs().max() < 1e-4
    assert added.norm(dim=1).max() <= 2 * 2.5 + 1e-4


def test_noise_depends_on_the_seed_alone():
    assert torch.equal(draw_noise(7, 10, 4), draw_noise(7, 10, 4))
    assert not torch.equal(draw_noise(7, 10, 4), draw_noise(8, 10, 4))
