"""A tiny dataset in the documented `.pt` form and settings that train on it in a second."""

import shutil
from functools import partial

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


@pytest.fixture(scope="session")
def songs_dir(tmp_path_factory):
    """Five songs of different lengths, odd ones among them, to read only."""
    folder = tmp_path_factory.mktemp("songs")
    for seed, (name, (frames, tokens)) in enumerate(LENGTHS.items()):
        write_song(folder, name, frames=frames, tokens=tokens, seed=seed)
    return folder


@pytest.fixture
def dataset_dir(tmp_path, songs_dir):
    """Those songs, for a test that may change them."""
    return shutil.copytree(songs_dir, tmp_path / "tensors")


@pytest.fixture(scope="session")
def settings_in(checkpoint_root):
    """Build training settings for the toy base model, writing into a folder; later arguments change them."""

    def build(folder, output="out", **changes) -> TrainSettings:
        values = {
            "checkpoint_dir": checkpoint_root,
            "model": "acestep-v15-base",
            "output_dir": folder / output,
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


@pytest.fixture
def settings_for(tmp_path, dataset_dir, settings_in):
    """Build such settings in the test's own folder, with songs of its own."""
    return partial(settings_in, tmp_path, dataset_dir=dataset_dir)
