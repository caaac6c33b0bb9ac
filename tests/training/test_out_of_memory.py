"""What to change when memory ran out: every way has its figure, and what the failed step held is let go."""

import gc
import re
import weakref

import pytest
import torch

from woodshed.training.out_of_memory import let_go, out_of_memory_advice
from woodshed.training.preflight import check


def figures_of(text):
    """Return what a step takes now and after each way, in MiB, by the flag."""
    unit = {"MiB": 1, "GiB": 1024}
    now = re.search(r"a step of this run takes (\S+) (\w+),", text)
    ways = {flag: float(size) * unit[name] for flag, size, name in re.findall(r"(--\S+ \S+) \((\S+) (\wiB)\)", text)}
    return float(now[1]) * unit[now[2]], ways


def test_every_way_says_what_a_step_then_takes_and_it_is_less_each_time(settings_for):
    now, ways = figures_of(out_of_memory_advice(check(settings_for(batch_size=4, gradient_checkpointing=False))))
    assert list(ways) == ["--recompute all", "--batch-size 1", "--rank 2"]
    sizes = [now, *ways.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[2]


def test_a_base_that_computes_in_16_bits_can_be_held_in_8(settings_for):
    now, ways = figures_of(out_of_memory_advice(check(settings_for(precision="bf16"))))
    assert ways["--base-precision int8"] < now
    for held in ("int8", "nf4"):
        settings = settings_for(precision="bf16", base_precision=held)
        assert "--base-precision" not in out_of_memory_advice(check(settings))


def test_songs_longer_than_a_minute_can_be_cut(settings_for, monkeypatch, dataset_dir):
    monkeypatch.setattr("woodshed.training.out_of_memory.SHORT", 1.0)
    now, ways = figures_of(out_of_memory_advice(check(settings_for())))
    assert ways["--crop-seconds 1"] < now
    assert dataset_dir.is_dir()


def test_what_would_change_nothing_is_not_advised(settings_for):
    said = out_of_memory_advice(check(settings_for(adapter_type="lokr")))
    assert not set(figures_of(said)[1]) & {"--rank 2", "--recompute all", "--batch-size 1"}
    assert "--offload-encoder" not in said
    assert "woodshed preprocess --max-duration" in said


def test_the_tensors_of_a_failed_step_are_let_go_while_its_error_is_still_known():
    def step():
        held = torch.ones(3)
        seen.append(weakref.ref(held))
        raise torch.OutOfMemoryError

    seen = []
    with pytest.raises(torch.OutOfMemoryError) as caught:
        step()
    gc.collect()
    assert seen[0]() is not None
    let_go(caught.value)
    assert seen[0]() is None
