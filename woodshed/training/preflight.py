"""Everything that can be known to be wrong before a model is loaded, found in one go."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from woodshed.adapters.adapter import quote_some
from woodshed.adapters.families import count_parameters, lokr_settings
from woodshed.adapters.lokr_shape import LokrDescription, describe_lokr
from woodshed.adapters.ranking import ranked_targets
from woodshed.adapters.saved import read_adapter
from woodshed.adapters.start import check_start
from woodshed.adapters.targets import decoder_linear_shapes, resolve_targets
from woodshed.data.batches import Keep
from woodshed.data.dataset import SongDataset, open_dataset
from woodshed.errors import UserError, collecting
from woodshed.models.blocks import RECOMPUTED
from woodshed.models.checkpoints import Checkpoint, choose_model, find_checkpoints, fingerprint
from woodshed.models.config import ModelConfig
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.models.frozen import BITS
from woodshed.models.memory import MemoryEstimate, Trained
from woodshed.sampling.preview import PreviewPlan, plan_preview
from woodshed.settings import rules
from woodshed.settings.schema import TrainSettings
from woodshed.training.checkpoint import find_resume_point
from woodshed.training.from_estimate import estimate_notices
from woodshed.training.holdout import Split, split_songs
from woodshed.training.memory_plan import fit, longest_song, place_songs, plan_memory, room_beside, trained_by
from woodshed.training.optimizers import require_optimizer
from woodshed.training.readiness import check_readiness
from woodshed.training.resume_point import Position, ResumePoint
from woodshed.training.team import own_device, own_place, refuse_too_many
from woodshed.training.techniques import Techniques, choose_techniques


@dataclass(frozen=True)
class Plan:
    """How many steps a run takes."""

    songs: int
    batches_per_epoch: int
    steps_per_epoch: int  # optimizer steps; the last one of an epoch may hold fewer songs
    total_steps: int  # of the whole run, with those done before a resume
    epochs_left: int

    @classmethod
    def of(cls, songs: int, settings: TrainSettings, done: Position | None = None) -> "Plan":
        """Count batches and optimizer steps for a dataset of `songs` songs.

        Args:
            songs: how many there are now.
            settings: of this run.
            done: where a resumed run goes on; its finished epochs may have had other steps than those to come.
        """
        batches = math.ceil(songs / settings.batch_size)
        steps = math.ceil(batches / settings.gradient_accumulation)
        done = done or Position()
        before = done.step - done.steps_in_epoch
        left = settings.epochs - done.epoch + 1
        return cls(songs, batches, steps, before + steps * left, left)


@dataclass(frozen=True)
class Preflight:
    """What a run needs, found and checked, with nothing large in memory yet."""

    settings: TrainSettings
    checkpoint: Checkpoint
    fingerprint: str  # of the condition encoder that made, or should have made, the dataset
    dataset: SongDataset  # the songs that train
    held_out: SongDataset | None  # those that do not, where there are any
    preview: PreviewPlan | None  # where samples are wanted
    device: torch.device
    dtype: torch.dtype
    targets: dict[str, tuple[int, int]]  # original module names with (out, in) of their weights
    adapter_parameters: int  # trainable numbers of the adapter, without biases
    kept: Keep  # where songs stay once they were read; never auto
    songs_on_card: int  # bytes that those take which stay there
    inert: Mapping[str, str]  # settings that do nothing in this run, each with the reason
    plan: Plan
    techniques: Techniques  # how a micro-step is computed
    resume: ResumePoint | None
    notices: tuple[str, ...]

    @property
    def songs(self) -> int:
        """How many songs train, wholly or in pieces."""
        return len(set(self.dataset.files))

    @property
    def is_resident(self) -> bool:
        """Whether songs stay in memory, so that no workers run."""
        return self.kept != "no"


def check(settings: TrainSettings) -> Preflight:
    """Look at device, model, dataset, targets, optional packages, output folder and resume point.

    Raises:
        UserError: with every problem found.
    """
    problems, start_notices, chosen = list[str](), list[str](), list[str]()
    device = dtype = checkpoint = songs = targets = resume = preview = techniques = None
    digest, adapter_parameters = "", 0
    with collecting(problems):
        device = _own_device(settings)
        dtype = resolve_precision(settings.precision, device)
    with collecting(problems):
        require_optimizer(settings.optimizer_type)
    with collecting(problems):
        resume = find_resume_point(settings)
    with collecting(problems):
        found = find_checkpoints(settings.checkpoint_dir)
        checkpoint = choose_model(found, settings.model)
        preview = plan_preview(settings, found, checkpoint)
        digest = fingerprint(checkpoint)
    if checkpoint is not None:
        with collecting(problems):
            targets = find_targets(settings, checkpoint, digest)
        with collecting(problems):
            songs = _open_songs(settings, checkpoint, digest, resume)
    if resume is not None and checkpoint is not None:
        with collecting(problems):
            count = None if songs is None else len(songs.training)
            resume.refuse_misfit(settings, model=checkpoint.name, fingerprint=digest, songs=count)
    if resume is not None and targets is not None:
        with collecting(problems):
            _refuse_other_targets(resume, settings, targets)
    if targets is not None and songs is not None and settings.targets_from is not None:
        start_notices += estimate_notices(settings.targets_from, model=checkpoint.name, files=songs.files)
    if targets is not None:
        with collecting(problems):
            adapter_parameters = count_parameters(targets, settings)
        with collecting(problems):
            if settings.init_from is not None and resume is None and checkpoint is not None:
                start_notices += check_start(read_adapter(settings.init_from), targets, settings)
    if device is not None and dtype is not None and songs is not None and checkpoint is not None:
        with collecting(problems):
            techniques, chosen = choose_techniques(settings, device, dtype, _passes(settings, songs), checkpoint.config)
    if problems:
        raise UserError(*problems)
    assert device is not None
    assert dtype is not None
    assert checkpoint is not None
    assert songs is not None
    assert targets is not None
    assert techniques is not None
    dataset = songs.training
    trained = trained_by(settings, checkpoint.config, targets, adapter_parameters)
    techniques, fitted = _fit(settings, checkpoint.config, trained, techniques, dataset, device, dtype, resume)
    plan = Plan.of(len(dataset), settings, resume.position if resume else None)
    kept, songs_on_card = _place_songs(settings, checkpoint.config, trained, techniques, dataset, device, dtype)
    lokr = describe_lokr(targets, lokr_settings(settings)) if settings.adapter_type == "lokr" else None
    notices = (*dataset.notices, *songs.notices, *(preview.notices if preview else ()), *rules.remarks(settings))
    notices += (*_lokr_notices(lokr), *start_notices, *chosen, *fitted, *_plan_notices(settings, plan, resume))
    notices += tuple(check_readiness(settings, device, trained, plan.epochs_left))
    return Preflight(
        settings=settings,
        checkpoint=checkpoint,
        fingerprint=digest,
        dataset=dataset,
        held_out=songs.held_out,
        preview=preview,
        device=device,
        dtype=dtype,
        targets=targets,
        adapter_parameters=adapter_parameters,
        kept=kept,
        songs_on_card=songs_on_card,
        inert=_inert(settings, device, lokr, kept=kept, has_held_out=songs.held_out is not None),
        plan=plan,
        techniques=techniques,
        resume=resume,
        notices=notices,
    )


def _own_device(settings: TrainSettings) -> torch.device:
    """Return the device of this process among those that a launcher started."""
    place = own_place()
    refuse_too_many(place, settings.gradient_accumulation)
    return own_device(resolve_device(settings.device), settings.device, place)


def _fit(
    settings: TrainSettings,
    config: ModelConfig,
    trained: Trained,
    techniques: Techniques,
    dataset: SongDataset,
    device: torch.device,
    dtype: torch.dtype,
    resume: ResumePoint | None,
) -> tuple[Techniques, list[str]]:
    """Use a card's free memory as well as it can be; a resumed run does as before, to the last bit."""
    asked = ("recompute", "gradient_checkpointing", "base_precision")
    if resume is not None and all(resume.settings.get(name) == getattr(settings, name) for name in asked):
        before, packed = (resume.techniques.get(name) for name in ("recompute", "packed"))
        return replace(
            techniques,
            recompute=before if before in RECOMPUTED else techniques.recompute,
            packed=packed if packed in BITS else techniques.packed,
        ), []
    if device.type != "cuda" or not torch.cuda.is_available():
        return techniques, []
    frames = len(longest_song(dataset, settings)[0].latents)

    def plan(these: Techniques, length: int) -> MemoryEstimate:
        return plan_memory(settings, config, trained, these, dtype=dtype, frames=length, is_cuda=True)

    return fit(settings, techniques, dtype, free=torch.cuda.mem_get_info(device)[0], frames=frames, plan=plan)


