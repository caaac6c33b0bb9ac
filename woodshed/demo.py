"""`woodshed demo`: a tiny model that makes music learns an instrument it never heard, on a CPU, in about a minute.

Everything runs through the doors that users use: preprocess, train, resume, load. In the end one can hear, and a
classifier that knows nothing of models says, what the adapter learned.
"""

import shutil
import time
from collections.abc import Callable, Mapping
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
from woodshed.models.load import load_decoder
from woodshed.monitor.progress import duration
from woodshed.monitor.views import watch
from woodshed.sampling.waveform import write_sound
from woodshed.settings.resolve import Layer, Resolved, resolve
from woodshed.settings.schema import PreprocessSettings, TrainSettings
from woodshed.storage import write_text
from woodshed.toy.instruments import NEW
from woodshed.toy.lesson import (
    EPOCHS,
    MODEL,
    NEW_PROMPTS,
    NEW_SONGS,
    OLD_PROMPTS,
    Recital,
    distance_to_new,
    examine,
    lesson_settings,
    prompts,
    write_lesson,
)
from woodshed.toy.listener import Listener, Playing
from woodshed.toy.miniature import copy_miniature
from woodshed.toy.picture import write_spectrograms
from woodshed.toy.players import velocity_through_diffusers, velocity_through_peft
from woodshed.training.events import EpochDone, Event, Finished, Started, StepDone, Validated
from woodshed.training.loop import train

MARK = "made-by-woodshed-demo"
EPOCHS_A_LINE = 20
BAR_WIDTH = 24
STEPS, GUIDANCE = 20, 2.0  # of what is played in the end
TOLERANCE = 1e-4  # of a velocity through another library, relative to the largest


def run_demo(folder: Path, terminal: Terminal) -> None:
    """Run the chain in a folder, which is emptied first if an earlier demo made it.

    Raises:
        UserError: when the folder holds something else, or when a step does not give what it should.
    """
    started_at = time.monotonic()
    _take_folder(folder)
    terminal.say("From songs to an adapter on this machine's CPU. The model is tiny,")
    terminal.say(f"plays seven instruments, and never heard a {NEW}.")
    terminal.title("1. Songs, and a model to teach")
    dataset_json = write_lesson(folder / "songs")
    terminal.say(f"   {NEW_SONGS} songs of it, one of each other -> {folder / 'songs'}")
    copy_miniature(folder / "checkpoints")
    terminal.say(f"   a model in the original layout -> {folder / 'checkpoints'}")
    terminal.title("2. Songs to tensors, as woodshed preprocess does")
    _preprocess(folder, dataset_json, terminal)
    terminal.title("3. Training, as woodshed train does: stopped half way, resumed")
    losses = _train(folder, terminal)
    terminal.title("4. The adapter in other libraries")
    checkpoint = choose_model(find_checkpoints(folder / "checkpoints"), MODEL)
    _compare_players(folder, checkpoint, terminal)
    terminal.title("5. Sound from the model, without and with the adapter")
    _listen(folder, terminal)
    early, late = _require_a_fall(losses)
    terminal.title(f"Done in {duration(time.monotonic() - started_at)}. The loss fell from {early:.3f} to {late:.3f}.")
    terminal.say(f"   adapter   {folder / 'out' / 'final'}")
    terminal.say(f"   settings  {folder / 'out' / 'run.toml'}")
    terminal.say(f"   curves    tensorboard --logdir {folder / 'out' / 'runs'}")


