"""A ranking as a table and as a picture."""

from woodshed.adapters.ranking import Entry, Ranking
from woodshed.monitor.estimation import BAR, LISTED, layer_picture, ranking_table


def ranking_of(scores, top_k=1):
    entries = [Entry(name=name, modules=(name,), score=score, halves=(score, score)) for name, score in scores.items()]
    facts = {"woodshed": "1", "model": "m", "fingerprint": "f", "dataset": "d", "dataset_digest": "d", "formula": "f"}
    counts = {"songs": 1, "batches": 2, "seed": 1, "half_correlation": 1.0, "top_k": top_k, "recommendation": ()}
    return Ranking(**facts, **counts, granularity="module", entries=tuple(entries))


def test_bars_are_as_long_as_scores_and_what_is_recommended_has_a_star():
    lines = ranking_table(ranking_of({"layers.0.mlp.up_proj": 4.0, "layers.10.mlp.up_proj": 1.0}))
    assert lines == [
        "      module                     score  share",
        f"  1*  layers.0.mlp.up_proj           4  80.0%  {'#' * BAR}",
        f"  2   layers.10.mlp.up_proj          1  20.0%  {'#' * round(BAR / 4)}",
    ]


def test_a_long_ranking_ends_with_how_much_is_left_out():
    lines = ranking_table(ranking_of({f"layers.{number}.mlp.up_proj": 1.0 for number in range(LISTED + 3)}))
    assert len(lines) == LISTED + 2
    assert lines[-1] == "      and 3 more in the file"


def test_the_picture_adds_up_each_layer_and_splits_its_bar():
    scores = {"layers.1.self_attn.q_proj": 1.0, "layers.1.mlp.up_proj": 2.0, "layers.0.cross_attn.v_proj": 1.5}
    assert layer_picture(ranking_of(scores))[1:] == ["  0  " + "c" * 15, "  1  " + "s" * 10 + "m" * 20]


def test_a_ranking_of_zeros_draws_nothing_and_does_not_fail():
    ranking = ranking_of({"layers.0.mlp.up_proj": 0.0})
    assert ranking_table(ranking)[1].rstrip().endswith("0.0%")
    assert layer_picture(ranking)[1:] == ["  0  "]
