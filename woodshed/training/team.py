"""Several processes that train one adapter together, a GPU each: who they are, who computes what, how they agree.

A launcher (torchrun, accelerate) starts the same command once per GPU. The batches of an optimizer step are dealt in
turn; losses and gradients are added up, and every process makes the same update. Only the first one, the leader,
writes and speaks. What is agreed about the run goes over the processor (gloo), so that a lost process is noticed at
once; gradients go over the cards (NCCL). See docs/decisions/0011.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from woodshed.errors import ElsewhereError, UserError

PATIENCE = timedelta(hours=2)  # while the leader saves, measures and plays
CARDS_PATIENCE = timedelta(minutes=10)  # a step's gradients
BUCKET = 2**24  # numbers that are added up at a time: 64 MiB beside the gradients

Result = TypeVar("Result")


class LostError(UserError):
    """Another process of the run has ended."""


class DifferError(UserError):
    """The processes do not hold the same adapter any more."""


@dataclass(frozen=True)
class Place:
    """Which process of how many this is, counting from 0."""

    rank: int = 0
    size: int = 1
    local: int = 0  # among those of this machine

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


def own_place(environment: Mapping[str, str] = os.environ) -> Place:
    """Return the place that a launcher gave to this process.

    Raises:
        UserError: when there are several processes and the launcher says too little for them to meet.
    """
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not rank or size in ("", "1"):
        return Place()
    told = {name: environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not all(re.fullmatch("[0-9]+", value) for value in told.values()) or "MASTER_ADDR" not in environment:
        said = ", ".join(f"{name}={value or 'nothing'}" for name, value in told.items())
        raise UserError(
            f"The environment says {said}, which is no place among several processes. Start them with torchrun "
            "--nproc-per-node N -m woodshed train ..., or unset WORLD_SIZE for a single one."
        )
    return Place(int(rank), int(size), int(told["LOCAL_RANK"]))


def own_device(found: torch.device, asked: str, place: Place) -> torch.device:
    """Return the device of this process.

    Args:
        found: what the setting means for a single process.
        asked: the setting.
        place: decides which card it is.

    Raises:
        UserError: when several processes would share a card, or the device is none for several.
    """
    if place.size == 1 or found.type == "cpu":
        return found
    if found.type != "cuda":
        raise UserError(f"Several processes train on CUDA cards or the CPU, not on {found}. Start one process.")
    if asked not in ("auto", "cuda"):
        raise UserError(f"--device {asked} would put {place.size} processes on one card. Leave it at auto.")
    if place.local >= torch.cuda.device_count():
        raise UserError(
            f"There are {torch.cuda.device_count()} cards for more processes than that. Start one process per card."
        )
    return torch.device("cuda", place.local)


def refuse_too_many(place: Place, gradient_accumulation: int) -> None:
    """Stop when a step has fewer batches than there are processes.

    Raises:
        UserError: with what to do.
    """
    if gradient_accumulation < place.size:
        raise UserError(
            f"A step of gradient_accumulation {gradient_accumulation} has too few batches for {place.size} processes, "
            f"which share them. Use --gradient-accumulation {place.size} or a multiple, and a smaller --batch-size if "
            "the effective batch is to stay the same."
        )


@dataclass(frozen=True)
class Part:
    """What one process computes of an optimizer step."""

    batches: int  # of this process
    songs: int  # of all processes
    places: tuple[int, ...]  # of its songs among those of the step


def part_of(place: Place, step: int, *, songs: int, batch_size: int, accumulation: int) -> Part:
    """Deal the batches of a step.

    Args:
        place: of this process.
        step: of the epoch, counting from 0.
        songs: in an epoch.
        batch_size: songs in a batch.
        accumulation: batches in a step.
    """
    per_step = batch_size * accumulation
    count = min(songs - step * per_step, per_step)
    starts = range(0, count, batch_size)[place.rank :: place.size]
    places = [number for start in starts for number in range(start, min(start + batch_size, count))]
    return Part(len(starts), count, tuple(places))


class Team:
    """The processes of a run, as one of them sees them; a single one agrees with itself at no cost.

    Args:
        place: of this process.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self._is_met = self.place.size > 1
        self._cards: Any = None  # the group that gradients are added up in
        if self._is_met:
            dist.init_process_group("gloo", rank=self.place.rank, world_size=self.place.size, timeout=PATIENCE)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.place.leads

    def use(self, device: torch.device) -> None:
        """Make this process's card the current one, which graphs are captured on; let gradients travel between all."""
        if device.type != "cuda":
            return
        if device.index is not None:
            torch.cuda.set_device(device)
        if self._is_met:
            self._cards = dist.new_group(backend="nccl", timeout=CARDS_PATIENCE)

    def together(self, call: Callable[[], Result]) -> Result:
        """Call something in every process; go on only if it went well in all.

        Raises:
            UserError: in the leader with what went wrong anywhere; in the others an ElsewhereError.
        """
        if not self._is_met:
            return call()
        result: list[Result] = []
        problems: tuple[str, ...] = ()
        try:
            result.append(call())
        except UserError as error:
            problems = error.problems
        everywhere: list[Any] = [None] * self.place.size
        self._agreeing(lambda: dist.all_gather_object(everywhere, problems))
        found = dict.fromkeys(problem for one in everywhere for problem in one)
        if found:
            raise (UserError if self.leads else ElsewhereError)(*found)
        return result[0]

    def any(self, flag: bool) -> bool:
        """Tell whether something holds for any process; all wait for each other here.

        Raises:
            LostError: when one of them is gone.
        """
        return flag if not self._is_met else bool(self._sum(torch.tensor([int(flag)]))[0])

    def add_up(self, parameters: Sequence[Parameter], losses: Tensor, frames: int, part: Part) -> tuple[Tensor, int]:
        """Add up gradients, in place, and bring the losses of a step's songs together.

        Args:
            parameters: with this process's gradients.
            losses: of its songs.
            frames: of its songs.
            part: where they belong.

        Returns:
            The (songs,) losses of all processes, and all their frames.

        Raises:
            LostError: when another process is gone; nothing is added then.
        """
        if not self._is_met:
            return losses, frames
        has_gradient = [int(parameter.grad is not None) for parameter in parameters]
        total, *somewhere = self._sum(torch.tensor([frames, *has_gradient])).tolist()
        all_losses = losses.new_zeros(part.songs)
        all_losses[list(part.places)] = losses
        self._agreeing(lambda: dist.all_reduce(all_losses, group=self._cards))
        trained = [parameter for parameter, count in zip(parameters, somewhere, strict=True) if count]
        for bucket in _buckets(trained):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self._agreeing(lambda flat=flat: dist.all_reduce(flat, group=self._cards))  # type: ignore[misc]
            for gradient, summed in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))  # captured graphs know its address
        return all_losses, total

    def gather_names(self, part: Part, names: Sequence[str]) -> list[str]:
        """Return the names of all songs of a step, in their order."""
        if not self._is_met:
            return list(names)
        everywhere: list[Any] = [None] * self.place.size
        self._agreeing(lambda: dist.all_gather_object(everywhere, dict(zip(part.places, names, strict=True))))
        known = {place: name for one in everywhere for place, name in one.items()}
        return [known[place] for place in range(part.songs)]

    def refuse_differences(self, parameters: Sequence[Parameter]) -> None:
        """Stop when the processes do not hold the same adapter.

        Raises:
            DifferError: in the leader; in the others an ElsewhereError.
        """
        if not self._is_met:
            return
        digest = hashlib.sha256()
        for parameter in parameters:
            digest.update(parameter.detach().cpu().numpy().tobytes())
        mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).long()
        if not torch.equal(self._sum(mine.clone()), mine * self.place.size):
            raise (DifferError if self.leads else ElsewhereError)(
                "The processes no longer hold the same adapter, so nothing is saved. A card or a library computes "
                "wrongly: go on from the newest checkpoint with one process, and look which card it is."
            )

    def leave(self) -> None:
        """Agree with nobody any more, because this process or another ends early."""
        self._is_met = False

    def close(self) -> None:
        """Take leave at the end of a run."""
        if self._is_met:
            dist.destroy_process_group()
        self._is_met = False

    def _sum(self, numbers: Tensor) -> Tensor:
        self._agreeing(lambda: dist.all_reduce(numbers))
        return numbers

    def _agreeing(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:  # torch.distributed has no other word for it
            self.leave()
            raise LostError(
                f"Another of the {self.place.size} processes has ended ({str(error).splitlines()[0][:120]}). What it "
                "said is the reason; go on with --resume-from latest."
            ) from error


def _buckets(parameters: Sequence[Parameter]) -> Iterator[list[Parameter]]:
    """Yield the parameters in groups that are not much larger than a bucket."""
    bucket: list[Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(one.numel() for one in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def sharing(place: Place, gradient_accumulation: int) -> list[str]:
    """Say how several processes share the work."""
    if place.size == 1:
        return []
    least, more = divmod(gradient_accumulation, place.size)
    if not more:
        return [f"{place.size} processes compute {least} of the {gradient_accumulation} batches of a step each."]
    return [
        f"{more} of {place.size} processes compute {least + 1} of the {gradient_accumulation} batches of a step, the "
        f"others {least} and wait; --gradient-accumulation {(least + 1) * place.size} divides evenly."
    ]
