"""`woodshed demo`: the whole chain on a tiny model and synthesized songs, on a CPU, in about a minute.

Everything runs through the doors that users use: preprocess, train, resume, load. The model is random, so its music is
noise; what the demo shows is that every part works on this machine and that the adapter learns.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woodshed.adapters.files import load_adapter
from woodshed.console import Terminal
from woodshed.data.encode import preprocess
from woodshed.data.events import Finished as Encoded
from woodshed.data.events import SongFailed
from woodshed.errors import UserError
from woodshed.models.checkpoints import Checkpoint, choose_model, find_checkpoints
from woodshed.models.decoder import Decoder
from woodshed.models.load import load_decoder, load_null_condition, load_vae
from woodshed.monitor.progress import duration
from woodshed.monitor.views import watch
from woodshed.sampling.sampler import Guidance, draw_noise, sample_latents, timesteps
from woodshed.sampling.waveform import decode_latents, write_sound
from woodshed.settings.resolve import Layer, Resolved, resolve
from woodshed.settings.schema import PreprocessSettings, TrainSettings
from woodshed.storage import write_text
from woodshed.toy.checkpoint import build_toy_root
from woodshed.toy.players import velocity_through_diffusers, velocity_through_peft
from woodshed.toy.songs import write_songs
from woodshed.training.events import Event, Finished, StepDone
from woodshed.training.loop import train

MARK = "made-by-woodshed-demo"
MODEL = "acestep-v15-base"
EPOCHS = 24
TOLERANCE = 1e-4  # of a velocity through another library, relative to the largest


def run_demo(folder: Path, terminal: Terminal) -> None:
    """Run the chain in a folder, which is emptied first if an earlier demo made it.

    Raises:
        UserError: when the folder holds something else, or when a step does not give what it should.
    """
    started_at = time.monotonic()
    _take_folder(folder)
    terminal.say("1. Songs and a tiny random model in the original layout")
    dataset_json = write_songs(folder / "songs")
    build_toy_root(folder / "checkpoints")
    terminal.say("2. Songs to tensors")
    _preprocess(folder, dataset_json, terminal)
    terminal.say("3. Train, stop in the middle, resume")
    losses = _train(folder, terminal)
    terminal.say("4. The adapter in other libraries")
    checkpoint = choose_model(find_checkpoints(folder / "checkpoints"), MODEL)
    _compare_players(folder, checkpoint, terminal)
    terminal.say("5. Sound with and without the adapter")
    _listen(folder, checkpoint, terminal)
    early, late = (sum(part) / len(part) for part in (losses[: len(losses) // 4], losses[-len(losses) // 4 :]))
    terminal.say(f"Done in {duration(time.monotonic() - started_at)}. The loss fell from {early:.3f} to {late:.3f}.")
    for what, path in (
        ("adapter", "out/final"),
        ("sound", "without_adapter.wav, with_adapter.wav"),
        ("settings", "out/run.toml"),
    ):
        terminal.say(f"  {what:<9} {folder}/{path}")
    if late >= early:
        raise UserError("The loss did not fall: something on this machine computes wrongly. Please report this.")


def _take_folder(folder: Path) -> None:
    """Use a new, empty or earlier demo's folder, and nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise UserError(f"{folder} holds something else. Name another folder: woodshed demo FOLDER.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARK, "The next demo empties this folder.\n")


def _preprocess(folder: Path, dataset_json: Path, terminal: Terminal) -> None:
    values = {
        "checkpoint_dir": folder / "checkpoints",
        "model": MODEL,
        "dataset_json": dataset_json,
        "audio_dir": dataset_json.parent,
        "tensor_output": folder / "tensors",
        "device": "cpu",
    }
    for event in preprocess(resolve(PreprocessSettings, [Layer("demo", values)]).settings):
        if isinstance(event, SongFailed):
            raise UserError(event.problem)
        if isinstance(event, Encoded):
            took = duration(event.seconds)
            terminal.say(f"   {event.encoded} songs, {event.audio_seconds:.0f} s of music in {took}")


