"""Making music in the terminal, line by line."""

from pathlib import Path

from woodshed.console import Terminal
from woodshed.monitor.generation import watch_generation
from woodshed.sampling.events import Finished, Notice, Sampled, Started, Written


def test_every_event_becomes_words(capsys):
    paths = (Path("a-base.wav"), Path("a-style.wav"))
    events = [
        Started("acestep-v15-base", "cpu", "float32", 2, 30.0),
        Notice("A tag is put before the prompt."),
        *(Sampled("base", 1, step, 3) for step in (1, 2, 3)),
        Written("base", paths[0]),
        Sampled("style", 2, 1, 1),
        Written("style", paths[1]),
        Finished(paths, 75.0, 3 * 2**30),
    ]
    watch_generation(events, Terminal(plain=True))
    assert capsys.readouterr().out.splitlines() == [
        "30 s of music from acestep-v15-base on cpu in float32, 2 versions.",
        "A tag is put before the prompt.",
        "base: 3 steps done",
        "base: a-base.wav",
        "style: 1 steps done",
        "style: a-style.wav",
        "2 files in 1 min 15 s, peak memory 3.00 GiB.",
    ]
