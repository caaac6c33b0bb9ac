"""The training loop: from settings to a stream of events.

One optimizer step is `take_step`; it reads like the method section of a paper. Everything around it decides when to
log, save, and stop.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from woodshed.adapters.files import save_adapter
from woodshed.data.crops import FRAMES_PER_SECOND
from woodshed.errors import UserError
from woodshed.models.devices import repeatable
from woodshed.settings.files import run_file_text
from woodshed.settings.resolve import Resolved
from woodshed.settings.schema import TrainSettings
from woodshed.storage import clear_leftovers, write_text
from woodshed.training.ahead import Supply
from woodshed.training.between import Between, words_for
from woodshed.training.checkpoint import set_aside_newer, unwritable_run
from woodshed.training.choices import choices_made, describe_device, precision_name
from woodshed.training.events import EpochDone, Event, Finished, Notice, Saved, Started, StepDone
from woodshed.training.micro_step import Songs
from woodshed.training.non_finite import refuse_non_finite
from woodshed.training.optimizers import effective_learning_rate, set_learning_rate
from woodshed.training.out_of_memory import again_with_room, let_go, out_of_memory_advice
from woodshed.training.preflight import check
from woodshed.training.resume_point import Position
from woodshed.training.run import Run, load_run
from woodshed.training.schedules import learning_rate_factor
from woodshed.training.team import DifferError, Part, Team, own_place, sharing
from woodshed.training.time_limit import TimeLimit


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured."""

    losses: list[float]  # one per song
    frames: int
    grad_norm: float  # before clipping
    learning_rate: float
    was_skipped: bool  # float16 only: gradients overflowed, so the step was not taken
    module_grad_norms: dict[str, float] | None


@repeatable()
def take_step(
    run: Run, group: Sequence[Songs], *, with_module_norms: bool = False, part: Part | None = None
) -> StepResult:
    """Take one optimizer step: the mean flow-matching loss over the songs of a group, each song counting once.

    Args:
        run: changed in place: parameters, optimizer state, loss scale.
        group: the batches that are accumulated; the last group of an epoch may be shorter than the others.
        with_module_norms: also measure the gradient norm of each adapted module.
        part: what the group is of the step, where several processes share it.

    Raises:
        LostError: when one of them is gone.
        NonFiniteLossError: before anything is updated, naming the step and the song.
    """
    names = [name for songs in group for name in songs.names]
    part = part or Part(len(group), len(names), tuple(range(len(names))))
    weight = run.scaler.scale(torch.full((), 1 / part.songs, device=run.device))
    own = again_with_room(lambda: _own_losses(run, group, weight), run.make_room)
    own_frames = sum(sum(songs.frames) for songs in group)
    losses, frames = run.team.add_up(run.parameters, own, own_frames, part)
    run.scaler.unscale_(run.optimizer)
    module_norms = _module_grad_norms(run) if with_module_norms else None
    grad_norm = run.update.clip()
    *loss_values, norm = torch.cat([losses, grad_norm[None]]).tolist()  # the only wait for the device in a step
    refuse_non_finite(run, names, part, loss_values, norm)
    set_learning_rate(run.optimizer, learning_rate(run, run.position.step))
    rate = effective_learning_rate(run.optimizer)  # before the step, in which prodigy changes its estimate
    was_skipped = run.update.apply()
    return StepResult(loss_values, frames, norm, rate, was_skipped, module_norms)


def _own_losses(run: Run, group: Sequence[Songs], weight: Tensor) -> Tensor:
    """Add up the gradients of this process's songs; return their losses."""
    return torch.cat([weight.new_zeros(0), *(run.engine.micro_step(songs, weight) for songs in group)])


def learning_rate(run: Run, step: int) -> float:
    """Return the scheduled rate of the optimizer step after `step` finished ones."""
    settings = run.settings
    return settings.learning_rate * learning_rate_factor(
        step,
        scheduler_type=settings.scheduler_type,
        warmup_steps=settings.warmup_steps,
        total_steps=run.plan.total_steps,
    )


def _module_grad_norms(run: Run) -> dict[str, float]:
    """Return the norm of each adapted module's gradient, before clipping."""
    named = [(name, p.grad) for name, p in run.adapter.trainable_parameters().items() if p.grad is not None]
    norms = torch.stack([grad.norm() for _, grad in named]).tolist()
    squares: dict[str, float] = {}
    for (name, _), norm in zip(named, norms, strict=True):
        module = run.adapter.module_of(name)
        squares[module] = squares.get(module, 0.0) + norm**2
    return {module: math.sqrt(total) for module, total in squares.items()}


