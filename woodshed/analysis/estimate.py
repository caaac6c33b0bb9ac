"""`estimate`: which modules of the decoder respond to a dataset, measured by the gradients of the training objective.

Each batch is one song at one noise level. The noise levels are strata of the distribution that training draws from, so
that few batches cover it evenly; the two halves that are compared take every other stratum.

Letters: T latent frames, C latent channels, L condition tokens, E condition width.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from woodshed import __version__
from woodshed.adapters.ranking import Ranking
from woodshed.adapters.targets import decoder_linear_shapes
from woodshed.analysis.events import BatchDone, EstimateEvent, Finished, Notice, Started
from woodshed.analysis.objective import Objective
from woodshed.analysis.sensitivity import (
    FORMULA,
    candidate_modules,
    correlation_of,
    enough_entries,
    module_score,
    rank_modules,
    recommend,
)
from woodshed.data.batches import epoch_order
from woodshed.data.dataset import Batch, SongDataset, collate, open_dataset
from woodshed.data.identity import dataset_digest
from woodshed.errors import UserError, collecting
from woodshed.models.checkpoints import Checkpoint, choose_model, find_checkpoints, fingerprint
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.settings.schema import EstimateSettings, TrainSettings
from woodshed.storage import unwritable
from woodshed.training.randomness import DrawRules, Draws, derive_seed, draw_for_songs


@dataclass(frozen=True)
class Work:
    """What an estimate needs, found and checked."""

    settings: EstimateSettings
    checkpoint: Checkpoint
    fingerprint: str
    dataset: SongDataset
    device: torch.device
    dtype: torch.dtype
    shapes: dict[str, tuple[int, int]]  # of the modules that are ranked

    @property
    def rules(self) -> DrawRules:
        """The distributions that a training run with default settings draws from."""
        defaults = {name: TrainSettings.model_fields[name].default for name in ("mode", "cfg_ratio")}
        config = self.checkpoint.config
        return DrawRules(**defaults, timestep_mu=config.timestep_mu, timestep_sigma=config.timestep_sigma)


def estimate(settings: EstimateSettings) -> Iterator[EstimateEvent]:
    """Measure how strongly each module responds, and write the ranking.

    Yields:
        Started, then Notice and BatchDone as they happen, then Finished.

    Raises:
        UserError: for everything that is wrong before the model is loaded, all at once; when memory runs out; and when
            a gradient is no finite number.
    """
    started_at = time.monotonic()
    work = prepare(settings)
    batches = settings.estimate_batches
    precision = str(work.dtype).removeprefix("torch.")
    yield Started(work.checkpoint.name, str(work.device), precision, len(work.dataset), batches, len(work.shapes))
    yield from map(Notice, work.dataset.notices)
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(work.device)
    norms: dict[str, list[float]] = {name: [] for name in work.shapes}
    try:
        for event, measured in measure(work):
            for name, norm in measured.items():
                norms[name].append(norm)
            yield event
    except torch.OutOfMemoryError as error:
        first = "" if settings.gradient_checkpointing else "--gradient-checkpointing or "
        raise UserError(
            f"{work.device} ran out of memory. Try {first}shorter songs (woodshed preprocess --max-duration)."
        ) from error
    ranking = _ranking(work, norms)
    ranking.save(settings.output)
    peak = torch.cuda.max_memory_allocated(work.device) if work.device.type == "cuda" else None
    yield Finished(ranking, settings.output, time.monotonic() - started_at, peak)


def prepare(settings: EstimateSettings) -> Work:
    """Look at device, model, dataset and output.

    Raises:
        UserError: with every problem found.
    """
    problems: list[str] = []
    device = dtype = checkpoint = dataset = shapes = None
    digest = ""
    with collecting(problems):
        device = resolve_device(settings.device)
        dtype = resolve_precision(settings.precision, device)
    with collecting(problems):
        checkpoint = choose_model(find_checkpoints(settings.checkpoint_dir), settings.model)
        digest = fingerprint(checkpoint)
    if checkpoint is not None:
        with collecting(problems):
            shapes = _ranked_shapes(settings, checkpoint)
        with collecting(problems):
            dataset = open_dataset(
                settings.dataset_dir,
                latent_channels=checkpoint.config.latent_channels,
                condition_width=checkpoint.config.condition_width,
                fingerprint=digest,
                model=checkpoint.name,
            )
    problems += unwritable(settings.output)
    if problems:
        raise UserError(*problems)
    assert device is not None
    assert dtype is not None
    assert checkpoint is not None
    assert dataset is not None
    assert shapes is not None
    return Work(settings, checkpoint, digest, dataset, device, dtype, shapes)


def _ranked_shapes(settings: EstimateSettings, checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return the shape of every module that is ranked.

    Raises:
        UserError: when more entries are to be recommended than there are.
    """
    every = decoder_linear_shapes(checkpoint.config)
    shapes = {name: every[name] for name in candidate_modules(every)}
    count = len(shapes) if settings.granularity == "module" else checkpoint.config.num_hidden_layers
    if settings.top_k != "auto" and settings.top_k > count:
        raise UserError(
            f"top_k is {settings.top_k}, but {checkpoint.name} has {count} {settings.granularity}s to rank."
        )
    return shapes


