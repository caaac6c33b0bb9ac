"""What to change when memory ran out, each way with what a step would then take."""

import gc
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from woodshed.adapters.families import count_parameters
from woodshed.models.memory import GIB, device_memory
from woodshed.settings.schema import TrainSettings
from woodshed.training.choices import describe_device
from woodshed.training.memory_plan import longest_song, plan_memory, trained_by
from woodshed.training.preflight import Preflight
from woodshed.training.techniques import Techniques

SHORT = 60.0  # seconds of music that are enough to learn a style from
SMALL_RANK = 16

Result = TypeVar("Result")
Way = tuple[str, tuple[TrainSettings, Techniques]]


def out_of_memory_advice(preflight: Preflight) -> str:
    """Return what to try, in an order that costs little first, with what is needed after each."""
    device, settings = preflight.device, preflight.settings
    size = device_memory(device)
    has = "" if size is None else f" of {size / GIB:.1f} GiB"
    need = _step_needs(preflight, settings, preflight.techniques)
    tries = [f"{flag} ({_step_needs(preflight, *changed)})" for flag, changed in ways_to_save(preflight)]
    if settings.sample_every_n_epochs and not settings.offload_encoder:
        tries.append("--offload-encoder (the samples' part)")
    tries.append("shorter songs (woodshed preprocess --max-duration)")
    return (
        f"{describe_device(device)}{has} ran out of memory; a step of this run takes {need}, as far as that can be "
        f"estimated, and other programs may hold some. Try, one on top of the other: {', '.join(tries)}."
    )


def ways_to_save(preflight: Preflight) -> Iterator[Way]:
    """Yield flags with the settings and techniques that they and all before them come to."""
    settings, techniques = preflight.settings, preflight.techniques
    if techniques.recompute != "all":
        techniques = replace(techniques, recompute="all")
        yield "--recompute all", (settings, techniques)
    if techniques.packed is None and preflight.dtype != torch.float32:
        techniques = replace(techniques, packed="int8")
        yield "--base-precision int8", (settings, techniques)
    if settings.batch_size > 1:
        settings = settings.model_copy(update={"batch_size": 1})
        yield "--batch-size 1", (settings, techniques)
    frames = len(longest_song(preflight.dataset, settings)[0].latents)
    shorter = settings.model_copy(update={"crop_seconds": SHORT})
    if len(longest_song(preflight.dataset, shorter)[0].latents) < frames:
        settings = shorter
        yield f"--crop-seconds {SHORT:g}", (settings, techniques)
    if settings.optimizer_type == "adamw" and preflight.device.type == "cuda":
        settings = settings.model_copy(update={"optimizer_type": "adamw8bit"})
        yield "--optimizer-type adamw8bit", (settings, techniques)
    if settings.adapter_type == "lora" and settings.rank > 1:
        rank = min(SMALL_RANK, settings.rank // 2)
        yield f"--rank {rank}", (settings.model_copy(update={"rank": rank}), techniques)


def _step_needs(preflight: Preflight, settings: TrainSettings, techniques: Techniques) -> str:
    count = count_parameters(preflight.targets, settings)
    estimate = plan_memory(
        settings,
        preflight.checkpoint.config,
        trained_by(settings, preflight.checkpoint.config, preflight.targets, count),
        techniques,
        dtype=preflight.dtype,
        frames=len(longest_song(preflight.dataset, settings)[0].latents),
        is_cuda=preflight.device.type == "cuda",
    )
    return f"{estimate.total / GIB:.1f} GiB" if estimate.total > GIB / 10 else f"{estimate.total / 2**20:.1f} MiB"


def again_with_room(compute: Callable[[], Result], make_room: Callable[[], bool]) -> Result:
    """Compute something, a second time where memory ran out and some could be given back.

    Args:
        compute: changes nothing that `make_room` does not undo.
        make_room: gives memory back; returns whether there was any.
    """
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        if not make_room():
            raise
        let_go(error)
    return compute()


def let_go(error: BaseException) -> None:
    """Free what a step that failed holds: its tensors live on in the frames that the error remembers."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
