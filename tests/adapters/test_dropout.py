"""Dropout by hashing: the right share, independent of what is beside it, the same wherever it is computed."""

import pytest
import torch
from torch import nn

from woodshed.adapters.dropout import HashedDropout, hash_dropout

ONES = torch.ones(400, 300)


def seed(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


def mask(value: int, layer: int = 0, p: float = 0.3, shape=(400, 300)) -> torch.Tensor:
    return HashedDropout(p, seed(value), layer)(torch.ones(shape)) == 0


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("value", [0, 1, -(2**31), 2**31 - 1])
def test_the_share_of_dropped_numbers_is_p_and_the_mean_stays(p, value):
    dropped = HashedDropout(p, seed(value), 3)(ONES)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / ONES.numel()) ** 0.5)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)])


@pytest.mark.parametrize(("one", "other"), [((5, 0), (6, 0)), ((5, 0), (5, 1)), ((5, 0), (4, 1)), ((0, 0), (2**30, 0))])
def test_masks_of_other_seeds_and_layers_are_independent(one, other):
    first, second = mask(*one), mask(*other)
    both = (first & second).float().mean().item()
    assert both == pytest.approx(0.09, abs=0.005)


def test_neither_rows_nor_columns_repeat():
    dropped = mask(7).float()
    near = [torch.corrcoef(torch.stack([dropped[0], dropped[row]]))[0, 1].abs() for row in (1, 2, 128)]
    across = [torch.corrcoef(torch.stack([dropped[:, 0], dropped[:, column]]))[0, 1].abs() for column in (1, 2, 256)]
    assert max(near + across) < 0.25


def test_the_mask_depends_on_place_and_not_on_batch_or_precision():
    layer = HashedDropout(0.4, seed(9), 1)
    whole = layer(torch.ones(1, 50, 16)) == 0
    assert torch.equal(whole[:, :20], layer(torch.ones(1, 20, 16)) == 0)
    assert torch.equal(whole, layer(torch.ones(1, 50, 16, dtype=torch.bfloat16)) == 0)


def test_gradients_pass_where_numbers_did():
    layer, x = HashedDropout(0.5, seed(2), 0), torch.ones(40, 5, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad, layer(torch.ones(40, 5)))


def test_nothing_drops_in_eval_mode_or_at_zero():
    assert HashedDropout(0.5, seed(2), 0).eval()(ONES) is ONES
    assert HashedDropout(0.0, seed(2), 0)(ONES) is ONES


def test_it_takes_the_place_of_every_dropout_that_drops():
    model = nn.ModuleDict({"a": nn.Dropout(0.2), "b": nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.1))}).eval()
    value = hash_dropout(model, torch.device("cpu"))
    kinds = [type(model["a"]), *map(type, model["b"])]
    assert kinds == [HashedDropout, nn.Dropout, HashedDropout]
    assert (model["a"].p, model["b"][1].p) == (0.2, 0.1)
    assert not model["a"].training
    model.train()
    before = model["a"](ONES)
    value.fill_(1)
    assert not torch.equal(model["a"](ONES), before)
    assert not torch.equal(model["a"](ONES) == 0, model["b"][1](ONES) == 0)
