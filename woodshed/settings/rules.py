"""What settings have to do with each other: what moves with what, what has no effect, what contradicts.

Pure functions over settings, used alike by the command line, the review before a run, and the docs.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from woodshed.settings.schema import TrainSettings

MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


LONGEST_NUMBER = 12  # digits; a longer one is no size, and is refused in words where it is checked
ALPHA_OF_RANK = {"rank": "alpha", "lokr_linear_dim": "lokr_linear_alpha"}
FAMILY_NAMES = {"lora": "LoRA", "dora": "DoRA", "lokr": "LoKr", "loha": "LoHa", "oft": "OFT"}
_LOKR = tuple(name for name in TrainSettings.model_fields if name.startswith("lokr_"))
FAMILY_SETTINGS = {
    "lora": ("rank", "alpha", "dropout", "rank_pattern", "bias"),
    "dora": ("rank", "alpha", "dropout", "rank_pattern", "bias"),
    "lokr": (*_LOKR, "bias"),
    "loha": ("rank", "alpha", "rank_pattern"),
    "oft": ("oft_block_size",),
}
"""The settings that matter to some families only."""
OF_VALIDATION = ("validate_every_n_epochs", "keep_best", "average_best", "early_stop")
OF_SAMPLES = ("sample_count", "sample_seconds", "sample_format", "sample_prompts")
"""The settings that matter only where songs are held out, and where samples are made."""
FOLLOWED = (*(f"2 x {size}" for size in ALPHA_OF_RANK), "prodigy", "Windows")
"""The origins of values that follow another choice, as `followers` words them."""


@dataclass(frozen=True)
class Following:
    """A setting whose default follows another one, unless the user chose it."""

    name: str
    value: Any
    reason: str


def followers(chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Following]:
    """Return the defaults that move because of what was chosen.

    Args:
        chosen: the raw values given by presets, files and flags; may be invalid, so nothing here may fail on them.
        defaults: every setting of the command with its declared default.
    """
    moved: list[Following] = []
    for size, alpha in ALPHA_OF_RANK.items():
        number = _whole_number(chosen.get(size))
        if alpha in defaults and number is not None:
            moved.append(Following(alpha, 2.0 * number, f"2 x {size}"))
    if chosen.get("optimizer_type") == "prodigy" and "optimizer_type" in defaults:
        moved.append(Following("learning_rate", 1.0, "prodigy"))
        moved.append(Following("scheduler_type", "constant", "prodigy"))
    if sys.platform == "win32" and "num_workers" in defaults:
        moved.append(Following("num_workers", 0, "Windows"))
    return [item for item in moved if item.name not in chosen]


def _whole_number(value: Any) -> int | None:
    """Return a raw value as a positive whole number, or None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value > 0 else None
    is_short = isinstance(value, str) and value.isdecimal() and len(value) <= LONGEST_NUMBER
    return int(value) if is_short and int(value) > 0 else None


def inert(settings: TrainSettings) -> dict[str, str]:
    """Return the settings that cannot have an effect in this combination, each with the reason.

    What depends on the machine or the dataset is known only where `device` and `keep_in_memory` are not auto.
    """
    return (
        _inert_adapter(settings) | _inert_training(settings) | _inert_loading(settings) | _inert_bookkeeping(settings)
    )


def _inert_adapter(settings: TrainSettings) -> dict[str, str]:
    own = FAMILY_SETTINGS[settings.adapter_type]
    said = f"the adapter is a {FAMILY_NAMES[settings.adapter_type]}"
    reasons = {name: said for names in FAMILY_SETTINGS.values() for name in names if name not in own}
    if settings.adapter_type == "lokr":
        reasons["lokr_use_tucker"] = (
            "Tucker decomposition exists for convolutions only, and every adapted layer is linear"
        )
    if settings.resume_from is not None:
        reasons["init_from"] = "a resumed run starts with the weights of its checkpoint"
    if settings.targets_from is not None:
        reasons["attention_type"] = reasons["target_modules"] = "targets_from names the modules"
        return reasons
    reasons["top_k"] = "it counts the modules that targets_from names, and targets_from is not set"
    if not any(word in ATTENTION_PROJECTIONS for word in settings.target_modules):
        reasons["attention_type"] = "the targets name no attention projection by its short name"
    return reasons


