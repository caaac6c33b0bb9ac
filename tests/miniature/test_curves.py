"""Losses are drawn where they belong."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

from miniature import curves
from miniature.curves import CURVES, curve, draw
from miniature.sizes import Budget

RECORD = Path(curves.__file__).parent / "record" / "log.jsonl"


def record():
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


def test_a_curve_falls_to_the_right_and_down_with_its_losses():
    lines = [{"stage": "base", "step": 10**n, "loss": 2.0 / 10 ** (n - 2), "held_out": 1.0} for n in (2, 3, 4)]
    tree = ElementTree.fromstring(draw(lines))
    points = [line.get("points") for line in tree.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(points) == len(CURVES)
    assert points[2] == ""  # no turbo in this log
    places = [tuple(map(float, point.split(","))) for point in points[0].split()]
    assert places == sorted(places)
    assert [y for _, y in places] == sorted(y for _, y in places)
    assert len({y for _, y in (map(float, point.split(",")) for point in points[1].split())}) == 1


def test_the_record_is_of_the_committed_settings_and_its_picture_is_in_the_docs():
    lines = record()
    for stage, steps in (("base", Budget.base_steps), ("turbo", Budget.turbo_steps)):
        last = curve(lines, stage, "loss")[-1][0]
        assert steps * 79 / 80 <= last <= steps
    picture = Path(__file__).parents[2] / "docs" / "pictures" / "miniature-loss.svg"
    assert picture.read_text(encoding="utf-8") == draw(lines)


def test_the_picture_names_its_curves():
    words = re.findall(r">([^<>]+)</text>", draw(record()))
    assert {label for label, _ in CURVES.values()} <= set(words)
