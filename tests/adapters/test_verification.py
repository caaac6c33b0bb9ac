"""What counts as proof: errors relative to each change, strength, and what rounding may and may not excuse."""

import math
from pathlib import Path

import pytest
import torch

from woodshed.adapters.changes import LowRank
from woodshed.adapters.saved import SavedAdapter
from woodshed.adapters.verification import ROUNDING, TOLERANCE, Expected, compare, refuse_other_names
from woodshed.errors import AdapterError

WEIGHT = torch.full((4, 4), 2.0).double()
CHANGE = torch.arange(1.0, 17.0).reshape(4, 4).double()


@pytest.fixture
def saved():
    change = LowRank(torch.ones(1, 4), torch.ones(4, 1))
    return SavedAdapter({"one": change, "two": change}, path=Path("x.safetensors"), tensors=4)


def expected(found, difference=CHANGE, *, weight=WEIGHT, name="one", has_rounding=False):
    return Expected(name, weight, difference, found, has_rounding)


def test_what_is_equal_is_verified_in_full(saved):
    report = compare(saved, [expected(CHANGE), expected(2 * CHANGE, 2 * CHANGE, name="two")])
    assert (report.modules, report.tensors, report.is_live) == (2, 4, True)
    assert (report.max_relative_error, report.residual, report.strength) == (0, 0, 1)
    assert str(report) == (
        "Verified: 4 tensors written and matched over 2 modules, relative error 0.0e+00, strength 1.000000 of the "
        "trained one; the adapter is live."
    )


@pytest.mark.parametrize("share", [0.5, 2.0, 0.0, -1.0, 1 + 2e-5])
def test_another_strength_is_an_error_that_names_the_module(saved, share):
    with pytest.raises(AdapterError, match=r"x\.safetensors does not hold what was trained; .* is in two \("):
        compare(saved, [expected(CHANGE), expected(share * CHANGE, name="two")])


def test_an_error_counts_relative_to_the_largest_entry_of_its_own_module(saved):
    off = CHANGE.clone()
    off[0, 0] += 0.9 * TOLERANCE * 16
    assert compare(saved, [expected(off), expected(1e6 * CHANGE, 1e6 * CHANGE, name="two")]).max_relative_error > 0
    with pytest.raises(AdapterError, match=r"is in one \(9\.\de-05\)"):
        compare(saved, [expected(CHANGE + 10 * (off - CHANGE)), expected(1e6 * CHANGE, 1e6 * CHANGE, name="two")])


def test_what_is_no_number_is_an_error(saved):
    for value in (math.nan, math.inf):
        bad = CHANGE.clone()
        bad[1, 1] = value
        with pytest.raises(AdapterError, match="is in one"):
            compare(saved, [expected(bad)])


def test_a_module_that_does_not_fit_is_infinitely_wrong(saved):
    with pytest.raises(AdapterError, match=r"is in one \(inf\)"):
        compare(saved, [expected(None)])


def test_the_strength_that_is_told_is_the_one_furthest_from_one(saved):
    items = [expected(1.05 * CHANGE), expected(0.7 * CHANGE, name="two"), expected(1.2 * CHANGE, name="three")]
    report = compare(saved, items, tolerance=math.inf)
    assert report.strength == pytest.approx(0.7)
    assert compare(saved, items[:1] + items[2:], tolerance=math.inf).strength == pytest.approx(1.2)


def test_the_residual_is_what_is_wrong_of_the_whole(saved):
    items = [expected(0.5 * CHANGE), expected(2 * CHANGE, 2 * CHANGE, name="two")]
    assert compare(saved, items, tolerance=math.inf).residual == pytest.approx(0.5 / math.sqrt(5))


def test_an_adapter_that_changes_nothing_is_not_live_and_has_no_strength(saved):
    nothing = torch.zeros_like(CHANGE)
    report = compare(saved, [expected(nothing, nothing)])
    assert (report.is_live, report.strength, report.residual, report.max_relative_error) == (False, 1, 0, 0)
    assert str(report).endswith("the adapter changes NOTHING.")
    with pytest.raises(AdapterError, match=r"\(inf\)"):
        compare(saved, [expected(nothing + 1e-9, nothing)])


def test_the_rounding_of_an_untrained_decomposition_is_neither_live_nor_wrong(saved):
    """Norms as large as the weight cannot say a difference more exactly than float32 says the weight."""
    dust = WEIGHT * ROUNDING / 2
    nothing = torch.zeros_like(CHANGE)
    report = compare(saved, [expected(dust, nothing, has_rounding=True), expected(nothing, dust, has_rounding=True)])
    assert (report.is_live, report.max_relative_error) == (False, 0)
    with pytest.raises(AdapterError):
        compare(saved, [expected(dust, nothing)])
    with pytest.raises(AdapterError):
        compare(saved, [expected(4 * dust, nothing, has_rounding=True)])


def test_rounding_excuses_no_more_than_itself(saved):
    small = torch.full((4, 4), 1e-3).double()
    fine = small + WEIGHT * ROUNDING
    assert compare(saved, [expected(fine, small, has_rounding=True)]).max_relative_error < TOLERANCE
    with pytest.raises(AdapterError):
        compare(saved, [expected(small * 1.01, small, has_rounding=True)])


@pytest.mark.parametrize(
    ("modules", "biases", "odd"),
    [(["one"], [], "two"), (["one", "two", "more"], [], "more"), (["one", "two"], ["one.bias"], r"one\.bias")],
)
def test_a_file_with_other_layers_is_refused_by_name(saved, modules, biases, odd):
    refuse_other_names(saved, ["two", "one"], [])
    with pytest.raises(AdapterError, match=f"does not hold the layers that were trained: {odd}"):
        refuse_other_names(saved, modules, biases)
