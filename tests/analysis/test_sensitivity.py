"""Scores, ranks and what is recommended: small numbers that can be checked by hand."""

import pytest

from woodshed.analysis.sensitivity import (
    candidate_modules,
    enough_entries,
    module_score,
    rank_correlation,
    rank_modules,
    recommend,
    recommended_attention,
)

SHAPES = {
    "layers.0.self_attn.q_proj": (4, 4),
    "layers.0.cross_attn.q_proj": (4, 4),
    "layers.1.self_attn.q_proj": (4, 4),
    "layers.1.mlp.down_proj": (2, 8),
}
NORMS = dict(zip(SHAPES, [[1.0, 1.0], [3.0, 5.0], [2.0, 2.0], [4.0, 0.0]], strict=True))


def test_the_candidates_are_the_projections_of_attention_and_mlp():
    every = {"time_embed.linear_1": (1, 1), **SHAPES, "condition_embedder": (1, 1), "layers.0.time.q": (1, 1)}
    assert candidate_modules(every) == list(SHAPES)


def test_a_score_is_the_mean_norm_times_the_root_of_the_sides_ratio():
    assert module_score([1.0, 3.0], (8, 2)) == pytest.approx(2 * 2)
    assert module_score([1.0, 3.0], (2, 8)) == pytest.approx(2 / 2)


def test_modules_are_ranked_by_score_with_the_scores_of_both_halves():
    entries = rank_modules(NORMS, SHAPES, "module")
    assert [(entry.name, entry.score, entry.halves) for entry in entries] == [
        ("layers.0.cross_attn.q_proj", 4, (3, 5)),
        ("layers.1.self_attn.q_proj", 2, (2, 2)),
        ("layers.0.self_attn.q_proj", 1, (1, 1)),
        ("layers.1.mlp.down_proj", 1, (2, 0)),
    ]
    assert all(entry.modules == (entry.name,) for entry in entries)


def test_a_layers_score_is_the_sum_over_its_modules():
    entries = rank_modules(NORMS, SHAPES, "layer")
    assert [(entry.name, entry.score, entry.halves) for entry in entries] == [
        ("layers.0", 5, (4, 6)),
        ("layers.1", 3, (4, 2)),
    ]
    assert entries[0].modules == tuple(SHAPES)[:2]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], 1 - 6 * 4 / (5 * 24)),  # Spearman's formula where no values are equal
        ([1, 2, 2, 5], [0, 7, 1, 1], 0.5),  # equal values share the mean of their places
        ([3, 1, 2], [9, 9, 1], 0),
    ],
)
def test_the_rank_correlation_is_spearmans(first, second, expected):
    assert rank_correlation(first, second) == pytest.approx(expected)


def test_there_is_no_correlation_with_what_is_all_equal():
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_enough_is_what_holds_half_of_the_response():
    assert enough_entries(rank_modules(NORMS, SHAPES, "module")) == 1  # 4 of 8
    assert enough_entries(rank_modules(NORMS | {"layers.0.cross_attn.q_proj": [3.0, 3.0]}, SHAPES, "module")) == 2
    assert enough_entries(rank_modules({name: [0.0, 0.0] for name in SHAPES}, SHAPES, "module")) == 1


@pytest.mark.parametrize(
    ("own", "cross", "word"),
    [(1, 1, "both"), (2.01, 1, "self"), (1, 2.01, "cross"), (0, 0, "both"), (1.99, 1, "both"), (1, 1.99, "both")],
)
def test_one_kind_of_attention_is_recommended_where_it_clearly_responds_more(own, cross, word):
    scores = {"layers.0.self_attn.q_proj": own, "layers.0.cross_attn.q_proj": cross, "layers.0.mlp.up_proj": 99}
    assert recommended_attention(scores)[0] == word


def recommendation(norms, top_k, correlation=1.0):
    entries = rank_modules(norms, SHAPES, "module")
    scores = {name: module_score(values, SHAPES[name]) for name, values in norms.items()}
    return recommend(entries, scores, top_k=top_k, correlation=correlation, batches=8)


def test_the_recommendation_names_attention_projections_and_layers_with_their_shares():
    assert recommendation(NORMS, 3) == [
        "Attention type: both (self 43%, cross 57% of the attention's response).",
        "Projections: q_proj (100% of what the recommended modules hold).",
        "Layers: 0 1; the 3 recommended modules hold 88% of the whole response.",
    ]


def test_as_many_projections_are_named_as_hold_four_fifths_of_what_is_recommended():
    shapes = {f"layers.0.self_attn.{name}_proj": (4, 4) for name in "qkv"}
    for scores, named in (((5, 3.1, 1.9), "q_proj k_proj (81%"), ((5, 2.9, 2.1), "q_proj k_proj v_proj (100%")):
        norms = {name: [score, score] for name, score in zip(shapes, map(float, scores), strict=True)}
        entries = rank_modules(norms, shapes, "module")
        values = {name: module_score(own, shapes[name]) for name, own in norms.items()}
        said = recommend(entries, values, top_k=3, correlation=1.0, batches=2)
        assert said[1] == f"Projections: {named} of what the recommended modules hold)."


def test_a_ranking_that_is_mostly_chance_asks_for_more_batches():
    assert "alike by 0.30 only" in recommendation(NORMS, 1, correlation=0.3)[-1]
    assert recommendation(NORMS, 1, correlation=0.3)[-1].endswith("use --estimate-batches 32.")
    assert "not at all" in recommendation(NORMS, 1, correlation=None)[-1]


def test_where_nothing_responds_nothing_is_recommended():
    (said,) = recommendation({name: [0.0, 0.0] for name in SHAPES}, 1)
    assert said.startswith("Nothing responds")
