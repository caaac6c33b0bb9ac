"""Preprocesses songs in processes of their own and kills them, again and again; a program, run by `test_kills.py`.

usage: killing.py CHECKPOINTS MODEL SONGS TENSORS WHOLE KILLS SEED

Everything is imported once and every process is a fork, so that a kill hits the work and not the start of Python. A
process that ends by itself is compared with the undisturbed WHOLE, and everything begins anew.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from woodshed.data.encode import preprocess
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings

WAIT = 0.002  # seconds between two looks


def start(values: dict[str, object]) -> int:
    """Preprocess in a new process and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for _ in preprocess(resolve(PreprocessSettings, [Layer("test", values)]).settings):
            pass
        code = 0
    finally:
        os._exit(code)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finish(child: int) -> None:
    """Wait for a process that nobody kills."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"an undisturbed run ended with {status}"


def kill_after(child: int, seconds: float) -> bool:
    """Kill a process; False when it had ended before, which must have been well."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        time.sleep(WAIT)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main() -> None:
    checkpoints, model, songs, tensors, whole = sys.argv[1:6]
    kills, draw = int(sys.argv[6]), random.Random(int(sys.argv[7]))
    values = {"checkpoint_dir": checkpoints, "model": model, "audio_dir": songs, "device": "cpu"}
    output = Path(tensors)
    started_at = time.monotonic()
    finish(start(values | {"tensor_output": whole}))
    seconds = time.monotonic() - started_at
    expected = content_of(Path(whole))
    killed = completed = done_before = 0
    while killed < kills:
        if kill_after(start(values | {"tensor_output": tensors}), draw.uniform(0, seconds)):
            killed += 1
            there = {path.name: path.read_bytes() for path in output.glob("*.pt") if path.name[0] != "."}
            assert all(content == expected[name] for name, content in there.items()), "a file appears whole or not"
            assert len(there) >= done_before, "a finished song is never lost"
            done_before = len(there)
            continue
        completed += 1
        assert content_of(output) == expected
        shutil.rmtree(output)
        done_before = 0
    finish(start(values | {"tensor_output": tensors}))
    is_same = content_of(output) == expected
    sys.stdout.write(json.dumps({"killed": killed, "completed": completed, "seconds": seconds, "same": is_same}))


if __name__ == "__main__":
    main()
