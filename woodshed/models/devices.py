"""Where to compute, in which precision, and how the same computation gives the same result."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from woodshed.errors import UserError

# Read when CUDA starts: with workspaces of its own choice cuBLAS may sum in another order each time.
# Source: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def available_devices() -> list[str]:
    """Return the devices of this machine, the preferred one first."""
    devices = []
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    if torch.xpu.is_available():
        devices += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    return [*devices, "cpu"]


def resolve_device(name: str) -> torch.device:
    """Turn a setting into a device.

    Args:
        name: `auto` takes the first that exists of CUDA, MPS, XPU and CPU. `cuda` and `xpu` mean the first card.

    Raises:
        UserError: when the machine has no such device, naming those it has.
    """
    found = available_devices()
    if name == "auto":
        return torch.device(found[0])
    wanted = f"{name}:0" if name in ("cuda", "xpu") else name
    if wanted not in found:
        raise UserError(
            f"There is no device {name} here. This machine has {', '.join(found)}. Use --device auto or one of them."
        )
    return torch.device(wanted)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn a setting into the type that the frozen model is held and computed in.

    Args:
        name: `bf16`, `fp16` and `fp32` are taken as they are; `auto` is bf16 on CUDA and XPU (fp16 on cards without
            bf16), fp16 on MPS and fp32 on CPU.
        device: decides what `auto` means.

    Raises:
        UserError: when there is no such precision.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"There is no precision {name}. Use auto, {', '.join(DTYPES)}.")
        return DTYPES[name]
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"xpu": torch.bfloat16, "mps": torch.float16}.get(device.type, torch.float32)


def why_not_compile(device: torch.device) -> str | None:
    """Return what keeps `torch.compile` from working for a device, None where nothing is known to."""
    if device.type == "cuda":
        found = importlib.util.find_spec("triton") is not None
        return None if found else "the package triton is not installed (Windows: pip install triton-windows)"
    if device.type == "cpu":
        return None if shutil.which("g++") or shutil.which("clang++") else "there is no C++ compiler"
    return f"nothing is known of compiling for {device.type}"


@contextmanager
def repeatable() -> Iterator[None]:
    """Let CUDA take only kernels that give the same result every time; the attention's fastest gradients do not.

    Also a decorator: `@repeatable()`. Other devices compute as ever.
    """
    if not torch.cuda.is_initialized():
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    switch: Any = torch.utils.deterministic
    is_filling = switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    switch.fill_uninitialized_memory = False  # finds bugs, costs time, changes no result
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        switch.fill_uninitialized_memory = is_filling
