"""What the machine has to say before a run: a card that lies idle, and whether the disk holds what will be saved."""

import torch

from woodshed.errors import UserError
from woodshed.models.disk import free_bytes, gib
from woodshed.models.machine import find_cards, find_trouble, torch_build
from woodshed.models.memory import Trained, optimizer_bytes
from woodshed.settings.schema import TrainSettings

BESIDE = 2**20
"""What a checkpoint holds beside its tensors, and a run beside its checkpoints, generously."""


def check_readiness(settings: TrainSettings, device: torch.device, trained: Trained, epochs: int) -> list[str]:
    """Return what is worth knowing about card and disk, as sentences.

    Args:
        settings: of the run.
        device: that `settings.device` came to.
        trained: the adapter.
        epochs: that are left to train.

    Raises:
        UserError: when the disk has no room for a single checkpoint.
    """
    said = []
    if settings.device == "auto" and device.type == "cpu":
        trouble = find_trouble(find_cards(), torch_build())
        if trouble is not None:
            said.append(f"{trouble.text} What helps: {trouble.remedy}")
    free, need = free_bytes(settings.output_dir), checkpoint_bytes(settings, trained)
    if need > free:
        raise UserError(
            f"A checkpoint of this run takes {gib(need)}, and the disk of {settings.output_dir} has {gib(free)} left. "
            "Make room, choose another --output-dir, or train a smaller adapter."
        )
    whole = need * count_checkpoints(settings, epochs)
    if whole > free:
        said.append(
            f"The checkpoints of this run take about {gib(whole)}, and the disk of {settings.output_dir} has "
            f"{gib(free)} left. --keep-last 3 deletes older ones, a larger --save-every writes fewer."
        )
    return said


def checkpoint_bytes(settings: TrainSettings, trained: Trained) -> int:
    """Return what one checkpoint takes: the adapter as others load it, what was trained, and the optimizer's state."""
    return 2 * 4 * trained.count + optimizer_bytes(settings.optimizer_type, trained.shapes) + BESIDE


def count_checkpoints(settings: TrainSettings, epochs: int) -> int:
    """Return how many checkpoints lie on the disk at most, with one that is written while the old ones are there."""
    saved = max(epochs, 0) // settings.save_every if settings.save_every else 0
    kept = min(saved, settings.keep_last) if settings.keep_last else saved
    return kept + settings.keep_best + 1