def _settings(folder: Path, **more: Any) -> Resolved[TrainSettings]:
    values = {
        "checkpoint_dir": folder / "checkpoints",
        "model": MODEL,
        "dataset_dir": folder / "tensors",
        "output_dir": folder / "out",
        "device": "cpu",
        "rank": 8,
        "dropout": 0.0,
        "learning_rate": 5e-3,
        "warmup_steps": 4,
        "gradient_accumulation": 2,
        "gradient_checkpointing": False,
        "epochs": EPOCHS,
        "save_every": EPOCHS // 2,
        "log_every": 12,
    }
    return resolve(TrainSettings, [Layer("demo", values | more)])


def _train(folder: Path, terminal: Terminal) -> list[float]:
    """Train half of the epochs, stop as Ctrl-C would, and resume; return the loss of every step."""
    losses: list[float] = []

    def part(resolved: Resolved[TrainSettings], last_step: int) -> Finished:
        taken: list[int] = []

        def is_enough() -> bool:
            return taken[-1:] == [last_step]

        def recorded() -> Iterator[Event]:
            for event in train(resolved.settings, origins=resolved.origins, should_stop=is_enough):
                if isinstance(event, StepDone):
                    losses.append(event.loss)
                    taken.append(event.step)
                yield event

        return watch(recorded(), resolved.settings, terminal)

    half = EPOCHS // 2 * 3  # six songs, two a step
    stopped = part(_settings(folder), last_step=half)
    terminal.say(f"   stopped after step {stopped.steps}; resuming from {stopped.adapter.name}")
    part(_settings(folder, resume_from="latest"), last_step=-1)
    return losses


def _load(checkpoint: Checkpoint) -> Decoder:
    return load_decoder(checkpoint, dtype=torch.float32, device="cpu")


def _example(folder: Path) -> Mapping[str, Tensor]:
    """Return a trained song's tensors."""
    song = sorted((folder / "tensors").glob("*.pt"))[0]
    stored: Mapping[str, Tensor] = torch.load(song, weights_only=True)
    return stored


@torch.no_grad()
def _compare_players(folder: Path, checkpoint: Checkpoint, terminal: Terminal) -> None:
    """Compare the velocity with the adapter as Woodshed, PEFT and diffusers load it."""
    song, adapter = _example(folder), folder / "out" / "final"
    t = torch.tensor([0.5])
    inputs = {
        "hidden_states": torch.randn(1, *song["target_latents"].shape, generator=torch.Generator().manual_seed(0)),
        "timestep": t,
        "timestep_r": t,
        "encoder_hidden_states": song["encoder_hidden_states"][None],
        "context_latents": song["context_latents"][None],
    }
    base = _load(checkpoint)(**inputs).sample
    ours = _load(checkpoint)
    load_adapter(ours, adapter)
    expected = ours(**inputs).sample
    change = (expected - base).abs().max().item()
    terminal.say(f"   Woodshed: the adapter moves the velocity by up to {change:.3f}")
    for player, play in (("PEFT", velocity_through_peft), ("diffusers", velocity_through_diffusers)):
        error = ((play(_load(checkpoint), adapter, inputs) - expected).abs().max() / expected.abs().max()).item()
        if not error < TOLERANCE or not change > 0:
            raise UserError(f"{player} plays the adapter differently (relative difference {error:.1e}).")
        terminal.say(f"   {player}: the same velocity, relative difference {error:.1e}")


def _listen(folder: Path, checkpoint: Checkpoint, terminal: Terminal) -> None:
    """Sample the same song from the same noise with and without the adapter."""
    song = _example(folder)
    vae = load_vae(folder / "checkpoints" / "vae", dtype=torch.float32, device="cpu")
    null = load_null_condition(checkpoint, dtype=torch.float32, device="cpu")
    for name in ("without_adapter", "with_adapter"):
        decoder = _load(checkpoint)
        if name == "with_adapter":
            load_adapter(decoder, folder / "out" / "final")
        latents = sample_latents(
            decoder,
            conditions=song["encoder_hidden_states"][None],
            context=song["context_latents"][None],
            noise=draw_noise(0, *song["target_latents"].shape),
            timesteps=timesteps(10, 1.0),
            null_condition=null,
            guidance=Guidance(3.0),
        )
        write_sound(folder / f"{name}.wav", decode_latents(vae, latents[0]))
        distance = (latents[0] - song["target_latents"]).square().mean().sqrt().item()
        terminal.say(f"   {name}.wav: latents {distance:.3f} away from the song that was asked for")
