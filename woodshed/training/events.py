"""What a training run tells the world: plain frozen records that views, logs and tests consume.

The loop yields these and nothing else; whoever listens decides what to show. Every field is a plain Python value so
that a record can be written as one line of JSON.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run is about to take its first step."""

    output_dir: Path
    model: str
    device: str  # "cuda:0 (NVIDIA H200)", "cpu"
    precision: str  # "bf16", "fp16" or "fp32"
    songs: int
    modules: int  # adapted modules of the decoder
    trainable_parameters: int
    epochs: int
    steps_per_epoch: int  # optimizer steps
    total_steps: int
    first_epoch: int  # 1 unless resumed
    first_step: int  # optimizer steps already done: 0 unless resumed
    run: str = ""  # its identity, the same when it is resumed


@dataclass(frozen=True)
class Notice:
    """One sentence the user should read: a choice made for them, a setting without effect, a risk."""

    text: str


@dataclass(frozen=True)
class StepDone:
    """One optimizer step."""

    step: int  # counts from 1 over the whole run
    epoch: int  # counts from 1
    loss: float  # mean over the songs of the step
    learning_rate: float  # the rate this step used; for Prodigy d * rate
    grad_norm: float  # total, before clipping
    songs: int  # songs in this step
    audio_seconds: float  # latents seen in this step, as seconds of music
    seconds: float  # wall time of this step, with what was done since the last one; a first one's rehearsal not
    is_logged: bool  # falls on `log_every`
    module_grad_norms: dict[str, float] | None = None  # before clipping; only on `log_heavy_every`
    waited: float = 0.0  # seconds of it in which its songs were not there yet


@dataclass(frozen=True)
class EpochDone:
    """All songs were seen once more."""

    epoch: int
    loss: float  # mean over the epoch's songs
    seconds: float


@dataclass(frozen=True)
class Validated:
    """The adapter was measured on songs that it never trained on, and on as many that it did; see `validation`."""

    epoch: int  # the last finished one
    step: int
    songs: int  # held out, and as many of the others
    loss: float  # of the adapter on the held-out songs
    change: float  # minus that of the base model on the same draws: below 0 what was learned carries over
    error: float  # standard error of the change
    train_loss: float
    train_change: float
    train_error: float
    gap: float  # change - train_change: what was learned by heart
    is_best: bool  # the lowest loss so far
    seconds: float


@dataclass(frozen=True)
class SampleMade:
    """A sound file was written whole."""

    path: Path
    epoch: int  # after which it was made; 0 for the base model
    step: int
    number: int  # of the prompt, counting from 1
    title: str  # of the prompt
    sample_rate: int
    seconds: float  # of sound


@dataclass(frozen=True)
class Saved:
    """A folder was written whole."""

    path: Path
    kind: str  # "checkpoint", "best", "average", "final" or "interrupted"
    epoch: int
    step: int


@dataclass(frozen=True)
class Finished:
    """The run took its last step, or was asked to stop; the adapter at `adapter` is safe on disk."""

    adapter: Path
    epochs: int
    steps: int
    seconds: float
    peak_memory_bytes: int | None  # on the device; None where the device does not count
    was_interrupted: bool = False


Event = Started | Notice | StepDone | EpochDone | Validated | SampleMade | Saved | Finished
