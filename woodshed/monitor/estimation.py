"""An estimate in the terminal: progress, then the ranking as a table and as a picture of the layers."""

import time
from collections.abc import Iterable

from woodshed.adapters.ranking import Ranking
from woodshed.analysis.events import BatchDone, EstimateEvent, Finished, Notice, Started
from woodshed.analysis.sensitivity import BLOCKS
from woodshed.console import Terminal
from woodshed.monitor.progress import LiveBlock, duration, time_left

BAR = 30  # characters of the longest bar
LISTED = 20  # entries in the table; the file holds all


def watch_estimate(events: Iterable[EstimateEvent], terminal: Terminal) -> Ranking | None:
    """Show the events of an estimate until it ends; return the ranking."""
    block = LiveBlock(terminal) if terminal.is_live else None
    began, ranking = time.monotonic(), None
    try:
        for event in events:
            match event:
                case Started():
                    terminal.say(
                        f"{event.modules} modules of {event.model} on {event.songs} songs: {event.batches} batches on "
                        f"{event.device} in {event.precision}."
                    )
                case Notice():
                    terminal.hint(event.text)
                case BatchDone():
                    _advance(event, began, terminal, block)
                case Finished():
                    ranking = event.ranking
                    if block is not None:
                        block.stop()
                    _finish(event, terminal)
    finally:
        if block is not None:
            block.stop()
    return ranking


def _advance(event: BatchDone, began: float, terminal: Terminal, block: LiveBlock | None) -> None:
    left = time_left(event.number, event.batches, time.monotonic() - began)
    status = f"{event.song}  noise level {event.t:.2f}  loss {event.loss:.4f}  {left} left"
    if block is not None:
        block.show("batch", event.number, event.batches, f"{event.number}/{event.batches}", status)
    else:
        terminal.say(f"batch {event.number}/{event.batches}  {status}")


def _finish(event: Finished, terminal: Terminal) -> None:
    ranking = event.ranking
    picture = ["", *layer_picture(ranking)] if ranking.granularity == "module" else []
    for line in (*ranking_table(ranking), *picture, ""):
        terminal.say(line)
    for line in ranking.recommendation:
        terminal.say(line)
    correlation = "none" if ranking.half_correlation is None else f"{ranking.half_correlation:.2f}"
    memory = "" if event.peak_memory_bytes is None else f", peak memory {event.peak_memory_bytes / 2**30:.2f} GiB"
    terminal.say(f"Rank correlation of two halves of the batches: {correlation}. {duration(event.seconds)}{memory}.")
    terminal.say(f"The estimate is in {event.path}. Train these modules and no others with:")
    terminal.say(f"  woodshed train --targets-from {event.path} --top-k {ranking.top_k} ...")


def ranking_table(ranking: Ranking) -> list[str]:
    """Return the strongest entries as lines: place, name, score, share of the whole, and a bar."""
    shown = ranking.entries[:LISTED]
    total = sum(entry.score for entry in ranking.entries) or 1.0
    most = max(entry.score for entry in shown) or 1.0
    width = max(len(entry.name) for entry in shown)
    lines = [f"{'':>4}  {ranking.granularity:<{width}}  {'score':>9}  share"]
    for place, entry in enumerate(shown, 1):
        mark = "*" if place <= ranking.top_k else " "
        lines.append(
            f"{place:>3}{mark}  {entry.name:<{width}}  {entry.score:>9.3g}  {entry.score / total:>5.1%}  "
            f"{_bar(entry.score / most)}"
        )
    rest = len(ranking.entries) - len(shown)
    if rest:
        lines.append(f"      and {rest} more in the file")
    return lines


def layer_picture(ranking: Ranking) -> list[str]:
    """Return a line for each layer of a ranking of modules: a bar as long as its response, in three letters."""
    rows: dict[int, dict[str, float]] = {}
    for entry in ranking.entries:
        _, number, block, _ = entry.name.split(".")
        rows.setdefault(int(number), dict.fromkeys(BLOCKS, 0.0))[block] += entry.score
    most = max(sum(row.values()) for row in rows.values()) or 1.0
    lines = ["Response by layer: s self attention, c cross attention, m MLP"]
    for layer, row in sorted(rows.items()):
        bar, ends, so_far = "", [], 0.0
        for block in BLOCKS:
            so_far += row[block]
            ends.append(round(BAR * so_far / most))
        for letter, end in zip("scm", ends, strict=True):
            bar += letter * (end - len(bar))
        lines.append(f"{layer:>3}  {bar}")
    return lines


def _bar(share: float) -> str:
    return "#" * round(BAR * share)
