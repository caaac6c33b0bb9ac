"""A run in memory: the frozen decoder, the adapter on it, the optimizer, and where the run stands."""

import hashlib
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woodshed import __version__
from woodshed.adapters.adapter import Adapter
from woodshed.adapters.families import attach_adapter
from woodshed.adapters.saved import read_adapter
from woodshed.adapters.start import start_from
from woodshed.data.batches import BatchLoader
from woodshed.data.dataset import Batch
from woodshed.models.decoder import Decoder
from woodshed.models.load import load_decoder, load_null_condition
from woodshed.sampling.recipes import playback_of
from woodshed.settings import rules
from woodshed.settings.schema import TrainSettings
from woodshed.training import checkpoint
from woodshed.training.courier import Courier, prepare
from woodshed.training.engine import Engine
from woodshed.training.events import Saved
from woodshed.training.micro_step import Model, Songs
from woodshed.training.optimizers import build_optimizer, can_be_captured
from woodshed.training.preflight import Plan, Preflight
from woodshed.training.randomness import DrawRules, derive_seed
from woodshed.training.resume_point import Position
from woodshed.training.saver import Saver
from woodshed.training.snapshot import Snapshot
from woodshed.training.team import Part, Place, Team, part_of
from woodshed.training.update import Update


@dataclass
class Run:
    """Everything a training step touches."""

    settings: TrainSettings
    preflight: Preflight
    decoder: Decoder
    null_condition: Tensor  # (1, 1, E)
    adapter: Adapter
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: BatchLoader
    draw_rules: DrawRules
    position: Position
    identity: str  # the same in all its checkpoints, resumed or not
    saver: Saver
    team: Team = field(default_factory=Team)
    validated: Mapping[str, Any] = field(default_factory=dict)  # what validation knows by now, as JSON values
    has_ended_early: bool = False  # because validation no longer improved

    @cached_property
    def engine(self) -> Engine:
        """What computes the micro-steps."""
        return Engine(self.model, self.preflight.techniques)

    def forget_engine(self) -> None:
        """Let engine and update go, and with them the memory of their graphs."""
        for name in ("engine", "update"):
            self.__dict__.pop(name, None)

    @cached_property
    def courier(self) -> Courier:
        """What brings songs to the card."""
        return Courier(self.device, pins=self.settings.pin_memory)

    @cached_property
    def model(self) -> Model:
        """What a micro-step computes with."""
        return Model(self.decoder, self.null_condition, self.parameters, self.device, self.preflight.dtype)

    @cached_property
    def update(self) -> Update:
        """What brings gradients into the parameters."""
        return Update(
            self.optimizer,
            self.scaler,
            self.parameters,
            max_norm=self.settings.max_grad_norm,
            keeps_gradients=self.engine.keeps_gradients,
            is_captured=_is_captured(self.preflight),
        )

    def make_room(self) -> bool:
        """Undo what a step has done, and give back the card's memory that songs take; return whether there was any."""
        self.optimizer.zero_grad(set_to_none=not self.engine.keeps_gradients)
        return self.loader.make_room()

    @property
    def plan(self) -> Plan:
        """How many steps the run takes."""
        return self.preflight.plan

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.preflight.device

    @property
    def is_finished(self) -> bool:
        """Whether every epoch is done, or no more are wanted."""
        return self.has_ended_early or self.position.epoch > self.settings.epochs

    @property
    def epochs_done(self) -> int:
        """How many epochs are finished."""
        return self.position.epoch - 1

    def part(self) -> Part:
        """Return what this process computes of the next step."""
        settings = self.settings
        return part_of(
            self.team.place,
            self.position.steps_in_epoch,
            songs=self.plan.songs,
            batch_size=settings.batch_size,
            accumulation=settings.gradient_accumulation,
        )

    def autocast(self) -> torch.autocast:
        """Return the context in which the decoder computes in the run's precision."""
        return self.model.autocast()

    def prepare(self, batches: Iterable[Batch], epoch: int | None = None) -> Generator[Songs, None, None]:
        """Make the draws of an epoch's batches, bring them to the card, and split them as the engine wants.

        Args:
            batches: of songs in RAM or on the card.
            epoch: counts from 1; the one in progress unless given.
        """
        return prepare(
            batches, epoch or self.position.epoch, self.settings.seed, self.draw_rules, self.engine, self.courier
        )

    def songs_to_come(self) -> Generator[Songs, None, None]:
        """Return the batches of every step that is left, prepared, epoch after epoch."""
        done, settings = replace(self.position), self.settings

        def prepared() -> Generator[Songs, None, None]:
            for epoch in range(done.epoch, settings.epochs + 1):
                skipped = done.steps_in_epoch * settings.gradient_accumulation if epoch == done.epoch else 0
                yield from self.prepare(self.loader.epoch(epoch, start_batch=skipped), epoch)

        return prepared()

    def begin_saving(self, kind: str) -> None:
        """Let a checkpoint of this moment be written, as the leader.

        Args:
            kind: "best" for the one that takes the place of the best so far; else one of the row.
        """
        if not self.team.leads:
            return
        output, epoch = self.settings.output_dir, self.position.epoch
        is_complete = self.position.steps_in_epoch == 0
        place = Position(epoch=epoch - 1) if is_complete else self.position
        folder = checkpoint.checkpoint_folder(output, place, is_epoch_complete=is_complete)
        saved = Saved(output / checkpoint.BEST if kind == "best" else folder, kind, place.epoch, self.position.step)
        self.saver.begin(saved, self.position, self._snapshot)

    def _snapshot(self) -> Snapshot:
        return Snapshot.take(
            self.adapter,
            self.optimizer,
            self.position,
            facts=self.facts(),
            scaler=self.scaler.state_dict(),
            recipe=self.recipe(),
        )

    def newest_checkpoint(self) -> Path:
        """Return the checkpoint that a resume would take."""
        return checkpoint.list_checkpoints(self.settings.output_dir)[-1]

    def facts(self) -> dict[str, Any]:
        """Return what a resume must know about this run."""
        return {
            "run": self.identity,
            "settings": self.settings.model_dump(mode="json"),
            "model": self.preflight.checkpoint.name,
            "fingerprint": self.preflight.fingerprint,
            "songs": self.plan.songs,
            "targets": list(self.preflight.targets),
            "techniques": {**asdict(self.preflight.techniques), "processes": self.team.place.size},
            "held_out": list(self.preflight.held_out.names) if self.preflight.held_out else [],
            "validation": dict(self.validated),
        }

    def recipe(self) -> dict[str, Any]:
        """Return what travels in the adapter's header: what made it and how to play it."""
        settings = self.settings
        usual = playback_of(self.preflight.checkpoint)
        return {
            "woodshed": __version__,
            "base_model": self.preflight.checkpoint.name,
            "variant": self.preflight.checkpoint.kind,
            "shift": usual.shift if settings.shift == "auto" else settings.shift,
            "num_inference_steps": (
                usual.steps if settings.num_inference_steps == "auto" else settings.num_inference_steps
            ),
            "custom_tag": self.preflight.dataset.custom_tag,
            "tag_position": self.preflight.dataset.tag_position,
            "songs": self.preflight.songs,
            "dataset_digest": _digest_of([path.stem for path in dict.fromkeys(self.preflight.dataset.files)]),
            "epochs": self.position.epoch if self.position.steps_in_epoch else self.position.epoch - 1,
            "steps": self.position.step,
            "settings": settings.model_dump(mode="json", include=set(_RECIPE) - rules.inert(settings).keys()),
        }


