"""The work of a step agrees with what was counted elsewhere; times are said as roughly as they are known."""

import pytest
import torch

from woodshed.models.config import read_model_config
from woodshed.wizard.pace import about, matrix_speed, song_seconds, step_work

REAL_2B = {
    **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "head_dim": 128},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "in_channels": 192, "audio_acoustic_hidden_dim": 64},
    **{"layer_types": ("sliding_attention", "full_attention") * 12, "sliding_window": 128},
}


@pytest.fixture
def config(checkpoint_root):
    return read_model_config(checkpoint_root / "acestep-v15-base").model_copy(update=REAL_2B)


@pytest.mark.parametrize(("seconds", "kept", "recomputed"), [(60, 5.04, 7.5), (240, 22.1, 32.1), (600, 66.6, 94.9)])
def test_the_work_of_a_step_is_what_was_counted_for_the_real_model(config, seconds, kept, recomputed):
    # Source of the numbers, in TFLOP: our measurements at real size, 512 conditions.
    for checkpointing, expected in ((False, kept), (True, recomputed)):
        found = step_work(config, frames=25 * seconds, conditions=512, recomputed=float(checkpointing))
        assert found / 1e12 == pytest.approx(expected, rel=0.07)


def test_the_time_of_a_long_song_is_near_what_an_h200_took(config):
    work = step_work(config, frames=15000, conditions=512, recomputed=1.0)
    assert song_seconds(config, torch.device("cuda"), work, 760e12) == pytest.approx(0.644, rel=0.4)


@pytest.mark.parametrize(("seconds", "measured"), [(63, 0.028), (131, 0.044), (240, 0.073)])
def test_a_captured_step_is_near_what_an_h100_took(config, seconds, measured):
    work = step_work(config, frames=25 * seconds, conditions=512, recomputed=0.0)
    assert song_seconds(config, torch.device("cuda"), work, 780e12, is_captured=True) == pytest.approx(
        measured, rel=0.4
    )


def test_a_short_song_takes_as_long_as_starting_its_kernels(config):
    assert song_seconds(config, torch.device("cuda"), 1.0, 760e12) == pytest.approx(0.288)


def test_this_machines_speed_is_measured():
    assert 1e8 < matrix_speed("cpu", torch.float32) < 1e15


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "less than a minute"),
        (100, "a minute or two"),
        (1000, "about 17 minutes"),
        (9000, "about 2.5 hours"),
        (400_000, "about 4.6 days"),
    ],
)
def test_times_are_rough_words(seconds, text):
    assert about(seconds) == text
