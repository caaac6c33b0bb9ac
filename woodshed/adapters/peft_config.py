"""What a PEFT config says about strength: alpha and rank, for all modules or for some."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from woodshed.adapters.adapter import shown
from woodshed.adapters.naming import read_module
from woodshed.errors import AdapterError, collecting

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FAMILIES = ("LORA", "LOKR", "LOHA", "OFT")
_ALPHA = {"LORA": "lora_alpha", "LOKR": "alpha", "LOHA": "alpha"}
_PLAIN_PATTERN = re.compile(r"\^?[\w.]+", re.ASCII)
_FOREIGN_SWITCHES = {
    "LORA": ("use_qalora", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters"),
    "LOKR": (),
    "LOHA": (),
    "OFT": ("coft", "block_share"),
}
"""What changes the meaning of the tensors in a way that is not read here, when it is on."""


@dataclass(frozen=True)
class PeftConfig:
    """The part of a config that the tensors do not say themselves."""

    family: str
    alpha: float = 1.0
    rank: int = 1
    ranks: Mapping[str, float] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    is_rslora: bool = False
    terms: int = 0  # of OFT's series; 0 for the exact transform

    def rank_of(self, module: str) -> int:
        """Return the rank of a module whose tensors do not show it."""
        return int(_look_up(self.ranks, module, self.rank))

    def scale_of(self, module: str, rank: int) -> float:
        """Return what the product of a module's factors is multiplied by."""
        alpha = _look_up(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rslora else rank)


def _look_up(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that is the module's name or an end of it, as PEFT matches them."""
    for pattern, value in patterns.items():
        whole = pattern.startswith("^")
        name = pattern.removeprefix("^")
        if module == name or (not whole and module.endswith(f".{name}")):
            return value
    return default


def parse_config(config: Mapping[str, Any], path: Path) -> PeftConfig:
    """Check a config and keep what matters.

    Args:
        config: an object of JSON from anybody.
        path: where it comes from, for the message.

    Raises:
        AdapterError: naming everything that is missing, senseless, or not supported.
    """
    family = config.get("peft_type")
    if family not in FAMILIES:
        raise AdapterError(f"{path} is of PEFT type {shown(repr(family))}; {', '.join(FAMILIES)} can be read.")
    problems = [
        f"{path} has {name} set, which cannot be read." for name in _FOREIGN_SWITCHES[family] if config.get(name)
    ]
    found = PeftConfig(family)
    with collecting(problems):
        found = _parse_series(config, path) if family == "OFT" else _parse_strength(family, config, path)
    if problems:
        raise AdapterError(*problems)
    return found


def _parse_series(config: Mapping[str, Any], path: Path) -> PeftConfig:
    terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else 0
    if terms != 0 and not (isinstance(terms, int) and 4 <= terms <= 100):
        raise AdapterError(f"{path} has {shown(repr(terms))} num_cayley_neumann_terms; 4 to 100 can be read.")
    return PeftConfig("OFT", terms=terms)


def _parse_strength(family: str, config: Mapping[str, Any], path: Path) -> PeftConfig:
    name = _ALPHA[family]
    alpha, rank = config.get(name), config.get("r", 1)
    patterns = {table: config.get(table) or {} for table in ("rank_pattern", "alpha_pattern")}
    problems = [
        f"{path} has {article} {table} that cannot be read: it must map names of modules to numbers."
        for article, (table, pattern) in zip(("a", "an"), patterns.items(), strict=True)
        if not _is_pattern(pattern)
    ]
    if not _is_number(alpha):
        problems.append(f"{path} has no usable {name}; got {shown(repr(alpha))}.")
    if not _is_number(rank) or rank < 1:
        problems.append(f"{path} has no usable r; got {shown(repr(rank))}.")
    if problems or alpha is None:
        raise AdapterError(*problems)
    ranks, alphas = (_in_original_names(pattern) for pattern in patterns.values())
    return PeftConfig(family, alpha, rank, ranks, alphas, config.get("use_rslora") is True)


def _in_original_names(pattern: Mapping[str, float]) -> dict[str, float]:
    """Return a pattern table in the names of the original decoder, whatever model PEFT was put on."""
    named = {}
    for key, value in pattern.items():
        name = key.removeprefix("^")
        named["^" * key.startswith("^") + (read_module(name) or name)] = value
    return named


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _is_pattern(pattern: Any) -> bool:
    """Tell whether a pattern table holds plain names; a regular expression from a stranger is not run."""
    return isinstance(pattern, dict) and all(
        isinstance(key, str) and _PLAIN_PATTERN.fullmatch(key) and _is_number(value) and value > 0
        for key, value in pattern.items()
    )


def parse_diffusers_header(header: Mapping[str, Any], path: Path) -> PeftConfig | None:
    """Read the copy of a PEFT config that diffusers keeps in a file's header; None where there is none.

    Raises:
        AdapterError: as `parse_config`.
    """
    fields = {name.removeprefix("transformer."): value for name, value in header.items()}
    return parse_config({"peft_type": "LORA", **fields}, path) if fields else None
