"""Where a run continues, and whether it can: what a checkpoint says of the run that wrote it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from woodshed.errors import UserError
from woodshed.settings import rules
from woodshed.settings.schema import TrainSettings

MUST_MATCH = (
    "adapter_type",
    "attention_type",
    "target_modules",
    "rank",
    "rank_pattern",
    "oft_block_size",
    "lokr_linear_dim",
    "lokr_factor",
    "lokr_decompose_both",
    "lokr_use_tucker",
    "lokr_use_scalar",
    "lokr_weight_decompose",
    "bias",
    "optimizer_type",
    "validation_share",
)
"""Settings that decide which tensors exist; a resume with another value cannot continue."""
MAY_CHANGE_SILENTLY = (
    "checkpoint_dir",
    "model",
    "dataset_dir",
    "output_dir",
    "resume_from",
    "init_from",
    "save_every",
    "log_every",
    "keep_last",
    "keep_best",
    "average_best",
    "log_dir",
    "log_heavy_every",
    "sample_every_n_epochs",
    "sample_count",
    "sample_seconds",
    "sample_format",
    "sample_prompts",
    "validate_every_n_epochs",
    "early_stop",
    "max_time",
    "num_workers",
    "pin_memory",
    "prefetch_factor",
    "persistent_workers",
    "keep_in_memory",
    "gradient_checkpointing",
    "recompute",
    "offload_encoder",
    "targets_from",  # the modules themselves are compared: an estimate may lie elsewhere now
    "top_k",
)
"""Settings that change neither the numbers nor the files that matter."""


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 1  # the epoch in progress, counting from 1
    steps_in_epoch: int = 0  # optimizer steps done in it
    step: int = 0  # optimizer steps done in all
    epoch_loss: float = 0.0  # sum over the songs seen in this epoch
    epoch_songs: int = 0


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a run continues from."""

    folder: Path
    position: Position
    settings: dict[str, Any]  # of the run that wrote it
    model: str
    fingerprint: str
    songs: int
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16 loss scaling
    targets: tuple[str, ...] = ()  # the adapted modules; empty in checkpoints that do not say
    held_out: tuple[str, ...] = ()  # names of the songs that were kept from training
    validation: dict[str, Any] = field(default_factory=dict)  # what was measured on them
    techniques: dict[str, Any] = field(default_factory=dict)  # how its steps were computed
    run: str = ""  # the identity of the run, the same in all its checkpoints

    def refuse_misfit(self, settings: TrainSettings, *, model: str, fingerprint: str, songs: int | None) -> None:
        """Stop when this checkpoint cannot continue with these settings.

        Args:
            settings: of the run that wants to continue.
            model, fingerprint: of its model.
            songs: in its dataset; None when that cannot be opened.

        Raises:
            UserError: naming everything that differs.
        """
        now = settings.model_dump(mode="json")
        problems = [
            f"{self.folder} was trained with {name} {self.settings[name]}; this run asks for {now[name]}."
            for name in MUST_MATCH
            if _differ(self.settings.get(name, now[name]), now[name]) and _concerns(name, settings)
        ]
        if fingerprint != self.fingerprint:
            problems.append(f"{self.folder} was trained on {self.model}; this run asks for {model}.")
        if self.position.steps_in_epoch:
            problems += [
                f"{self.folder} stopped in the middle of an epoch with {name} {self.settings[name]}; "
                f"finish that epoch with the same value instead of {now[name]}."
                for name in ("batch_size", "gradient_accumulation", "seed")
                if self.settings.get(name) != now[name]
            ]
            if songs not in (None, self.songs):
                problems.append(
                    f"{self.folder} stopped in the middle of an epoch over {self.songs} songs; finish that epoch with "
                    f"the same songs instead of {songs}."
                )
        done = self.position.epoch - 1
        is_whole = (settings.output_dir / "final").exists()  # else a run that was stopped before it comes to its end
        if settings.epochs < done or (settings.epochs == done and is_whole):
            problems.append(
                f"{self.folder} has already done {done} epochs; to train on, ask for more with --epochs {done + 10}."
            )
        if problems:
            raise UserError(*problems)

    def other_techniques(self, now: Mapping[str, Any]) -> list[str]:
        """Return a sentence when steps are computed in another way than before, as on another machine."""
        odd = [f"{name} {now[name]} instead of {old}" for name, old in self.techniques.items() if now.get(name) != old]
        return [f"Steps are computed with {', '.join(odd)}: the same up to rounding, not to the last bit."] * bool(odd)

    def differences(self, settings: TrainSettings, *, songs: int) -> list[str]:
        """Return what this run changes about the one it continues, as sentences for the user."""
        now = settings.model_dump(mode="json")
        said = [
            f"Resuming with {name} {now[name]} instead of {self.settings[name]}."
            for name in now
            if name not in (*MUST_MATCH, *MAY_CHANGE_SILENTLY, "epochs")
            and self.settings.get(name, now[name]) != now[name]
        ]
        if songs != self.songs:
            said.append(f"Resuming with {songs} songs instead of {self.songs}.")
        before = self.settings.get("epochs")
        if before != now["epochs"]:
            said.append(
                f"Resuming for {now['epochs']} epochs instead of {before}: the learning-rate schedule is laid out anew "
                "over the whole length."
            )
        return said


def _differ(before: Any, now: Any) -> bool:
    """Compare two values of a setting; words in another order mean the same layers."""
    return sorted(before) != sorted(now) if isinstance(before, list) and isinstance(now, list) else bool(before != now)


def _concerns(name: str, settings: TrainSettings) -> bool:
    """Tell whether a setting matters to this adapter family, and to where its modules come from."""
    if name in ("attention_type", "target_modules"):
        return settings.targets_from is None
    return rules.concerns_family(name, settings)