def measure(work: Work) -> Iterator[tuple[BatchDone, dict[str, float]]]:
    """Load the decoder and yield, for each batch, what happened and the gradient norm of every module."""
    settings = work.settings
    with Objective(
        work.checkpoint,
        work.shapes,
        dtype=work.dtype,
        device=work.device,
        gradient_checkpointing=settings.gradient_checkpointing,
    ) as objective:
        for number, (batch, draws) in enumerate(draw_batches(work), 1):
            loss, norms = objective.measure(batch, draws)
            yield BatchDone(number, settings.estimate_batches, batch.names[0], draws.t.item(), loss), norms


def draw_batches(work: Work) -> Iterator[tuple[Batch, Draws]]:
    """Yield one song at a time with what chance decides about it, the noise levels in their order."""
    settings, songs = work.settings, len(work.dataset)
    levels = stratified_timesteps(settings.estimate_batches, work.rules, settings.seed)
    for number, t in enumerate(levels):
        epoch, place = divmod(number, songs)
        order = epoch_order(settings.seed, epoch + 1, songs)
        batch = collate([work.dataset[order[place]]])
        yield batch, replace(draw_for_songs(work.rules, settings.seed, epoch + 1, batch), t=t[None])


def stratified_timesteps(count: int, rules: DrawRules, seed: int) -> Tensor:
    """Draw one timestep from each of `count` equally likely parts of the distribution that training draws from.

    Its distribution function is Phi((logit(t) - mu) / sigma) ** 2; see `woodshed.training.timesteps`.

    Returns:
        (count,) float32, rising.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "strata"))
    share = (torch.arange(count) + torch.rand(count, generator=generator)).double() / count
    normal = torch.special.ndtri(share.sqrt())
    return torch.sigmoid(rules.timestep_mu + rules.timestep_sigma * normal).float()


def _ranking(work: Work, norms: dict[str, list[float]]) -> Ranking:
    settings = work.settings
    entries = rank_modules(norms, work.shapes, settings.granularity)
    correlation = correlation_of(entries)
    top_k = enough_entries(entries) if settings.top_k == "auto" else settings.top_k
    scores = {name: module_score(values, work.shapes[name]) for name, values in norms.items()}
    return Ranking(
        woodshed=__version__,
        model=work.checkpoint.name,
        fingerprint=work.fingerprint,
        dataset=settings.dataset_dir.name,
        dataset_digest=dataset_digest(work.dataset.files),
        songs=len(work.dataset),
        batches=settings.estimate_batches,
        seed=settings.seed,
        granularity=settings.granularity,
        formula=FORMULA,
        half_correlation=correlation,
        top_k=top_k,
        recommendation=tuple(
            recommend(entries, scores, top_k=top_k, correlation=correlation, batches=settings.estimate_batches)
        ),
        entries=tuple(entries),
    )
