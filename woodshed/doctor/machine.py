"""Python, PyTorch, the devices, memory, disk, and the packages that Woodshed needs or can use."""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from woodshed.doctor.finding import Finding
from woodshed.errors import UserError
from woodshed.models.devices import available_devices, resolve_device
from woodshed.models.disk import free_bytes, gib
from woodshed.models.machine import Cards, TorchBuild, find_cards, find_trouble, torch_build
from woodshed.models.memory import GIB, device_memory
from woodshed.settings.schema import DoctorSettings

EXTRAS = {
    "prodigy": "--optimizer-type prodigy, which finds its own learning rate",
    "8bit": "--optimizer-type adamw8bit, whose state takes a quarter of the memory, and --base-precision nf4",
    "models": "`woodshed models get`, which fetches checkpoints",
}
"""What the optional parts of the package are for, by the name that pip installs them with."""
TIGHT = 10 * GIB
"""Less room than this on a disk is worth a note: a 2B checkpoint with its encoders takes 6.3 GB. Source: ours."""


def look_at_machine(settings: DoctorSettings) -> Iterator[Finding]:
    """Look at Python, PyTorch, devices and disks."""
    host = device_memory(torch.device("cpu"))
    memory = f", {gib(host)} of memory" if host else ""
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    cores = f"{os.cpu_count() or 1} processor cores"
    yield Finding("machine", "ok", f"Python {platform.python_version()}, {system}, {cores}{memory}.")
    yield from look_at_torch(find_cards(), torch_build())
    try:
        resolve_device(settings.device)
    except UserError as error:
        yield from (Finding("machine", "problem", sentence) for sentence in error.problems)
    places = {"checkpoints": settings.checkpoint_dir, "output": settings.output_dir or Path()}
    yield from look_at_disks(places)


def look_at_torch(cards: Cards | None, build: TorchBuild) -> Iterator[Finding]:
    """Say what PyTorch can compute on, and why not on a card that is there."""
    trouble = find_trouble(cards, build)
    if trouble is not None:
        yield Finding("machine", "problem", trouble.text, trouble.remedy)
        return
    toolkit = f", built for CUDA {build.cuda}" if build.cuda else ""
    driver = f", driver {cards.driver}" if cards else ""
    yield Finding("machine", "ok", f"PyTorch {build.version}{toolkit}{driver}.")
    for name in available_devices():
        if name != "cpu":
            yield Finding("machine", "ok", f"{_describe(torch.device(name))}.")
    if available_devices() == ["cpu"]:
        text = "There is no graphics card that PyTorch can use: everything computes on the CPU."
        yield Finding("machine", "note", text, "The demo runs well so; a real model trains at a snail's pace.")


def _describe(device: torch.device) -> str:
    """Return a device with its name and memory."""
    if device.type != "cuda":
        return f"Device {device}"
    free, total = torch.cuda.mem_get_info(device)
    return f"Device {device}: {torch.cuda.get_device_name(device)}, {gib(free)} of {gib(total)} free"


def look_at_disks(places: Mapping[str, Path]) -> Iterator[Finding]:
    """Say how much room there is where things are kept."""
    for name, path in places.items():
        try:
            free = free_bytes(path)
        except OSError as error:
            yield Finding("machine", "problem", f"The disk of {path} cannot be looked at: {error}.")
            continue
        text = f"The disk for the {name} ({path.absolute()}) has {gib(free)} left."
        is_tight = free < TIGHT
        remedy = "A checkpoint with its encoders takes 6 GB (XL: 22 GB)." if is_tight else ""
        yield Finding("machine", "note" if is_tight else "ok", text, remedy)


def look_at_packages(stated: Sequence[str] | None = None) -> Iterator[Finding]:
    """Compare what is installed with what Woodshed states to need.

    Args:
        stated: requirements as packages state them; those of the installed Woodshed unless given.
    """
    if stated is None:
        try:
            stated = metadata.requires("woodshed") or []
        except metadata.PackageNotFoundError:
            text = "Woodshed runs out of a folder and is not installed, so what it needs cannot be compared."
            yield Finding("packages", "note", text, "pip install .")
            return
    requirements = [Requirement(line) for line in stated]
    needed = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    odd = [sentence for item in needed if (sentence := _lack(item))]
    if odd:
        remedy = " ".join(["pip install", *(f'"{item.name}{item.specifier}"' for item in needed if _lack(item))])
        yield Finding("packages", "problem", f"{'; '.join(odd)}.", remedy)
    else:
        yield Finding("packages", "ok", f"The {len(needed)} packages that Woodshed needs are there.")
    for extra, use in EXTRAS.items():
        yield _extra(extra, use, _of_extra(requirements, extra))


def _of_extra(requirements: Iterable[Requirement], extra: str) -> list[Requirement]:
    return [item for item in requirements if item.marker and f'extra == "{extra}"' in str(item.marker)]


def _extra(extra: str, use: str, wanted: Sequence[Requirement]) -> Finding:
    lacking = [sentence for item in wanted if (sentence := _lack(item))]
    if lacking or not wanted:
        found = "; ".join(lacking) or "this installation does not know it"
        return Finding("packages", "note", f"Optional, for {use}: {found}.", f'pip install "woodshed[{extra}]"')
    names = ", ".join(f"{item.name} {metadata.version(item.name)}" for item in wanted)
    return Finding("packages", "ok", f"Optional, for {use}: {names}.")


def _lack(wanted: Requirement) -> str:
    """Return what is wrong with an installed package, or nothing."""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{wanted.name} {version} is installed, and {wanted.specifier} is needed"
