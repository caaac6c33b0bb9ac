"""Whether the run that is planned fits together, into the memory, and onto the disk."""

from collections.abc import Iterator

import torch

from woodshed.doctor.finding import Finding, problems
from woodshed.errors import UserError
from woodshed.models.disk import free_bytes, gib
from woodshed.models.memory import MemoryEstimate, device_memory
from woodshed.settings.schema import TrainSettings
from woodshed.training.memory_plan import longest_song, plan_memory, trained_by
from woodshed.training.out_of_memory import ways_to_save
from woodshed.training.preflight import Preflight, check
from woodshed.training.readiness import checkpoint_bytes

NEARLY = 0.95
"""An estimate beyond this part of the memory is a problem: it may be off by a fifth."""


def look_at_run(settings: TrainSettings) -> Iterator[Finding]:
    """Check a training as its start would, and add what it takes."""
    try:
        found = check(settings)
    except UserError as error:
        yield from problems("run", error.problems)
        return
    plan = found.plan
    songs = f"{plan.songs:,} song{'' if plan.songs == 1 else 's'}"
    text = f"{settings.adapter_type} on {len(found.targets)} modules of {found.checkpoint.name}, {songs}"
    yield Finding("run", "ok", f"{text}, {plan.total_steps:,} optimizer steps.")
    yield memory_finding(found)
    trained = trained_by(settings, found.checkpoint.config, found.targets, found.adapter_parameters)
    size, free = checkpoint_bytes(settings, trained), free_bytes(settings.output_dir)
    yield Finding("run", "ok", f"A checkpoint takes about {gib(size)}; the disk has {gib(free)} left.")
    for notice in found.notices:
        yield Finding("run", "note", notice)


def memory_finding(found: Preflight) -> Finding:
    """Compare what a step will take with what is free."""
    estimate = estimate_of(found)
    there = available_memory(found.device)
    said = f"A step takes about {gib(estimate.total)}"
    if there is None:
        return Finding("run", "note", f"{said}; how much memory {found.device} has is not known.")
    where = f"free on {found.device}" if found.device.type == "cuda" else "of this machine"
    text = f"{said} of the {gib(there)} {where}."
    if estimate.total < NEARLY * there:
        return Finding("run", "ok", text)
    ways = ", ".join(flag for flag, _ in ways_to_save(found)) or "shorter songs"
    return Finding("run", "problem", text, f"What helps, one on top of the other: {ways}.")


def estimate_of(found: Preflight) -> MemoryEstimate:
    """Return what a step of a checked run takes."""
    settings, config = found.settings, found.checkpoint.config
    return plan_memory(
        settings,
        config,
        trained_by(settings, config, found.targets, found.adapter_parameters),
        found.techniques,
        dtype=found.dtype,
        frames=len(longest_song(found.dataset, settings)[0].latents),
        is_cuda=found.device.type == "cuda",
        songs=found.songs_on_card,
    )


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a card; all there are on what shares the host's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return device_memory(device)