def _take_folder(folder: Path) -> None:
    """Use a new, empty or earlier demo's folder, and nothing else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder: woodshed demo FOLDER.")
    content = list(folder.iterdir()) if folder.exists() else []
    if content and not (folder / MARK).is_file():
        raise UserError(f"{folder} holds something else. Name another folder: woodshed demo FOLDER.")
    for path in content:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:  # last of all the files, so that a demo that is stopped now can be started again
            path.unlink()
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
            terminal.say(f"   {event.audio_seconds:.0f} s of music in {took} -> {folder / 'tensors'}")


def _settings(folder: Path, **more: Any) -> Resolved[TrainSettings]:
    values = lesson_settings(folder / "checkpoints", folder / "tensors", folder / "out")
    return resolve(TrainSettings, [Layer("demo", values | more)])


class _ShortView:
    """Shows a run in a few lines: a bar for the mean loss of every few epochs, the longest for the first ones."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._losses: list[float] = []
        self._longest = 0.0
        self.step_losses: list[float] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Started(first_step=0):
                size = f"{event.modules} modules, {event.trainable_parameters:,} trainable parameters"
                self._terminal.say(f"   {size}, {event.total_steps} steps")
            case Started():
                self._terminal.say(f"   resumed after step {event.first_step}")
            case StepDone():
                self.step_losses.append(event.loss)
            case Validated():
                fall = f"{-event.change:.3f} +- {event.error:.3f} below the base model's"
                self._terminal.say(f"   held-out loss {event.loss:.3f}, {fall}")
            case EpochDone():
                self._losses.append(event.loss)
                if len(self._losses) == EPOCHS_A_LINE:
                    self._draw(event.epoch)
            case Finished():
                what = f"stopped after step {event.steps}, saved" if event.was_interrupted else "the adapter"
                self._terminal.say(f"   {what} -> {event.adapter}")

    def _draw(self, epoch: int) -> None:
        loss = sum(self._losses) / len(self._losses)
        self._longest = max(self._longest, loss)
        bar = "#" * round(BAR_WIDTH * loss / self._longest)
        self._terminal.say(f"   epochs {epoch - EPOCHS_A_LINE + 1:>3} to {epoch:>3}  loss {loss:.3f}  {bar}")
        self._losses = []


def _train(folder: Path, terminal: Terminal) -> list[float]:
    """Train half of the epochs, stop as Ctrl-C would, and resume; return the loss of every step."""
    view = _ShortView(terminal)
    half = EPOCHS // 2  # all songs in each step

    def part(resolved: Resolved[TrainSettings], should_stop: Callable[[], bool]) -> None:
        events = train(resolved.settings, origins=resolved.origins, should_stop=should_stop)
        watch(events, resolved.settings, terminal, show=view)

    part(_settings(folder), lambda: len(view.step_losses) == half)
    part(_settings(folder, resume_from="latest"), lambda: False)
    return view.step_losses


def _require_a_fall(losses: list[float]) -> tuple[float, float]:
    """Return the mean loss of the first quarter of all steps and that of the last."""
    quarter = len(losses) // 4
    early, late = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
    if not late < early:
        raise UserError(
            f"The loss went from {early:.3f} to {late:.3f} instead of falling: something on this machine computes "
            "wrongly. Please report this."
        )
    return early, late


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
    terminal.say(f"   it changes what the model computes by up to {change:.3f}")
    for player, play in (("PEFT", velocity_through_peft), ("diffusers", velocity_through_diffusers)):
        error = ((play(_load(checkpoint), adapter, inputs) - expected).abs().max() / expected.abs().max()).item()
        if not error < TOLERANCE or not change > 0:
            raise UserError(f"{player} plays the adapter differently (relative difference {error:.1e}).")
        precision = f"to {error:.0e} of the largest value" if error else "to the last bit"
        terminal.say(f"   {player:<9} computes the same with it, {precision}")


def _listen(folder: Path, terminal: Terminal) -> None:
    """Ask for the same pieces from the same noise without and with the adapter, and say what is heard."""
    listener = Listener(folder / "checkpoints", torch.device("cpu"))
    asked = prompts()
    found = {}
    for name, adapter in (("without", None), ("with", folder / "out" / "final")):
        playing = Playing(STEPS, GUIDANCE, adapter)
        found[name] = recital = examine(listener, MODEL, asked, playing)
        new, old = f"{recital.share_new:.0%} of {NEW_PROMPTS}", f"{recital.share_old:.0%} of {OLD_PROMPTS}"
        terminal.say(f"   {name:<7} adapter: the new heard in {new}, the old in {old}")
        _write_examples(folder, name, recital)
    pictures = folder / "spectra.png"
    write_spectrograms(pictures, [sound for recital in found.values() for sound in (recital.new[0], recital.old[0])])
    moved = [distance_to_new(recital.new) for recital in found.values()]
    terminal.say(f"   from {moved[0]:.1f} to {moved[1]:.1f} away from a real one -> {pictures}")


def _write_examples(folder: Path, name: str, recital: Recital) -> None:
    """Write what was played first for the new instrument and for an old one."""
    for what, sounds in (("new", recital.new), ("old", recital.old)):
        write_sound(folder / f"{what}_{name}_adapter.wav", torch.from_numpy(sounds[0]))