def _passes(settings: TrainSettings, songs: Split) -> int:
    """Return how many batches the run computes."""
    return math.ceil(len(songs.training) / settings.batch_size) * settings.epochs


def _open_songs(settings: TrainSettings, checkpoint: Checkpoint, digest: str, resume: ResumePoint | None) -> Split:
    """Open the dataset and keep some of it from training, the same songs as before where a run continues.

    Raises:
        DataError: when the dataset cannot be used.
    """
    dataset = open_dataset(
        settings.dataset_dir,
        latent_channels=checkpoint.config.latent_channels,
        condition_width=checkpoint.config.condition_width,
        fingerprint=digest,
        model=checkpoint.name,
    )
    before = None if resume is None else resume.held_out
    return split_songs(dataset, settings.validation_share, settings.seed, before)


def find_targets(settings: TrainSettings, checkpoint: Checkpoint, digest: str) -> dict[str, tuple[int, int]]:
    """Return the modules to adapt with (out, in) of their weights: those an estimate names, else those of the words.

    Raises:
        UserError: when the words or the estimate do not fit the model.
    """
    shapes = decoder_linear_shapes(checkpoint.config)
    if settings.targets_from is None:
        words = settings.target_modules
        chosen = resolve_targets(shapes, attention_type=settings.attention_type, target_modules=words)
    else:
        chosen = ranked_targets(
            settings.targets_from, settings.top_k, shapes=shapes, model=checkpoint.name, fingerprint=digest
        )
    return {name: shapes[name] for name in chosen}


