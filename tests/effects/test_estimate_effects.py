"""Training where an estimate says that the dataset pulls."""

import pytest

from woodshed.adapters.ranking import Entry, Ranking
from woodshed.errors import UserError
from woodshed.training.preflight import check as preflight

RANKED = ["layers.3.mlp.down_proj", "layers.0.cross_attn.v_proj", "layers.2.self_attn.k_proj"]


@pytest.fixture
def estimate(bench):
    """An estimate that ranks three modules and recommends two."""
    entries = tuple(Entry(name=name, modules=(name,), score=1, halves=(1, 1)) for name in RANKED)
    facts = {"woodshed": "1", "model": "m", "dataset": "d", "dataset_digest": "d", "formula": "f"}
    counts = {"songs": 1, "batches": 2, "seed": 1, "half_correlation": 1.0, "top_k": 2, "recommendation": ()}
    fingerprint = preflight(bench.settings()).fingerprint
    path = bench.root / "estimate.json"
    Ranking(**facts, **counts, fingerprint=fingerprint, granularity="module", entries=entries).save(path)
    return path


def test_targets_from_names_exactly_the_adapted_modules(bench, estimate):
    changes = {"targets_from": estimate, "target_modules": "q_proj", "attention_type": "cross"}
    assert bench.modules(**changes) == set(RANKED[:2])
    adapted = {name.rsplit(".", 2)[0] for name in bench.parameters(**changes)}
    assert adapted == set(RANKED[:2])


def test_top_k_is_how_many_of_them(bench, estimate):
    for count in (1, 2, 3):
        assert bench.modules(targets_from=estimate, top_k=count) == set(RANKED[:count])
    with pytest.raises(UserError, match="top_k is 4"):
        bench.modules(targets_from=estimate, top_k=4)