def _inert_training(settings: TrainSettings) -> dict[str, str]:
    reasons: dict[str, str] = {}
    if settings.mode == "vanilla":
        reasons["cfg_ratio"] = "vanilla mode has no CFG dropout"
    if settings.scheduler_type == "constant":
        reasons["warmup_steps"] = "the constant schedule has no warm-up; constant_with_warmup has"
    if settings.sample_every_n_epochs == 0:
        reasons["offload_encoder"] = "training loads the decoder only; there is no encoder or VAE to move"
    return reasons


def _inert_loading(settings: TrainSettings) -> dict[str, str]:
    reasons: dict[str, str] = {}
    why = _why_no_workers(settings)
    if why:
        reasons["prefetch_factor"] = reasons["persistent_workers"] = why
        if settings.num_workers:
            reasons["num_workers"] = why
    elif settings.epochs == 1:
        reasons["persistent_workers"] = "there is only one epoch"
    if settings.device != "auto" and not settings.device.startswith("cuda"):
        reasons["pin_memory"] = "only copies to a CUDA card gain from it"
    return reasons


def _why_no_workers(settings: TrainSettings) -> str:
    """Return why no process reads ahead, or nothing where some do."""
    if settings.num_workers == 0:
        return "there are no workers"
    if settings.keep_in_memory in ("yes", "card"):
        return "the dataset is kept in memory"
    return "on Windows songs are read without workers" if sys.platform == "win32" else ""


def _inert_bookkeeping(settings: TrainSettings) -> dict[str, str]:
    reasons: dict[str, str] = {}
    if settings.save_every == 0 and settings.keep_last:
        reasons["keep_last"] = "save_every is 0, so no checkpoints are written before the end"
    if settings.validation_share == 0:
        reasons |= dict.fromkeys(OF_VALIDATION, "validation_share is 0, so no song is held out")
    if settings.sample_every_n_epochs == 0:
        reasons |= dict.fromkeys(OF_SAMPLES, "sample_every_n_epochs is 0, so no samples are made")
    return reasons


def remarks(settings: TrainSettings) -> list[str]:
    """Return what a careful friend would point out before this run starts."""
    said: list[str] = []
    if settings.optimizer_type == "prodigy":
        if settings.learning_rate != 1.0:
            said.append(
                f"Prodigy finds its own learning rate and expects learning_rate 1.0; "
                f"with {settings.learning_rate:g} it may hardly train."
            )
        if settings.scheduler_type == "cosine_restarts":
            said.append("Prodigy's author advises against restarts; constant or cosine works better.")
    elif settings.learning_rate > 1e-2:
        said.append(
            f"A learning rate of {settings.learning_rate:g} is far above the usual 5e-5 to 3e-4 for "
            f"{settings.optimizer_type}."
        )
    return said


def contradictions(settings: TrainSettings) -> list[str]:
    """Return the reasons why these settings cannot run together, as full sentences; empty when they can."""
    found: list[str] = []
    if not settings.target_modules:
        found.append("target_modules must name at least one projection, for example q_proj k_proj v_proj o_proj.")
    if settings.rank_pattern and "rank_pattern" not in FAMILY_SETTINGS[settings.adapter_type]:
        found.append(_why_no_rank_pattern(settings))
    if settings.bias != "none" and "bias" not in FAMILY_SETTINGS[settings.adapter_type]:
        name = FAMILY_NAMES[settings.adapter_type]
        found.append(f"bias must be none with {name}: no player loads biases with it; got {settings.bias}.")
    if settings.lokr_factor == 0:
        found.append("lokr_factor must be -1 (automatic) or at least 1; got 0.")
    if settings.average_best == 1:
        found.append("average_best must be 0 (off) or at least 2; got 1.")
    for name in ("shift", "num_inference_steps"):
        value = getattr(settings, name)
        if value != "auto" and not 0 < value < math.inf:
            found.append(f"{name} must be more than 0 and finite, or auto; got {value:g}.")
    return found


def concerns_family(name: str, settings: TrainSettings) -> bool:
    """Tell whether a setting matters to the chosen family, or to every one."""
    own = FAMILY_SETTINGS[settings.adapter_type]
    return name in own or not any(name in names for names in FAMILY_SETTINGS.values())


def _why_no_rank_pattern(settings: TrainSettings) -> str:
    reason = "has no ranks"
    if settings.adapter_type == "lokr":
        reason = "is rebuilt by ACE-Step with one dimension for all modules"
    return f"rank_pattern must be empty: a {FAMILY_NAMES[settings.adapter_type]} {reason}."
