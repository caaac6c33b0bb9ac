"""What a run says about the choices that were made for the user, and about those that do nothing."""

from collections.abc import Mapping
from typing import Any

import torch

from woodshed.models.memory import GIB
from woodshed.settings import rules
from woodshed.settings.schema import TrainSettings
from woodshed.training.preflight import Preflight


def describe_device(device: torch.device) -> str:
    """Return a device as people know it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def precision_name(dtype: torch.dtype) -> str:
    """Return a compute precision as the settings write it."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def choices_made(preflight: Preflight, origins: Mapping[str, str]) -> list[str]:
    """Return one line per choice that was made for the user, and one per choice of the user's that does nothing.

    What a LoKr makes of its own settings is among the preflight's notices, whether the user changed them or not.
    """
    settings, idle = preflight.settings, preflight.inert
    said = _autos(preflight)
    said += [
        f"{name}: {getattr(settings, name)} ({origin})"
        for name, origin in origins.items()
        if origin in rules.FOLLOWED and name not in idle
    ]
    chosen = [name for name, origin in origins.items() if origin not in ("default", "given", *rules.FOLLOWED)]
    said += [
        f"{name} has no effect: {idle[name]}."
        for name in chosen
        if name in idle
        and getattr(settings, name) != default_of(name)
        and not (settings.adapter_type == "lokr" and name.startswith("lokr_"))
    ]
    return said


def _autos(preflight: Preflight) -> list[str]:
    """Return what became of the settings that say auto."""
    settings = preflight.settings
    said = []
    if settings.device == "auto":
        said.append(f"device: auto -> {describe_device(preflight.device)}")
    if settings.precision == "auto":
        said.append(f"precision: auto -> {precision_name(preflight.dtype)} ({preflight.device.type})")
    if settings.keep_in_memory in ("auto", "card") and (settings.keep_in_memory, preflight.kept) != ("card", "card"):
        idle = f"; {settings.num_workers} workers stay idle" if preflight.is_resident and settings.num_workers else ""
        size = f" ({preflight.songs_on_card / GIB:.2f} GiB)" if preflight.songs_on_card else ""
        said.append(f"keep_in_memory: {settings.keep_in_memory} -> {preflight.kept}{size}{idle}")
    return said


def default_of(name: str) -> Any:
    """Return a training setting's declared default."""
    return TrainSettings.model_fields[name].default
