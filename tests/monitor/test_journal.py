"""events.jsonl: one line of valid JSON an event, whatever happens."""

import dataclasses
import json
import math
import time
import types
import typing
from pathlib import Path

import pytest

from woodshed.monitor.journal import Journal
from woodshed.training.events import Event, Finished, Notice, StepDone

KINDS = typing.get_args(Event)
EXAMPLES = {bool: True, int: 3, float: 0.25, str: "Größe 音", Path: Path("out") / "final", dict: {"layers.0": 0.5}}


def example(kind):
    """An event with every field filled by its type, so that a new kind of event is tested as soon as it exists."""
    values = {}
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        values[name] = EXAMPLES[typing.get_origin(options[0]) or options[0]]
    return kind(**values)


def read(path):
    def no_constant(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=no_constant) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_event_is_one_line_that_holds_all_of_it(kind, tmp_path):
    event = example(kind)
    before = time.time()
    with Journal(tmp_path / "events.jsonl") as journal:
        journal(event)
    assert (tmp_path / "events.jsonl").read_bytes().count(b"\n") == 1
    (line,) = read(tmp_path / "events.jsonl")
    assert line.pop("event") == kind.__name__
    assert before - 1 <= line.pop("time") <= time.time() + 1
    expected = {
        name: value.as_posix() if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(event).items()
    }
    assert line == expected


def test_a_line_can_be_read_while_the_run_goes_on(tmp_path):
    with Journal(tmp_path / "events.jsonl") as journal:
        journal(Notice("one"))
        assert [line["text"] for line in read(tmp_path / "events.jsonl")] == ["one"]
        journal(Notice("two"))
        assert [line["text"] for line in read(tmp_path / "events.jsonl")] == ["one", "two"]


def test_a_resumed_run_appends(tmp_path):
    for text in ("first", "resumed"):
        with Journal(tmp_path / "events.jsonl") as journal:
            journal(Notice(text))
    assert [line["text"] for line in read(tmp_path / "events.jsonl")] == ["first", "resumed"]


@pytest.mark.parametrize("torn", ['{"time": 1, "eve', "{", '{"text": "Gr\\u00'])
def test_a_line_that_a_crash_cut_short_is_dropped(torn, tmp_path):
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal(Notice("whole"))
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    with Journal(path) as journal:
        journal(Notice("after"))
    assert [line["text"] for line in read(path)] == ["whole", "after"]


def test_a_file_that_holds_nothing_but_a_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"time"', encoding="utf-8")
    with Journal(path):
        pass
    assert path.read_bytes() == b""


def test_a_run_that_breaks_ends_with_the_reason(tmp_path):
    path = tmp_path / "events.jsonl"

    def break_down():
        with Journal(path) as journal:
            journal(Notice("before"))
            raise ValueError("out of luck\nand more")

    with pytest.raises(ValueError, match="out of luck"):
        break_down()
    last = read(path)[-1]
    assert {key: last[key] for key in ("event", "error", "message")} == {
        "event": "Failed",
        "error": "ValueError",
        "message": "out of luck\nand more",
    }


def test_a_run_that_ends_well_has_no_such_line(tmp_path):
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal(example(Finished))
    assert [line["event"] for line in read(path)] == ["Finished"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    step = dataclasses.replace(
        example(StepDone), grad_norm=math.inf, loss=math.nan, module_grad_norms={"a": -math.inf, "b": 1.5}
    )
    with Journal(tmp_path / "events.jsonl") as journal:
        journal(step)
    (line,) = read(tmp_path / "events.jsonl")
    assert line["grad_norm"] is line["loss"] is line["module_grad_norms"]["a"] is None
    assert line["module_grad_norms"]["b"] == 1.5
