"""Everything that a checkpoint holds, as it was at one moment, and how it becomes a folder.

Taking a snapshot copies; writing it takes most of the time and touches nothing that trains, so that a thread can do it.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from woodshed.adapters.adapter import Adapter
from woodshed.adapters.files import look_back, verify_saved
from woodshed.storage import save_tensors, whole_folder, write_bytes
from woodshed.training.checkpoint import FORMAT, digest_of, digest_of_file
from woodshed.training.resume_point import Position


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment, on the CPU; nothing of it changes when the run goes on."""

    adapter: Adapter
    optimizer: Mapping[str, Any]  # its `state_dict()`
    position: Position  # where a resumed run goes on
    facts: Mapping[str, Any]  # settings, model, fingerprint, songs
    scaler: Mapping[str, Any]  # state of the fp16 loss scaler, or empty
    recipe: Mapping[str, Any]  # what travels in the adapter file's header

    @classmethod
    def take(
        cls,
        adapter: Adapter,
        optimizer: torch.optim.Optimizer,
        position: Position,
        *,
        facts: Mapping[str, Any],
        scaler: Mapping[str, Any],
        recipe: Mapping[str, Any],
    ) -> Self:
        """Copy what goes on changing: the tensors, also where CUDA graphs write them, and the position.

        Args:
            adapter, optimizer, position: of the run.
            facts, scaler, recipe: made for this snapshot.
        """
        state = _still(optimizer.state_dict(), {})
        return cls(adapter.still(), state, replace(position), facts, scaler, recipe)

    def write(self, folder: Path, *, is_proven: bool = False) -> None:
        """Write a checkpoint folder, whole or not at all, and its adapter proven to be the one of this moment.

        The proof takes most of the time, and is made once: what proved right is right for other numbers too.

        Args:
            folder: its final name.
            is_proven: whether an adapter of this run was written and compared before; then it is only read back.
        """
        with whole_folder(folder) as building:
            self.adapter.save(building, self.recipe)
            (look_back if is_proven else verify_saved)(self.adapter, building)
            resume = building / "resume"
            resume.mkdir()
            parameters = {name: value.contiguous() for name, value in self.adapter.trainable_parameters().items()}
            packed = io.BytesIO()
            torch.save(self.optimizer, packed)  # in memory: a full disk is no OSError to PyTorch
            state = {
                "format": FORMAT,
                "position": asdict(self.position),
                **self.facts,
                "scaler": dict(self.scaler),
                "digests": {
                    **{path.name: digest_of_file(path) for path in sorted(building.glob("*.safetensors"))},
                    "resume/optimizer.pt": write_bytes(resume / "optimizer.pt", packed.getbuffer()),
                    "resume/parameters.safetensors": save_tensors(
                        resume / "parameters.safetensors", parameters, {"format": "pt"}
                    ),
                },
            }
            state["digest"] = digest_of(state)
            (resume / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def _still(value: Any, copies: dict[int, Tensor]) -> Any:
    """Return a copy of nested state with every tensor on the CPU; one that is shared stays shared.

    Args:
        value: dictionaries, lists, tensors and plain values.
        copies: made so far, by the identity of their tensor.
    """
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.detach().to("cpu", copy=True)
        return copies[id(value)]
    if isinstance(value, dict):
        return {name: _still(item, copies) for name, item in value.items()}
    return [_still(item, copies) for item in value] if isinstance(value, list) else value
