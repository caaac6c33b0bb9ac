"""The machine below PyTorch: which NVIDIA card there is, and whether this build of PyTorch can compute on it.

The driver's own program is started from where the driver puts it and never from a search path, in which a stranger's
folder may come first.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

WHEELS = (("cu130", 580), ("cu126", 528))
"""PyTorch's builds for CUDA, newest first, with the oldest driver that runs each.
Source: NVIDIA's CUDA toolkit release notes, minor version compatibility."""


@dataclass(frozen=True)
class Cards:
    """The NVIDIA cards of a machine, as the driver tells."""

    names: tuple[str, ...]
    driver: str  # "580.65.06"


@dataclass(frozen=True)
class TorchBuild:
    """What the installed PyTorch was built for, and what it finds here."""

    version: str
    cuda: str | None  # the toolkit it was built with
    has_rocm: bool = False
    is_cuda_available: bool = False
    architectures: tuple[str, ...] = ()  # "sm_90", "compute_120": what kernels it brings
    capabilities: tuple[tuple[int, int], ...] = ()  # of the cards it sees


@dataclass(frozen=True)
class Trouble:
    """Why PyTorch does not compute on a card, and what mends it."""

    text: str
    remedy: str


def driver_programs() -> list[Path]:
    """Return where the driver puts its program, on this system."""
    if sys.platform == "win32":
        return [Path(os.environ.get("SYSTEMROOT", "C:\\Windows")) / "System32" / "nvidia-smi.exe"]
    return [
        Path("/usr/bin/nvidia-smi"),
        Path("/usr/lib/wsl/lib/nvidia-smi"),
        Path("/run/current-system/sw/bin/nvidia-smi"),
    ]


def find_cards(programs: Sequence[Path] | None = None) -> Cards | None:
    """Ask the driver for its cards; None where there is no driver, or it finds none."""
    for program in driver_programs() if programs is None else programs:
        if not program.is_file():
            continue
        try:
            done = subprocess.run(
                [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if line.count(",")]
        if done.returncode == 0 and rows:
            return Cards(tuple(name.strip() for name, _ in rows), rows[0][1].strip())
    return None


def torch_build() -> TorchBuild:
    """Return what is known of the installed PyTorch."""
    is_there = torch.cuda.is_available()
    seen = range(torch.cuda.device_count()) if is_there else ()
    return TorchBuild(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        has_rocm=torch.version.hip is not None,
        is_cuda_available=is_there,
        architectures=tuple(torch.cuda.get_arch_list()) if is_there else (),
        capabilities=tuple(torch.cuda.get_device_capability(index) for index in seen),
    )


def install_line(driver: str) -> str:
    """Return the line that installs the newest build of PyTorch for a driver, or the way to a newer driver."""
    first = driver.split(".")[0]
    version = int(first) if first.isdecimal() else 0
    for wheel, oldest in WHEELS:
        if version >= oldest:
            return f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{wheel}"
    return f"Update the NVIDIA driver ({driver}) to {WHEELS[0][1]} or newer: https://www.nvidia.com/drivers"


def find_trouble(cards: Cards | None, build: TorchBuild) -> Trouble | None:
    """Return why the cards are not used, or None when they are, or there are none."""
    if cards is None:
        return None
    name = cards.names[0]
    if build.cuda is None and not build.has_rocm:
        return Trouble(
            f"PyTorch {build.version} is a build without CUDA, though this machine has an NVIDIA card ({name}): "
            "everything would compute on the CPU.",
            install_line(cards.driver),
        )
    if not build.is_cuda_available:
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            return Trouble(
                f"PyTorch does not see the NVIDIA card ({name}): CUDA_VISIBLE_DEVICES is "
                f'"{os.environ["CUDA_VISIBLE_DEVICES"]}".',
                "Unset CUDA_VISIBLE_DEVICES, or set it to the number of a card, such as 0.",
            )
        return Trouble(
            f"PyTorch {build.version} is built for CUDA {build.cuda} and cannot use the NVIDIA card ({name}) with the "
            f"driver {cards.driver}.",
            install_line(cards.driver),
        )
    odd = [number for number in build.capabilities if not _has_kernels(number, build.architectures)]
    if odd and not build.has_rocm:
        major, minor = odd[0]
        return Trouble(
            f"PyTorch {build.version} brings no kernels for a card of compute capability {major}.{minor} ({name}).",
            install_line(cards.driver),
        )
    return None


def _has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Tell whether one of the builds runs: kernels for the same major number, or code compiled on the spot."""
    for word in architectures:
        kind, _, digits = word.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdecimal():
            continue
        built_for = divmod(int(digits), 10)
        if built_for <= capability and (kind == "compute" or built_for[0] == capability[0]):
            return True
    return False
