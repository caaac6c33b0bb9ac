"""The formulas of every family against definitions written down once more, and their limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import OFTConfig, inject_adapter_in_model
from torch import nn

from woodshed.adapters.changes import Difference, Hadamard, LowRank, Norms, Rotation
from woodshed.adapters.content import Content
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.low_rank import as_lora

SIDES = st.integers(1, 6)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(rows=6, columns=4, rank=2, **more):
    return LowRank(randn(rank, columns), randn(rows, rank, seed=1), 1.5, **more)


def loha(rows=6, columns=4, rank=2, **more):
    left, right = (randn(rows, rank, seed=seed) for seed in (2, 3)), (randn(rank, columns, seed=s) for s in (4, 5))
    (w1_a, w2_a), (w1_b, w2_b) = left, right
    return Hadamard(w1_a, w1_b, w2_a, w2_b, 0.5, **more)


def lokr(w1=(3, 2), w2=(2, 2), dim=None, dim1=None, **more):
    first = (randn(*w1, seed=6),) if dim1 is None else (randn(w1[0], dim1, seed=6), randn(dim1, w1[1], seed=7))
    second = (randn(*w2, seed=8),) if dim is None else (randn(w2[0], dim, seed=8), randn(dim, w2[1], seed=9))
    return Kronecker(first, second, 2.5, **more)


CHANGES = {
    "lora": lora(),
    "dora": lora(norms=Norms(randn(6, seed=10).abs())),
    "dora for today's ComfyUI": lora(norms=Norms(randn(6, seed=10), are_over_base=True)),
    "loha": loha(),
    "loha with norms": loha(norms=Norms(randn(6, seed=10))),
    "lokr": lokr(),
    "lokr, low-rank": lokr(dim=1),
    "lokr, both low-rank": lokr(dim=1, dim1=1),
    "lokr with norms": lokr(dim=1, norms=Norms(randn(6, seed=10))),
    "oft": Rotation(0.1 * randn(2, 1)),
    "difference": Difference(randn(6, 4)),
}


@pytest.fixture(params=CHANGES)
def change(request):
    return CHANGES[request.param]


def test_the_output_is_what_the_difference_gives(change):
    weight, x = randn(6, 4, seed=20), randn(2, 3, 4, seed=21)
    torch.testing.assert_close(
        change.outputs(x, weight), x @ change.delta(weight.float()).double().T, atol=1e-5, rtol=1e-4
    )


def test_a_change_fits_exactly_its_shape(change):
    assert change.fits((6, 4))
    assert not change.fits((6, 5))
    assert not change.fits((6,))
    assert not change.fits((6, 4, 1))
    assert change.fits((7, 4)) == isinstance(change, Rotation)


def test_moving_a_change_moves_all_of_it(change):
    moved = change.to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    tensors += [part for value in vars(moved).values() if isinstance(value, tuple) for part in value]
    tensors += [moved.norms.values] if moved.norms is not None else []
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.shape, moved.norms is None, type(moved)) == (change.shape, change.norms is None, type(change))
    assert getattr(moved, "scale", None) == getattr(change, "scale", None)
    assert getattr(moved.norms, "are_over_base", None) == getattr(change.norms, "are_over_base", None)


def test_thin_factors_where_there_are_some_are_exact(change):
    factors = change.low_rank()
    if factors is None:
        assert isinstance(change, Rotation | Difference)
        return
    a, b = factors
    torch.testing.assert_close(b @ a, change.product(torch.zeros(6, 4, dtype=torch.float64)))


@given(rows=SIDES, columns=SIDES, rank=SIDES, scale=st.floats(-4, 4))
def test_lora_and_loha_are_sums_over_their_ranks(rows, columns, rank, scale):
    a, b = randn(rank, columns), randn(rows, rank, seed=1)
    zero = torch.zeros(rows, columns, dtype=torch.float64)
    outer = [torch.outer(b[:, r], a[r]) for r in range(rank)]
    torch.testing.assert_close(LowRank(a, b, scale).product(zero), scale * sum(outer))
    c, d = randn(rank, columns, seed=2), randn(rows, rank, seed=3)
    other = [torch.outer(d[:, r], c[r]) for r in range(rank)]
    torch.testing.assert_close(Hadamard(b, a, d, c, scale).product(zero), scale * sum(outer) * sum(other))


@given(left=SIDES, right=SIDES, up=SIDES, down=SIDES, dim=SIDES, seed=st.integers(0, 99))
def test_a_lokr_with_a_whole_first_factor_is_the_same_lokr(left, right, up, down, dim, seed):
    w1 = (randn(left, dim, seed=seed), randn(dim, right, seed=seed + 1))
    w2 = (randn(up, dim, seed=seed + 2), randn(dim, down, seed=seed + 3))
    zero = torch.zeros(left * up, right * down, dtype=torch.float64)
    for second in (w2, (w2[0] @ w2[1],)):
        change = Kronecker(w1, second, 1.7)
        for holds_scale in (False, True):
            whole = change.with_whole_first(holds_scale=holds_scale)
            torch.testing.assert_close(whole.product(zero), change.product(zero))
            assert len(whole.w1) == 1
            assert whole.scale == (1.7 if len(second) == 2 and not holds_scale else 1.0)
            assert set(whole.parts()) == {"lokr_w1", *(["lokr_w2_a", "lokr_w2_b"] if len(second) == 2 else ["lokr_w2"])}


def test_norms_are_those_of_the_changed_rows_or_for_todays_comfyui_over_the_base():
    weight, change = randn(6, 4, seed=20), lora()
    values = randn(6, seed=10).abs()
    new = weight + LowRank(change.a, change.b, change.scale, norms=Norms(values)).delta(weight)
    torch.testing.assert_close(new.norm(dim=1), values)
    over = LowRank(change.a, change.b, change.scale, norms=Norms(values, are_over_base=True)).delta(weight)
    by_hand = (weight + 1.5 * change.b @ change.a) * values[:, None] / weight.norm(dim=1)[:, None]
    torch.testing.assert_close(weight + over, by_hand)


@pytest.mark.parametrize("terms", [0, 4, 5, 9])
def test_an_oft_turns_the_input_as_peft_does(terms):
    """By the series that its settings name, or by the exact Cayley transform."""
    series = {"num_cayley_neumann_terms": terms} if terms else {"use_cayley_neumann": False}
    model = nn.ModuleDict({"q": nn.Linear(12, 5, bias=False)})
    inject_adapter_in_model(OFTConfig(r=0, oft_block_size=4, target_modules=["q"], **series), model)
    skew, weight = 0.3 * randn(3, 6).float(), model["q"].base_layer.weight.detach()
    model["q"].oft_R["default"].weight.data = skew
    change = Rotation(skew, terms)
    assert (change.block_size, change.shape) == (4, (0, 12))
    turned = model["q"](torch.eye(12)).T.detach()
    torch.testing.assert_close(weight + change.delta(weight), turned, rtol=1e-5, atol=1e-6)
    if terms == 0:
        torch.testing.assert_close(turned.norm(dim=1), weight.norm(dim=1))


@given(rank=st.integers(0, 4), filled=st.integers(0, 3))
def test_zeros_that_fill_up_a_rank_are_found_and_nothing_else(rank, filled):
    def padded(part, dim):
        shape = list(part.shape)
        shape[dim] = filled
        return torch.cat([part, torch.zeros(shape, dtype=part.dtype)], dim=dim)

    one, other = lora(rank=rank), loha(rank=rank)
    trimmed = LowRank(padded(one.a, 0), padded(one.b, 1), one.scale).unfilled()
    assert torch.equal(trimmed.a, one.a)
    assert torch.equal(trimmed.b, one.b)
    parts = [padded(getattr(other, name), dim) for name, dim in (("w1_a", 1), ("w1_b", 0), ("w2_a", 1), ("w2_b", 0))]
    assert Hadamard(*parts, other.scale).unfilled().rank == rank


def test_a_rank_is_used_as_long_as_one_of_its_factors_is():
    untrained = LowRank(randn(3, 4), torch.zeros(6, 3, dtype=torch.float64))
    assert untrained.unfilled().rank == 3
    fresh = loha(rank=3)
    assert Hadamard(fresh.w1_a, fresh.w1_b, fresh.w2_a, torch.zeros_like(fresh.w2_b)).unfilled().rank == 3


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 4, 100])
def test_what_is_cut_is_the_nearest_lora_of_the_rank_and_exact_ones_are_left_alone(limit):
    weight = randn(6, 4, seed=20)
    content = Content({"thin": lora(rank=2), "full": CHANGES["difference"], "dora": CHANGES["dora"]}, {"a": 1})
    made, cut = as_lora(content, limit=limit, weight_of=lambda _: weight)
    assert cut == ([] if limit is None else ["thin"] * (limit < 2)) + ["full", "dora"]
    assert made.recipe == {"a": 1}
    for module, change in content.changes.items():
        thin = made.changes[module]
        assert isinstance(thin, LowRank)
        assert thin.norms is None
        wanted = change.delta(weight)
        sizes = torch.linalg.svdvals(wanted)
        allowed = min(limit or 128, 4)
        rest = sizes[allowed:].square().sum().sqrt().item() if module in cut else 0.0
        error = (thin.delta(weight) - wanted).norm().item()
        assert error == pytest.approx(rest, abs=1e-5)
        if module in cut:
            assert thin.rank == allowed
            assert thin.a.norm().item() == pytest.approx(thin.b.norm().item(), rel=1e-5)


def test_a_lokr_becomes_an_exact_lora_only_where_that_is_thinner_than_the_layer():
    wide = lokr(w1=(4, 4), w2=(4, 4), dim=1)  # rank 4 of 16
    full = lokr(w1=(4, 4), w2=(4, 4))  # rank 16 of 16
    _, cut = as_lora(Content({"wide": wide, "full": full}), limit=None, weight_of=lambda _: pytest.fail("not needed"))
    assert cut == ["full"]
    _, cut = as_lora(Content({"wide": wide}), limit=3, weight_of=lambda _: pytest.fail("not needed"))
    assert cut == ["wide"]


def test_a_rotation_has_the_block_size_that_its_triangle_shows():
    for size in range(2, 40):
        assert Rotation(torch.zeros(2, size * (size - 1) // 2)).block_size == size
    assert math.isclose(Rotation(torch.zeros(1, 6)).blocks(torch.zeros(1)).sum().item(), 4)
