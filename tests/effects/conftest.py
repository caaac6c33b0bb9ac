"""A bench on which a single setting is changed, and its effect observed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Saved, StepDone
from woodshed.training.loop import take_step, train
from woodshed.training.preflight import check as preflight
from woodshed.training.run import load_run

SONGS = {"a": 12, "b": 10, "c": 8, "d": 10}  # frames of each


class Bench:
    """Trains the toy model on four tiny songs, with whatever settings a check wants."""

    def __init__(self, root: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.checkpoints, self.patch = root, checkpoints, monkeypatch
        self.runs = 0
        self.songs = root / "songs"
        self.songs.mkdir()
        for seed, (name, frames) in enumerate(SONGS.items()):
            self.write_song(name, frames, seed)

    def write_song(self, name, frames, seed):
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(frames, 16, generator=generator)
        sample = {
            "target_latents": latents,
            "attention_mask": torch.ones(frames),
            "encoder_hidden_states": torch.randn(5, 32, generator=generator),
            "encoder_attention_mask": torch.ones(5, dtype=torch.bool),
            "context_latents": torch.cat([0.1 * latents, torch.ones_like(latents)], dim=1),
            "metadata": {},
        }
        torch.save(sample, self.songs / f"{name}.pt")

    def settings(self, **changes) -> TrainSettings:
        self.runs += 1
        values = {
            "checkpoint_dir": self.checkpoints,
            "model": "acestep-v15-base",
            "dataset_dir": self.songs,
            "output_dir": self.root / f"run-{self.runs}",
            "device": "cpu",
            "target_modules": "q_proj",
            "rank": 4,
            "dropout": 0,
            "warmup_steps": 0,
            "gradient_accumulation": 2,
            "epochs": 2,
            "num_workers": 0,
            "save_every": 0,
        }
        return resolve(TrainSettings, [Layer("test", values | changes)]).settings

    def load(self, **changes):
        return load_run(preflight(self.settings(**changes)))

    def step(self, **changes):
        """Take one optimizer step and return the run with what it measured."""
        run = self.load(**changes)
        group = list(run.loader.epoch(1))[: run.settings.gradient_accumulation]
        run.loader.close()
        return run, take_step(run, [*run.prepare(group)])

    def events(self, kind, **changes):
        return [event for event in train(self.settings(**changes)) if isinstance(event, kind)]

    def rates(self, **changes):
        return [event.learning_rate for event in self.events(StepDone, learning_rate=1, **changes)]

    def modules(self, **changes):
        return set(preflight(self.settings(**changes)).targets)

    def parameters(self, **changes):
        return self.load(**changes).adapter.trainable_parameters()

    def lokr(self, **changes):
        return self.load(adapter_type="lokr", lokr_factor=2, lokr_linear_dim=2, **changes).adapter

    def recipe(self, **changes):
        folder = self.events(Saved, epochs=1, **changes)[-1].path
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            return json.loads(file.metadata()["woodshed"])

    def loader(self, **changes):
        """A loader with one worker that reads from the disk, on four songs."""
        return self.load(**{"keep_in_memory": "no", "num_workers": 1} | changes).loader


@pytest.fixture
def bench(tmp_path, checkpoint_root, monkeypatch):
    return Bench(tmp_path, checkpoint_root, monkeypatch)