def _refuse_other_targets(resume: ResumePoint, settings: TrainSettings, targets: Collection[str]) -> None:
    """Stop when either run takes its modules from an estimate and they are not the same ones.

    Raises:
        UserError: naming some that differ.
    """
    if settings.targets_from is None and resume.settings.get("targets_from") is None:
        return  # the words are compared
    odd = sorted(set(resume.targets) ^ set(targets))
    if odd and resume.targets:
        raise UserError(
            f"{resume.folder} was trained on {len(resume.targets)} modules; this run asks for {len(targets)}, and they "
            f"differ in {quote_some(odd)}. Resume with the estimate and top_k that it was started with."
        )


def _place_songs(
    settings: TrainSettings,
    config: ModelConfig,
    trained: Trained,
    techniques: Techniques,
    dataset: SongDataset,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Keep, int]:
    """Tell what `keep_in_memory` comes to with this dataset on this device."""

    def room() -> float:
        frames = len(longest_song(dataset, settings)[0].latents)
        plan = plan_memory(settings, config, trained, techniques, dtype=dtype, frames=frames, is_cuda=True)
        return room_beside(settings, plan, device)

    return place_songs(settings, dataset, device, room)


def _inert(
    settings: TrainSettings,
    device: torch.device,
    lokr: LokrDescription | None,
    *,
    kept: Keep,
    has_held_out: bool,
) -> dict[str, str]:
    """Return the settings that do nothing, now that device, dataset and layers are known."""
    known = settings.model_copy(update={"device": str(device), "keep_in_memory": kept})
    reasons = rules.inert(known) | (dict(lokr.inert) if lokr else {})
    if not has_held_out:
        reasons = dict.fromkeys(rules.OF_VALIDATION, "no song is held out") | reasons
    return reasons


def _lokr_notices(lokr: LokrDescription | None) -> list[str]:
    """Say what a LoKr comes to on these layers, and which of its settings do nothing there."""
    if lokr is None:
        return []
    idle = [f"{name} has no effect: {reason}." for name, reason in lokr.inert.items()]
    return [f"LoKr: {'; '.join(lokr.lines())}.", *idle]


def _plan_notices(settings: TrainSettings, plan: Plan, resume: ResumePoint | None) -> list[str]:
    said: list[str] = []
    if settings.batch_size > plan.songs or settings.gradient_accumulation > plan.batches_per_epoch:
        songs = f"{plan.songs} songs" if plan.songs > 1 else "one song"
        asked = f"batch_size {settings.batch_size} x gradient_accumulation {settings.gradient_accumulation}"
        said.append(f"An epoch has {songs}, fewer than {asked} asks for: each epoch is a single step over all of them.")
    if settings.scheduler_type != "constant" and settings.warmup_steps >= plan.total_steps:
        said.append(
            f"The warm-up of {settings.warmup_steps} steps is not shorter than the whole run of {plan.total_steps} "
            f"steps: the learning rate never reaches its peak. Consider --warmup-steps {plan.total_steps // 10}."
        )
    if resume is not None:
        said += resume.differences(settings, songs=plan.songs)
    return said
