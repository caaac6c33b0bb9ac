"""An estimate on disk: read back as it was, and refused where it cannot be used."""

import json

import pytest

from woodshed.adapters.ranking import Entry, Ranking, ranked_targets, read_ranking
from woodshed.errors import AdapterError

SHAPES = {f"layers.{layer}.{block}.q_proj": (4, 4) for layer in range(3) for block in ("self_attn", "cross_attn")}


def ranking_of(*names, top_k=2, granularity="module", modules=None):
    entries = [
        Entry(name=name, modules=(modules or {}).get(name, (name,)), score=1 / place, halves=(1 / place, 0.9 / place))
        for place, name in enumerate(names, 1)
    ]
    return Ranking(
        woodshed="1",
        model="acestep-v15-base",
        fingerprint="abc",
        dataset="songs",
        dataset_digest="d",
        songs=3,
        batches=4,
        seed=1,
        granularity=granularity,
        formula="f",
        half_correlation=0.9,
        top_k=top_k,
        recommendation=("Train it.",),
        entries=tuple(entries),
    )


@pytest.fixture
def saved(tmp_path):
    """An estimate that ranks three modules, the last of the model first."""
    path = tmp_path / "estimate.json"
    ranking = ranking_of(*reversed(list(SHAPES)[:3]))
    ranking.save(path)
    return path, ranking


def targets_of(path, top_k="auto", **other):
    return ranked_targets(path, top_k, **{"shapes": SHAPES, "model": "m", "fingerprint": "abc"} | other)


def test_an_estimate_is_read_back_as_it_was_written(saved):
    path, ranking = saved
    assert read_ranking(path) == ranking
    assert json.loads(path.read_text())["entries"][0]["name"] == "layers.1.self_attn.q_proj"


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (3, 3), ("auto", 2)])
def test_exactly_the_highest_are_taken_in_the_order_of_the_model(saved, top_k, count):
    path, ranking = saved
    best = {entry.name for entry in ranking.entries[:count]}
    assert targets_of(path, top_k) == [name for name in SHAPES if name in best]


def test_a_layer_stands_for_all_its_modules(tmp_path):
    modules = {
        "layers.2": ("layers.2.self_attn.q_proj", "layers.2.cross_attn.q_proj"),
        "layers.0": ("layers.0.self_attn.q_proj",),
    }
    ranking_of("layers.2", "layers.0", granularity="layer", modules=modules).save(tmp_path / "e.json")
    assert targets_of(tmp_path / "e.json", 1) == list(SHAPES)[4:]


def test_more_than_there_is_is_refused_with_the_number_there_is(saved):
    with pytest.raises(AdapterError, match=r"top_k is 4, but .* ranks 3 modules. Use --top-k 3 or less."):
        targets_of(saved[0], 4)


def test_an_estimate_for_another_model_is_refused_by_name(saved):
    with pytest.raises(AdapterError, match=r"made for acestep-v15-base; m responds in other places"):
        targets_of(saved[0], fingerprint="xyz")


def test_layers_that_the_model_does_not_have_are_named(saved):
    shapes = {name: shape for name, shape in SHAPES.items() if "layers.1.self" not in name}
    with pytest.raises(AdapterError, match=r"names layers that m does not have: layers.1.self_attn.q_proj"):
        targets_of(saved[0], shapes=shapes)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(AdapterError, match=r"There is no estimate .*Make one with woodshed estimate"):
        targets_of(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (None, "its content: invalid JSON"),
        ({"format": 2}, "format"),
        ({"entries": []}, "entries"),
        ({"entries": [{"name": "x", "modules": ["x"], "score": "NaN", "halves": [1, 1]}]}, "entries.0.score"),
        ({"top_k": 0}, "top_k"),
    ],
    ids=str,
)
def test_what_is_no_estimate_is_refused_saying_where(saved, change, part):
    path, ranking = saved
    path.write_text("{" if change is None else json.dumps(ranking.model_dump() | change), encoding="utf-8")
    with pytest.raises(AdapterError, match="is no estimate that can be read") as caught:
        targets_of(path)
    assert part in str(caught.value)


def test_a_folder_in_place_of_the_file_is_no_crash(tmp_path):
    with pytest.raises(AdapterError, match="cannot be read"):
        targets_of(tmp_path)
