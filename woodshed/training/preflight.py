"""Everything that can be known to be wrong before a model is loaded, found in one go."""

import math
from dataclasses import dataclass

import torch

from woodshed.adapters.lokr import LokrSettings, describe_lokr
from woodshed.adapters.targets import decoder_linear_shapes, resolve_targets
from woodshed.data.dataset import SongDataset, open_dataset
from woodshed.errors import UserError, collecting
from woodshed.models.checkpoints import Checkpoint, choose_model, find_checkpoints, fingerprint
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.settings import rules
from woodshed.settings.schema import TrainSettings
from woodshed.training.checkpoint import ResumePoint, find_resume_point
from woodshed.training.optimizers import require_optimizer


@dataclass(frozen=True)
class Plan:
    """How many steps a run takes."""

    songs: int
    batches_per_epoch: int
    steps_per_epoch: int  # optimizer steps; the last one of an epoch may hold fewer songs
    total_steps: int

    @classmethod
    def of(cls, songs: int, settings: TrainSettings) -> "Plan":
        """Count batches and optimizer steps for a dataset of `songs` songs."""
        batches = math.ceil(songs / settings.batch_size)
        steps = math.ceil(batches / settings.gradient_accumulation)
        return cls(songs, batches, steps, steps * settings.epochs)


@dataclass(frozen=True)
class Preflight:
    """What a run needs, found and checked, with nothing large in memory yet."""

    settings: TrainSettings
    checkpoint: Checkpoint
    fingerprint: str  # of the condition encoder that made, or should have made, the dataset
    dataset: SongDataset
    device: torch.device
    dtype: torch.dtype
    targets: dict[str, tuple[int, int]]  # original module names with (out, in) of their weights
    plan: Plan
    resume: ResumePoint | None
    notices: tuple[str, ...]


def lokr_settings(settings: TrainSettings) -> LokrSettings:
    """Return the LoKr switches among the settings."""
    return LokrSettings(
        linear_dim=settings.lokr_linear_dim,
        linear_alpha=settings.lokr_linear_alpha,
        factor=settings.lokr_factor,
        decompose_both=settings.lokr_decompose_both,
        use_tucker=settings.lokr_use_tucker,
        use_scalar=settings.lokr_use_scalar,
        weight_decompose=settings.lokr_weight_decompose,
    )


def check(settings: TrainSettings) -> Preflight:
    """Look at device, model, dataset, targets, optional packages, output folder and resume point.

    Raises:
        UserError: with every problem found.
    """
    problems: list[str] = []
    device = dtype = checkpoint = dataset = targets = resume = None
    digest = ""
    with collecting(problems):
        device = resolve_device(settings.device)
        dtype = resolve_precision(settings.precision, device)
    with collecting(problems):
        require_optimizer(settings.optimizer_type)
    with collecting(problems):
        resume = find_resume_point(settings)
    with collecting(problems):
        checkpoint = choose_model(find_checkpoints(settings.checkpoint_dir), settings.model)
        digest = fingerprint(checkpoint)
    if checkpoint is not None:
        with collecting(problems):
            shapes = decoder_linear_shapes(checkpoint.config)
            chosen = resolve_targets(
                shapes, attention_type=settings.attention_type, target_modules=settings.target_modules
            )
            targets = {name: shapes[name] for name in chosen}
        with collecting(problems):
            dataset = open_dataset(
                settings.dataset_dir,
                latent_channels=checkpoint.config.latent_channels,
                condition_width=checkpoint.config.condition_width,
                fingerprint=digest,
                model=checkpoint.name,
            )
    if resume is not None and checkpoint is not None:
        with collecting(problems):
            resume.refuse_misfit(settings, model=checkpoint.name, fingerprint=digest)
    if problems:
        raise UserError(*problems)
    assert device is not None
    assert dtype is not None
    assert checkpoint is not None
    assert dataset is not None
    assert targets is not None
    plan = Plan.of(len(dataset), settings)
    notices = (
        *dataset.notices,
        *rules.remarks(settings),
        *_adapter_notices(settings, targets),
        *_plan_notices(settings, plan, resume),
    )
    return Preflight(settings, checkpoint, digest, dataset, device, dtype, targets, plan, resume, notices)


def _adapter_notices(settings: TrainSettings, targets: dict[str, tuple[int, int]]) -> list[str]:
    """Say what a LoKr comes to on these layers, and which of its settings do nothing there."""
    if settings.adapter_type != "lokr":
        return []
    described = describe_lokr(targets, lokr_settings(settings))
    idle = [f"{name} has no effect: {reason}." for name, reason in described.inert.items()]
    return [f"LoKr: {'; '.join(described.lines())}.", *idle]


def _plan_notices(settings: TrainSettings, plan: Plan, resume: ResumePoint | None) -> list[str]:
    said: list[str] = []
    if settings.scheduler_type != "constant" and settings.warmup_steps >= plan.total_steps:
        said.append(
            f"The warm-up of {settings.warmup_steps} steps is not shorter than the whole run of {plan.total_steps} "
            f"steps: the learning rate never reaches its peak. Consider --warmup-steps {plan.total_steps // 10}."
        )
    if resume is not None:
        said += resume.differences(settings)
    return said
