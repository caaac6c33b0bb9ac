"""Trains with several processes that are forks of this one, as a launcher would start them; run by `test_teams.py`.

usage: teaming.py CHECKPOINTS FOLDER

Each scenario's outcome goes into the folder, and what the processes' ends were to standard output, as JSON.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from killing_training import write_song

from woodshed import cli
from woodshed.monitor import views  # noqa: F401 - imported before the forks
from woodshed.training import loop, team

Meddle = Callable[[int], None]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(words: list[str], count: int, folder: Path, meddle: Meddle = lambda _rank: None) -> list[int]:
    """Start so many processes of one command and return their numbers; what they say goes into files."""
    port, children = free_port(), []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 70
        try:
            if count > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
            meddle(rank)
            with (folder / f"said-{rank}").open("w") as said, redirect_stdout(said), redirect_stderr(said):
                code = cli.main(words)
        finally:
            os._exit(code)
    return children


def wait(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def words_for(checkpoints: str, folder: Path, name: str, *more: object) -> list[str]:
    return [
        *("train", "--plain", "--checkpoint-dir", checkpoints, "--model", "base"),
        *("--dataset-dir", str(folder / "tensors"), "--output-dir", str(folder / name / "out"), "--device", "cpu"),
        *("--rank", "4", "--epochs", "3", "--warmup-steps", "2", "--lr", "1e-3", "--batch-size", "2"),
        *("--gradient-accumulation", "2", "--log-every", "1", "--num-workers", "0", *map(str, more)),
    ]


def wait_for_step(output: Path, step: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        path = output / "events.jsonl"
        if path.is_file() and f'"StepDone", "step": {step},'.encode() in path.read_bytes():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


def diverge(rank: int) -> None:
    true_step = loop.take_step

    def step(run, *arguments, **options):  # type: ignore[no-untyped-def]
        result = true_step(run, *arguments, **options)
        run.parameters[0].data.add_(rank)
        return result

    loop.take_step = step


def poison(rank: int) -> None:
    true_sum = team.Team.add_up

    def add_up(self, parameters, losses, frames, part):  # type: ignore[no-untyped-def]
        if rank == 1:
            losses = losses * float("nan")
        return true_sum(self, parameters, losses, frames, part)

    team.Team.add_up = add_up  # type: ignore[method-assign]


def main() -> None:
    checkpoints, folder = sys.argv[1], Path(sys.argv[2])
    for number in range(7):
        write_song(folder / "tensors", number, frames=20 + 6 * number, tokens=5 + number)
    ends: dict[str, list[int]] = {}

    def run(name: str, count: int, *more: object, meddle: Meddle = lambda _rank: None) -> None:
        (folder / name).mkdir(exist_ok=True)
        ends[name] = wait(start(words_for(checkpoints, folder, name, *more), count, folder / name, meddle))

    run("one", 1)
    run("two", 2, "--validation-share", "0")
    uneven = ("--gradient-accumulation", "3")  # two steps an epoch: of three batches, and of one
    run("one, uneven", 1, *uneven)
    run("two, uneven", 2, *uneven)
    run("measured", 2, "--validation-share", "0.3", "--validate-every-n-epochs", "1", "--save-every", "1")
    for name, counts in {"two to one": (2, 1), "one to two": (1, 2)}.items():
        run(name, counts[0], "--max-time", "0.000001")  # one step
        run(name, counts[1], "--resume-from", "latest")
    run("too many", 3)

    run("differing", 2, "--save-every", "1", meddle=diverge)
    run("not finite", 2, meddle=poison)
    long = ("--epochs", "100000", "--save-every", "0")
    for name, number in {"ctrl-c": signal.SIGINT, "lost": signal.SIGKILL}.items():
        (folder / name).mkdir()
        children = start(words_for(checkpoints, folder, name, *long), 2, folder / name)
        wait_for_step(folder / name / "out", 3)
        for child in children if number == signal.SIGINT else children[1:]:
            os.kill(child, number)
            if number == signal.SIGINT:
                os.kill(child, number)  # the launcher hands it on to those that heard it already
        ends[name] = wait(children)
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    main()
