"""Trains in processes of its own and kills them, again and again; a program, run by `test_kills.py` or by hand.

usage: killing_training.py CHECKPOINTS FOLDER KILLS SEED

Everything is imported once and every process is a fork, so that a kill hits the work and not the start of Python. Two
of three kills wait until something is being written. After each kill every checkpoint must be sound, and every one
that the journal said was saved must be there or have made room for newer ones. A run that ends by itself is compared
with the undisturbed one, and everything begins anew.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from woodshed import cli
from woodshed.monitor import views  # noqa: F401 - imported before the forks
from woodshed.training import loop  # noqa: F401
from woodshed.training.checkpoint import list_checkpoints, read_resume_point

KEEP = 2
WAIT = 0.0005  # seconds between two looks


def write_song(folder: Path, number: int, frames: int = 20, tokens: int = 5) -> None:
    """Write a song of noise as preprocessing writes songs."""
    noise = torch.Generator().manual_seed(number)
    folder.mkdir(parents=True, exist_ok=True)
    song = {
        "target_latents": torch.randn(frames, 16, generator=noise),
        "attention_mask": torch.ones(frames),
        "encoder_hidden_states": torch.randn(tokens, 32, generator=noise),
        "encoder_attention_mask": torch.ones(tokens, dtype=torch.bool),
        "context_latents": torch.ones(frames, 32),
        "metadata": {"filename": f"{number}.wav", "caption": "noise"},
    }
    torch.save(song, folder / f"{number}.pt")


def start(words: list[str]) -> int:
    """Run the program in a new process and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(sys.__stderr__):
            code = cli.main(words)
    finally:
        os._exit(code)


def words_for(checkpoints: str, tensors: str, output: Path) -> list[str]:
    resume = ["--resume-from", "latest"] if list_checkpoints(output) else []
    return [
        *("train", "--plain", "--checkpoint-dir", checkpoints, "--model", "base", "--dataset-dir", tensors),
        *("--output-dir", str(output), "--device", "cpu", "--rank", "4", "--epochs", "12", "--warmup-steps", "2"),
        *("--gradient-accumulation", "1", "--save-every", "1", "--keep-last", str(KEEP), "--no-gradient-checkpointing"),
        *resume,
    ]


def ended(child: int) -> bool:
    """Tell whether a process is over, which must have been well."""
    number, status = os.waitpid(child, os.WNOHANG)
    if number:
        code = os.waitstatus_to_exitcode(status)
        assert code == 0, f"an undisturbed run ended with {code}"
    return bool(number)


def kill(child: int, output: Path, draw: random.Random, seconds: float) -> str:
    """Kill a process at a random moment; return when that was, or nothing when it had ended before."""
    is_saving = draw.random() < 2 / 3
    until = time.monotonic() + draw.uniform(0, seconds)
    kind = "anywhere"
    while time.monotonic() < until:
        if ended(child):
            return ""
        time.sleep(WAIT)
    while is_saving and kind == "anywhere":
        if ended(child):
            return ""
        if any(output.glob(".*.*")):
            time.sleep(draw.uniform(0, 0.03))  # into the writing, the renaming, the deleting
            kind = "saving"
    if ended(child):
        return ""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return kind


def step_of(folder: Path) -> int:
    return read_resume_point(folder).position.step  # refuses whatever is damaged


def announced(output: Path) -> int:
    """Return the last step that the journal says was saved."""
    path = output / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    events = map(json.loads, lines)
    return max((event["step"] for event in events if event["event"] == "Saved"), default=0)


def adapter_of(output: Path) -> bytes:
    return (output / "final" / "adapter_model.safetensors").read_bytes()


def main() -> None:
    checkpoints, folder = sys.argv[1], Path(sys.argv[2])
    kills, draw = int(sys.argv[3]), random.Random(int(sys.argv[4]))
    tensors = str(folder / "tensors")
    for number in range(2):
        write_song(folder / "tensors", number)
    whole, output = folder / "whole", folder / "killed"
    started_at = time.monotonic()
    child = start(words_for(checkpoints, tensors, whole))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    seconds = time.monotonic() - started_at
    count = {"anywhere": 0, "saving": 0, "completed": 0, "same": 0, "damaged": 0, "lost": 0}
    while count["anywhere"] + count["saving"] < kills or not count["completed"]:
        is_last = count["anywhere"] + count["saving"] >= kills
        if output.exists() and not list_checkpoints(output):
            shutil.rmtree(output)  # killed before its first checkpoint: as the message says
        child = start(words_for(checkpoints, tensors, output))
        if is_last:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            kind = ""
        else:
            kind = kill(child, output, draw, seconds)
        is_whole = (output / "final").exists()  # also when the kill came after the last thing that was written
        count["completed"] += is_whole
        if kind:
            count[kind] += 1
        steps = []
        for path in list_checkpoints(output):
            try:
                steps.append(step_of(path))
            except Exception:  # noqa: BLE001 - whatever is wrong with it, it counts
                count["damaged"] += 1
        count["lost"] += max(steps, default=0) < announced(output)
        if is_whole:
            count["same"] += adapter_of(output) == adapter_of(whole)
            shutil.rmtree(output)
    sys.stdout.write(json.dumps(count | {"seconds": round(time.monotonic() - started_at, 1)}))


if __name__ == "__main__":
    main()