def train(
    settings: TrainSettings,
    *,
    origins: Mapping[str, str] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train an adapter and say what happens.

    Args:
        settings: what the user chose.
        origins: where each value came from, for `run.toml`; see `woodshed.settings.resolve`.
        should_stop: asked after each optimizer step; when true the state is saved and the run ends.

    Yields:
        Started, then Notice, StepDone, EpochDone and Saved as they happen, then Finished.

    Raises:
        UserError: for everything the user can mend, with all problems known before the model is loaded in one.
    """
    started_at = time.monotonic()
    team = Team(own_place())
    preflight = team.together(lambda: check(settings))
    team.use(preflight.device)
    try:
        # Before the decoder, so that the encoders never meet it in memory.
        words, said = words_for(preflight) if team.leads else ([], [])
        run = load_run(preflight, team)
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory_advice(preflight)) from error
    known = Resolved(settings, origins or dict.fromkeys(type(settings).model_fields, "given"))
    limit = TimeLimit(settings.max_time, started_at, should_stop)
    try:
        superseded = _open_folder(run, known) if team.leads else []
        yield _started(run)
        yield from map(Notice, (*choices_made(preflight, known.origins), *preflight.notices, *run.adapter.notices))
        yield from (Notice(f"Set aside {path}: it lies ahead of where this run continues.") for path in superseded)
        yield from map(Notice, (*said, *sharing(team.place, settings.gradient_accumulation), *limit.notices()))
        if preflight.resume:
            yield from map(Notice, preflight.resume.other_techniques(run.facts()["techniques"]))
        with run.saver:
            yield from _until_trouble(run, Between(run, words), limit)
        yield from map(Notice, limit.notices_at_end())
        yield from _finish(run, time.monotonic() - started_at)
    except OSError as error:
        raise UserError(unwritable_run(settings.output_dir, error)) from error
    finally:
        run.loader.close()
        team.close()


def _open_folder(run: Run, known: Resolved[TrainSettings]) -> list[Path]:
    """Make the output folder ready and write `run.toml`; return the checkpoints that were set aside."""
    output = run.settings.output_dir
    output.mkdir(parents=True, exist_ok=True)
    clear_leftovers(output)
    superseded = set_aside_newer(output, run.preflight.resume) if run.preflight.resume else []
    whole_run = known.settings.model_copy(update={"resume_from": None})  # to repeat it, one starts at the beginning
    write_text(output / "run.toml", run_file_text(Resolved(whole_run, known.origins)))
    return superseded


def _until_trouble(run: Run, between: Between, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Train; whatever ends the run early, its last good step is saved first."""
    try:
        with closing(Supply(run.songs_to_come())) as supply:
            yield from _epochs(run, supply, between, should_stop)
        yield from _everything_saved(run)
    except UserError as error:
        if not isinstance(error, DifferError):
            try:
                yield from _rescue(run)
            except UserError as another:
                raise UserError(*error.problems, *another.problems) from error
        raise
    except torch.OutOfMemoryError as error:
        run.optimizer.zero_grad(set_to_none=True)
        run.forget_engine()
        let_go(error)
        yield from _rescue(run)
        raise UserError(out_of_memory_advice(run.preflight)) from error


def _epochs(run: Run, supply: Supply[Songs], between: Between, asked_here: Callable[[], bool]) -> Iterator[Event]:
    """Train until the last epoch is done or somebody asks to stop.

    Whoever asks gets the state saved first; what was due between two epochs is made up for by the run that continues.
    """
    save_every = run.settings.save_every

    def should_stop() -> bool:
        return run.team.any(asked_here())

    yield from _by_leader(run, between.begin(asked_here))
    while not run.is_finished:
        yield from _epoch(run, supply, should_stop)
        position = run.position
        if position.steps_in_epoch < run.plan.steps_per_epoch:
            _begin_saving(run, "interrupted")
            return
        run.position = Position(epoch=position.epoch + 1, step=position.step)
        if not should_stop():
            yield from _by_leader(run, between.measure())
        if save_every and (position.epoch % save_every == 0 or should_stop()):
            _begin_saving(run, "checkpoint")
        elif should_stop():
            _begin_saving(run, "interrupted")
        if should_stop():
            return
        yield from _by_leader(run, between.listen(asked_here))
    yield from _everything_saved(run)
    yield from _by_leader(run, between.finish())


def _by_leader(run: Run, events: Iterator[Event]) -> Iterator[Event]:
    """Let the leader do something while all others wait."""
    if run.team.leads:
        yield from events
    run.has_ended_early = run.team.any(run.has_ended_early)


def _epoch(run: Run, supply: Supply[Songs], should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Take the remaining steps of one epoch."""
    settings, position = run.settings, run.position
    started_at = step_started_at = time.monotonic()
    while position.steps_in_epoch < run.plan.steps_per_epoch:
        step, part = position.step + 1, run.part()
        waited, group = supply.waited, supply.take(part.batches)
        assert len(group) == part.batches, "an epoch has as many batches as were planned"
        waited = supply.waited - waited
        rehearsed_at = time.monotonic()
        yield from map(Notice, run.engine.rehearse(group[0]) if group else ())
        step_started_at += time.monotonic() - rehearsed_at  # it happens once, and would spoil the rate for long
        result = take_step(run, group, with_module_norms=_is_due(step, settings.log_heavy_every), part=part)
        position.step = step
        position.steps_in_epoch += 1
        position.epoch_loss += sum(result.losses)
        position.epoch_songs += len(result.losses)
        now = time.monotonic()
        yield _step_done(run, result, now - step_started_at, waited)
        step_started_at = now
        yield from map(Notice, (*run.update.notices(), *run.loader.notices()))
        yield from run.saver.done()
        if result.was_skipped:
            yield Notice(
                f"Step {step} overflowed float16 and was skipped; the loss scale is now {run.scaler.get_scale():g}."
            )
        if should_stop() and position.steps_in_epoch < run.plan.steps_per_epoch:
            return
    yield EpochDone(position.epoch, position.epoch_loss / position.epoch_songs, time.monotonic() - started_at)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _step_done(run: Run, result: StepResult, seconds: float, waited: float) -> StepDone:
    position = run.position
    return StepDone(
        step=position.step,
        epoch=position.epoch,
        loss=sum(result.losses) / len(result.losses),
        learning_rate=result.learning_rate,
        grad_norm=result.grad_norm,
        songs=len(result.losses),
        audio_seconds=result.frames / FRAMES_PER_SECOND,
        seconds=seconds,
        waited=waited,
        is_logged=_is_due(position.step, run.settings.log_every),
        module_grad_norms=result.module_grad_norms,
    )


def _started(run: Run) -> Started:
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    return Started(
        output_dir=run.settings.output_dir,
        model=run.preflight.checkpoint.name,
        device=describe_device(run.device),
        precision=precision_name(run.preflight.dtype),
        songs=run.preflight.songs,
        modules=len(run.adapter.modules),
        trainable_parameters=sum(parameter.numel() for parameter in run.parameters),
        epochs=run.settings.epochs,
        steps_per_epoch=run.plan.steps_per_epoch,
        total_steps=run.plan.total_steps,
        first_epoch=run.position.epoch,
        first_step=run.position.step,
        run=run.identity,
    )


def _begin_saving(run: Run, kind: str) -> None:
    """Let a checkpoint of the current position be written while training goes on."""
    run.team.refuse_differences(run.parameters)
    run.begin_saving(kind)


def _everything_saved(run: Run) -> Iterator[Event]:
    """Wait until every checkpoint is on the disk, in all processes."""
    yield from run.saver.finish()
    run.team.any(False)


def _rescue(run: Run) -> Iterator[Event]:
    """Save the last good step before a run ends badly, unless it is safe already."""
    run.team.leave()
    run.optimizer.zero_grad(set_to_none=True)
    yield from run.saver.finish()
    if run.team.leads and run.position.step > run.saver.saved_step:
        run.begin_saving("interrupted")
        yield from run.saver.finish()


def _finish(run: Run, seconds: float) -> Iterator[Event]:
    """Write the final adapter of a completed run and prove that it can be read back."""
    settings, position = run.settings, run.position
    was_interrupted = not run.is_finished
    peak = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None
    folder = settings.output_dir / "final"
    if was_interrupted:
        folder = run.newest_checkpoint()
    elif run.team.leads:
        report = save_adapter(run.adapter, folder, run.recipe())
        yield Saved(folder, "final", position.epoch - 1, position.step)
        yield Notice(str(report))
    epochs = position.epoch - 1
    yield Finished(folder, epochs, position.step, seconds, peak, was_interrupted)
