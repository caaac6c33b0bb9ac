"""Where to compute, and in which precision."""

import torch

from woodshed.errors import UserError

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
