"""How much of the device a run will take, and how much is computed again so that it fits."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from woodshed.adapters.adapter import bias_shapes
from woodshed.adapters.targets import Shapes
from woodshed.data.batches import MEMORY_LIMIT, Keep
from woodshed.data.crops import FRAMES_PER_SECOND, crop, crop_frames
from woodshed.data.dataset import Sample, SongDataset
from woodshed.models.blocks import RECOMPUTED, recomputed_share
from woodshed.models.config import ModelConfig
from woodshed.models.decoder import build_decoder
from woodshed.models.frozen import has_nf4
from woodshed.models.memory import GIB, MemoryEstimate, Trained, estimate_memory
from woodshed.settings.schema import BiasMode, TrainSettings
from woodshed.training.techniques import Techniques

MARGIN = 0.8
"""What part of the free memory a plan may take: the estimate may be off by a fifth."""
FOR_SAMPLES = 4 * GIB
"""What samples between the epochs need beside the training. Source: ours, 3.0 to 7.2 GiB with the decoder."""
SHARE_FOR_SONGS = 0.5
"""What part of the memory that a plan leaves may be taken by songs that stay on the card."""
CROPS = (240, 180, 120, 90, 60, 45, 30)
"""Seconds of music that are tried where longer songs do not fit."""
COUNTED = ("lora", "lokr")
"""The families whose activations are known from measurements."""


def trained_by(settings: TrainSettings, config: ModelConfig, targets: Shapes, adapter_parameters: int) -> Trained:
    """Return the shape of every tensor that will be trained; for the other families their number in one piece.

    Args:
        settings: of the run.
        config: of the model.
        targets: original module names with (out, in) of their weights.
        adapter_parameters: how many numbers the adapter trains, without biases.
    """
    rank = settings.rank
    shapes: list[tuple[int, ...]] = [
        pair for rows, columns in targets.values() for pair in ((rank, columns), (rows, rank))
    ]
    if settings.adapter_type != "lora" or sum(map(math.prod, shapes)) != adapter_parameters:
        shapes = [(adapter_parameters,)]
    is_dense = settings.lokr_weight_decompose if settings.adapter_type == "lokr" else settings.adapter_type != "lora"
    return Trained(
        [*shapes, *_bias_shapes(settings.bias, config, targets)],
        [columns for _, columns in targets.values()],
        keeps_mask=settings.adapter_type != "lokr" and settings.dropout > 0,
        dense=sum(map(math.prod, targets.values())) if is_dense else 0,
    )


def _bias_shapes(mode: BiasMode, config: ModelConfig, targets: Shapes) -> list[tuple[int, ...]]:
    """Return the biases of the base model that train too."""
    if mode == "none":
        return []
    with torch.device("meta"):
        there = bias_shapes(build_decoder(config))
    return [shape for name, shape in there.items() if mode == "all" or name.removesuffix(".bias") in targets]


def longest_song(dataset: SongDataset, settings: TrainSettings) -> tuple[Sample, float]:
    """Return the longest song as it trains, and how long the average one is beside it; by the size of the files."""
    sizes = [path.stat().st_size for path in dataset.files]
    index = max(range(len(sizes)), key=sizes.__getitem__)
    song, mean_share = dataset[index], sum(sizes) / len(sizes) / max(sizes)
    window = crop(song, crop_frames(settings.crop_seconds), seed=settings.seed, epoch=1)
    return window, min(mean_share * len(song.latents) / len(window.latents), 1.0)


def plan_memory(
    settings: TrainSettings,
    config: ModelConfig,
    trained: Trained,
    techniques: Techniques,
    *,
    dtype: torch.dtype,
    frames: int,
    is_cuda: bool,
    songs: int = 0,
) -> MemoryEstimate:
    """Add up what a step takes with these techniques, with songs of so many latent frames at most.

    Args:
        songs: bytes of those that are kept on the device.
    """
    estimate = estimate_memory(
        config,
        trained,
        dtype=dtype,
        optimizer_type=settings.optimizer_type,
        frames=frames,
        batch_size=settings.batch_size,
        recomputed=recomputed_share(techniques.recompute),
        is_compiled=techniques.compile,
        is_cuda=is_cuda,
        packed=techniques.packed,
    )
    return replace(estimate, songs=songs)


def place_songs(
    settings: TrainSettings, dataset: SongDataset, device: torch.device, room: Callable[[], float]
) -> tuple[Keep, int]:
    """Decide where songs stay once they were read.

    Args:
        settings: of the run.
        dataset: the songs that train.
        device: where the run computes.
        room: asks for the bytes that the plan leaves of the card's memory.

    Returns:
        Where, which is never `auto`, and the bytes that they take of a card.
    """
    asked: Keep = settings.keep_in_memory
    if device.type == "cuda" and asked == "card":
        return "card", dataset.weight_up_to(math.inf) or 0
    if device.type == "cuda" and asked == "auto":
        weight = dataset.weight_up_to(SHARE_FOR_SONGS * room())
        if weight is not None:
            return "card", weight
    if asked == "auto":
        return ("no" if dataset.weight_up_to(MEMORY_LIMIT) is None else "yes"), 0
    return ("yes" if asked == "card" else asked), 0


def room_beside(settings: TrainSettings, estimate: MemoryEstimate, device: torch.device) -> float:
    """Return the bytes of a card's free memory that a plan leaves; none where the plan knows too little."""
    if settings.adapter_type not in COUNTED or not torch.cuda.is_available():
        return 0.0
    return _room(settings, torch.cuda.mem_get_info(device)[0]) - estimate.total


