"""A tiny dataset in the documented `.pt` form and settings that train on it in a second."""

import pytest
import torch

from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.loop import train


def write_song(folder, name, *, frames, tokens, channels=16, width=32, seed=0):
    """Write one sample file as preprocessing does, with random content."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(frames, channels, generator=generator)
    context = torch.cat([torch.randn(frames, channels, generator=generator) * 0.1, torch.ones(frames, channels)], dim=1)
    sample = {
        "target_latents": latents,
        "attention_mask": torch.ones(frames),
        "encoder_hidden_states": torch.randn(tokens, width, generator=generator),
        "encoder_attention_mask": torch.ones(tokens, dtype=torch.bool),
        "context_latents": context,
        "metadata": {"filename": f"{name}.wav", "caption": "a test"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(sample, folder / f"{name}.pt")


@pytest.fixture
def train_until():
    """Train, ask to stop once an event fits, and return all events."""

    def run(settings, is_time):
        events = []
        for event in train(settings, should_stop=lambda: any(map(is_time, events))):
            events.append(event)  # noqa: PERF402 - what is known so far is asked for on the way
        return events

    return run


LENGTHS = {"a": (40, 9), "b": (33, 12), "c": (50, 5), "d": (21, 7), "e": (64, 10)}


@pytest.fixture
def dataset_dir(tmp_path):
    """Five songs of different lengths, odd ones among them."""
    folder = tmp_path / "tensors"
    for seed, (name, (frames, tokens)) in enumerate(LENGTHS.items()):
        write_song(folder, name, frames=frames, tokens=tokens, seed=seed)
    return folder


@pytest.fixture
def settings_for(tmp_path, dataset_dir, checkpoint_root):
    """Build training settings for the toy base model; later arguments change them."""

    def build(output="out", **changes) -> TrainSettings:
        values = {
            "checkpoint_dir": checkpoint_root,
            "model": "acestep-v15-base",
            "dataset_dir": dataset_dir,
            "output_dir": tmp_path / output,
            "device": "cpu",
            "rank": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "gradient_accumulation": 2,
            "epochs": 2,
            "num_workers": 0,
            "save_every": 0,
            "log_every": 1,
        }
        return resolve(TrainSettings, [Layer("test", values | changes)]).settings

    return build
