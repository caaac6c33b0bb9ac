"""`python -m miniature.curves`: draw the losses of a log as an SVG, both axes logarithmic."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 40
CURVES = {
    ("base", "loss"): ("base, training batches", "#9aa5b1"),
    ("base", "held_out"): ("base, held-out songs", "#1f5fa8"),
    ("turbo", "loss"): ("turbo, against its teacher", "#c2591b"),
}
LOSSES, STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0), (100, 300, 1000, 3000, 10_000)

Points = list[tuple[float, float]]


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m miniature.curves", description="Draw the losses of a log.")
    parser.add_argument("log", type=Path, help="log.jsonl of python -m miniature")
    parser.add_argument("output", type=Path, help="an SVG file")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").splitlines()]
    arguments.output.write_text(draw(lines), encoding="utf-8")


def curve(lines: Sequence[dict[str, float | str]], stage: str, what: str) -> Points:
    """Return steps and losses of a stage."""
    return [(float(line["step"]), float(line[what])) for line in lines if line["stage"] == stage and what in line]


def draw(lines: Sequence[dict[str, float | str]]) -> str:
    """Return the picture of all curves."""
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *_axes()]
    for row, ((stage, what), (label, colour)) in enumerate(CURVES.items()):
        points = " ".join(f"{_x(step):.1f},{_y(loss):.1f}" for step, loss in curve(lines, stage, what))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{TOP + 16 * (row + 1)}" fill="{colour}" text-anchor="end">{label}</text>'
        )
    font = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>'
    return "\n".join([head, *parts, "</svg>\n"])


def _axes() -> list[str]:
    parts = []
    for loss in LOSSES:
        parts.append(f'<path d="M{LEFT} {_y(loss):.1f}H{WIDTH - RIGHT}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{_y(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>')
    parts += [f'<text x="{_x(step):.1f}" y="{HEIGHT - 20}" text-anchor="middle">{step:,}</text>' for step in STEPS]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 4}">step</text><text x="4" y="{TOP - 6}">loss</text>')
    return parts


def _x(step: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * _share(step, 30, 14_000)


def _y(loss: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - _share(loss, 0.018, 2.4))


def _share(value: float, low: float, high: float) -> float:
    """Return where a value stands between two, in [0, 1], by ratios."""
    return min(max(math.log(value / low) / math.log(high / low), 0.0), 1.0)


if __name__ == "__main__":
    main()