def _room(settings: TrainSettings, free: int) -> float:
    """Return what a plan may take of the free memory."""
    return MARGIN * free - (FOR_SAMPLES if settings.sample_every_n_epochs else 0)


def fit(
    settings: TrainSettings,
    techniques: Techniques,
    dtype: torch.dtype,
    *,
    free: int,
    frames: int,
    plan: Callable[[Techniques, int], MemoryEstimate],
) -> tuple[Techniques, list[str]]:
    """Choose what the user leaves open so that a step fits: how much is computed again, and the base's precision.

    As little is computed again as fits; the base is held in fewer bits only where computing everything again is not
    enough.

    Args:
        settings: of the run.
        techniques: as `choose_techniques` found them.
        dtype: of the computation; in float32 nothing is rounded that nobody asked for.
        free: bytes on the device.
        frames: latent frames of the longest song.
        plan: from techniques and such a length to what a step takes.

    Returns:
        The techniques, and a line for what was chosen and why; another where even that may not fit.
    """
    if settings.adapter_type not in COUNTED:
        return techniques, []
    room = _room(settings, free)
    dials = list(RECOMPUTED) if settings.recompute == "auto" and settings.gradient_checkpointing else []
    fewer = ["int8", "nf4"] if settings.base_precision == "auto" and dtype != torch.float32 else []
    ways = [
        replace(techniques, recompute=dial, packed=packed)
        for packed in (techniques.packed, *(kind for kind in fewer if kind != "nf4" or has_nf4()))
        for dial in dials or [techniques.recompute]
    ]
    fitted = next((way for way in ways if plan(way, frames).total <= room), ways[-1])
    need = plan(fitted, frames).total
    chosen = [f"recompute: auto -> {fitted.recompute}"] if dials else []
    chosen += [f"base_precision: auto -> {fitted.packed}"] if fitted.packed != techniques.packed else []
    said = [f"{', '.join(chosen)} (about {need / GIB:.1f} of {free / GIB:.1f} GiB that are free)"] if chosen else []
    return fitted, said + _too_much(need, room, frames, lambda length: plan(fitted, length).total)


def _too_much(need: int, room: float, frames: int, need_of: Callable[[int], int]) -> list[str]:
    """Say what would fit where nothing else does."""
    if need <= room:
        return []
    seconds = next((length for length in CROPS if need_of(length * FRAMES_PER_SECOND) <= room), None)
    is_help = seconds is not None and seconds * FRAMES_PER_SECOND < frames
    advice = f"--crop-seconds {seconds} would fit" if is_help else "a smaller rank or another card may help"
    return [
        f"A step needs about {need / GIB:.1f} GiB, more than the {max(room, 0) / GIB:.1f} GiB that can be planned with "
        f"here: {advice}."
    ]