def _digest_of(names: Sequence[str]) -> str:
    """Return what tells one dataset from another: the names of preprocessed songs hold a digest of their audio."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


_RECIPE = (
    "adapter_type",
    "attention_type",
    "target_modules",
    "rank",
    "alpha",
    "dropout",
    "rank_pattern",
    "oft_block_size",
    "lokr_linear_dim",
    "lokr_linear_alpha",
    "lokr_factor",
    "lokr_decompose_both",
    "lokr_use_scalar",
    "lokr_weight_decompose",
    "bias",
    "mode",
    "learning_rate",
    "batch_size",
    "gradient_accumulation",
    "crop_seconds",
    "seed",
    "cfg_ratio",
    "optimizer_type",
    "scheduler_type",
)


def load_run(preflight: Preflight, team: Team | None = None) -> Run:
    """Load the decoder, attach the adapter, and restore the checkpoint to resume from, if any.

    Args:
        preflight: of the run.
        team: the processes that train together; this one alone unless given.

    Raises:
        CheckpointError: when the model's files are incomplete.
        UserError: when the resumed checkpoint does not fit.
    """
    settings = preflight.settings
    decoder = load_decoder(
        preflight.checkpoint, dtype=preflight.dtype, device=preflight.device, packed=preflight.techniques.packed
    )
    null_condition = load_null_condition(preflight.checkpoint, dtype=preflight.dtype, device=preflight.device)
    torch.manual_seed(derive_seed(settings.seed, "adapter"))
    adapter = attach_adapter(decoder, list(preflight.targets), settings)
    if settings.init_from is not None and preflight.resume is None:
        start_from(adapter, read_adapter(settings.init_from))
    decoder.train()
    parameters = list(adapter.trainable_parameters().values())
    optimizer = build_optimizer(
        settings.optimizer_type,
        parameters,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        undecayed=adapter.undecayed,
        captured_on=preflight.device if _is_captured(preflight) else None,
    )
    scaler = torch.amp.GradScaler(preflight.device.type, enabled=preflight.dtype == torch.float16)
    position = Position()
    if preflight.resume is not None:
        checkpoint.restore(preflight.resume, adapter, optimizer)
        position = preflight.resume.position
        if scaler.is_enabled() and preflight.resume.scaler:
            scaler.load_state_dict(preflight.resume.scaler)
    config = preflight.checkpoint.config
    identity = preflight.resume.run if preflight.resume else uuid.uuid4().hex
    return Run(
        settings=settings,
        preflight=preflight,
        decoder=decoder,
        null_condition=null_condition,
        adapter=adapter,
        parameters=parameters,
        optimizer=optimizer,
        scaler=scaler,
        team=team or Team(),
        loader=_loader(preflight, team.place if team else Place()),
        draw_rules=DrawRules(settings.mode, settings.cfg_ratio, config.timestep_mu, config.timestep_sigma),
        position=position,
        identity=identity,
        saver=Saver(settings.output_dir, identity, keep_last=settings.keep_last, step=position.step),
        validated=preflight.resume.validation if preflight.resume else {},
    )


def _is_captured(preflight: Preflight) -> bool:
    """Tell whether the optimizer's step will be in a CUDA graph; float16 decides at each step whether to take it."""
    has_graphs = preflight.techniques.cuda_graphs and preflight.dtype != torch.float16
    return has_graphs and can_be_captured(preflight.settings.optimizer_type)


def _loader(preflight: Preflight, place: Place) -> BatchLoader:
    settings = preflight.settings
    return BatchLoader(
        preflight.dataset,
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_workers=settings.num_workers,
        pin_memory=settings.pin_memory,
        prefetch_factor=settings.prefetch_factor,
        persistent_workers=settings.persistent_workers,
        keep_in_memory=preflight.kept,
        device=preflight.device,
        crop_seconds=settings.crop_seconds,
        deal=(place.rank, place.size, settings.gradient_accumulation),
    )
