"""Python, PyTorch, cards, disks and packages: what is found, and the line that mends it."""

import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

from woodshed.doctor.machine import EXTRAS, look_at_disks, look_at_machine, look_at_packages, look_at_torch
from woodshed.models.machine import Cards, TorchBuild
from woodshed.settings.schema import DoctorSettings

CARD = Cards(("NVIDIA GeForce RTX 4090",), "580.65.06")
PROJECT = Path(__file__).parents[2]


def states(findings):
    return [finding.state for finding in findings]


def test_a_cpu_build_beside_a_card_is_a_problem_with_the_line_that_mends_it():
    (found,) = look_at_torch(CARD, TorchBuild("2.13.0+cpu", None))
    assert found.state == "problem"
    assert "RTX 4090" in found.text
    assert found.remedy.startswith(
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu"
    )


def test_a_machine_without_a_card_is_told_so_and_is_no_problem(monkeypatch):
    monkeypatch.setattr("woodshed.doctor.machine.available_devices", lambda: ["cpu"])
    ok, note = look_at_torch(None, TorchBuild("2.13.0+cpu", None))
    assert (ok.state, note.state) == ("ok", "note")
    assert "CPU" in note.text


def test_a_device_that_is_not_there_is_a_problem():
    found = list(look_at_machine(DoctorSettings(device="cuda:99")))
    assert any(item.state == "problem" and "cuda:99" in item.text for item in found)
    assert "problem" not in states(look_at_machine(DoctorSettings(device="cpu")))


def test_a_disk_that_is_nearly_full_is_worth_a_note(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    for free, state in ((10**9, "note"), (10**12, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(10**13, 0, free))
        (found,) = look_at_disks({"output": tmp_path / "not" / "yet"})
        assert found.state == state


def test_packages_that_are_missing_or_too_old_are_named_with_the_line_that_brings_them():
    stated = ["torch>=2.8", "safetensors>=999", "no-such-package>=1", 'elsewhere; sys_platform == "nowhere"']
    found = list(look_at_packages(stated))
    assert found[0].state == "problem"
    assert "safetensors" in found[0].text
    assert "no-such-package is not installed" in found[0].text
    assert "torch" not in found[0].text
    assert found[0].remedy == 'pip install "safetensors>=999" "no-such-package>=1"'


def test_an_optional_package_is_a_note_with_what_it_is_for():
    stated = ['no-such-package>=1; extra == "prodigy"', 'pydantic>=2; extra == "8bit"']
    needed, prodigy, eight, models = look_at_packages(stated)
    assert (needed.state, prodigy.state, eight.state, models.state) == ("ok", "note", "ok", "note")
    assert prodigy.remedy == 'pip install "woodshed[prodigy]"'
    assert "--optimizer-type prodigy" in prodigy.text
    assert "pydantic" in eight.text


def test_every_extra_of_the_project_is_known_to_the_doctor():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"dev"}
    assert "problem" not in states(look_at_packages(project["dependencies"]))
