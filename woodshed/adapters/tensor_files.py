"""Safetensors files of adapters: read with care, since anybody may have written them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from woodshed.adapters.adapter import RECIPE_KEY, quote_some, shown
from woodshed.errors import AdapterError

LOKR_KEY, DIFFUSERS_KEY = "lokr_config", "lora_adapter_metadata"
"""Where a header holds the settings of a LoKr, and diffusers' copy of a PEFT config."""
CONVENTION = "norms_over_base"
"""In a recipe: the file's norms were written for a player that divides by those of the base weight."""
LARGEST_JSON = 1 << 20  # characters of a config or of an entry in a header; real ones have a few thousand


@dataclass(frozen=True)
class TensorFile:
    """What a file holds."""

    path: Path
    tensors: Mapping[str, Tensor]  # finite float32
    header: Mapping[str, Any]  # those entries that concern us, parsed

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What made the adapter, if the header says."""
        return self.entry(RECIPE_KEY)

    def entry(self, name: str) -> dict[str, Any]:
        """Return a JSON object of the header; an empty one where there is none."""
        found = self.header.get(name)
        return found if isinstance(found, dict) else {}


def read_tensor_file(path: Path) -> TensorFile:
    """Read every tensor of a file as float32.

    Raises:
        AdapterError: when the file cannot be read or holds what is no finite number.
    """
    try:
        with safe_open(path, "pt") as file:
            known = (RECIPE_KEY, LOKR_KEY, DIFFUSERS_KEY)
            header = {name: _parsed(name, text) for name, text in (file.metadata() or {}).items() if name in known}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {shown(error, 300)}.") from error
    bad = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    bad += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise AdapterError(f"{path} is damaged: {quote_some(bad)} holds what is no finite number.")
    return TensorFile(path, tensors, header)


def _parsed(name: str, text: str) -> Any:
    """Return an entry of a header.

    Raises:
        ValueError: when it is no JSON or far too large.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{name} in its header is far too large")
    return json.loads(text)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object beside a tensor file.

    Raises:
        AdapterError: when it is unreadable, far too large, or no object.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise AdapterError(f"{path} is far too large for a PEFT config.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {shown(error, 300)}.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no JSON object.")
    return config
