"""Which card there is, and why PyTorch does not use it."""

import sys

import pytest

from woodshed.models.machine import Cards, TorchBuild, driver_programs, find_cards, find_trouble, install_line

CARD = Cards(("NVIDIA GeForce RTX 5090",), "580.65.06")
GOOD = TorchBuild("2.13.0+cu130", "13.0", is_cuda_available=True, architectures=("sm_90",), capabilities=((9, 0),))


@pytest.fixture
def driver(tmp_path):
    """A program that answers as the driver's does."""

    def build(answer, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {code}\n", encoding="utf-8")
        program.chmod(0o755)
        return [tmp_path / "nowhere", program]

    return build


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_the_driver_is_asked_for_cards_and_version(driver):
    answer = "NVIDIA H100, 80GB, 580.65.06\\nNVIDIA T4, 580.65.06\\n"
    assert find_cards(driver(answer)) == Cards(("NVIDIA H100, 80GB", "NVIDIA T4"), "580.65.06")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.parametrize(("answer", "code"), [("", 0), ("No devices were found\\n", 6), ("a, b\\n", 9)])
def test_a_driver_that_fails_has_no_cards(driver, answer, code):
    assert find_cards(driver(answer, code)) is None


def test_a_file_that_is_no_program_has_no_cards(tmp_path):
    (tmp_path / "nvidia-smi").write_bytes(b"\x00")
    assert find_cards([tmp_path / "nvidia-smi"]) is None
    assert find_cards([]) is None


def test_a_program_of_that_name_in_the_current_folder_or_on_the_path_is_never_started(driver, tmp_path, monkeypatch):
    driver("stranger, 999\\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert all(program.is_absolute() and tmp_path not in program.parents for program in driver_programs())


def test_a_card_that_computes_is_no_trouble():
    assert find_trouble(CARD, GOOD) is None
    assert find_trouble(None, TorchBuild("2.13.0+cpu", None)) is None


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (TorchBuild("2.13.0+cpu", None), "a build without CUDA"),
        (TorchBuild("2.13.0+cu130", "13.0"), "cannot use"),
        (TorchBuild("2.6", "12.4", is_cuda_available=True, architectures=("sm_90",), capabilities=((12, 0),)), "12.0"),
        (TorchBuild("2.6", "12.4", is_cuda_available=True, architectures=("sm_90",), capabilities=((8, 6),)), "8.6"),
    ],
)
def test_a_card_that_lies_idle_is_explained(build, part, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = find_trouble(CARD, build)
    assert found is not None
    assert part in found.text
    assert found.text.endswith(".")
    assert "whl/cu130" in found.remedy


@pytest.mark.parametrize(
    ("architectures", "capability"),
    [(("sm_80",), (8, 6)), (("sm_90a",), (9, 0)), (("compute_90",), (12, 0)), (("sm_50", "sm_120"), (12, 0))],
)
def test_kernels_run_on_cards_of_their_own_family_and_intermediate_code_on_newer_ones(architectures, capability):
    build = TorchBuild("2", "12.8", is_cuda_available=True, architectures=architectures, capabilities=(capability,))
    assert find_trouble(CARD, build) is None


def test_a_hidden_card_is_told_from_a_bad_build(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = find_trouble(CARD, TorchBuild("2.13.0+cu130", "13.0"))
    assert found is not None
    assert "CUDA_VISIBLE_DEVICES" in found.remedy


@pytest.mark.parametrize(
    ("driver", "part"), [("580.1", "cu130"), ("550.54", "cu126"), ("470.2", "Update"), ("?", "Update")]
)
def test_the_line_fits_the_driver(driver, part):
    assert part in install_line(driver)
