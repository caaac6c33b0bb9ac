"""Runs that take their modules from an estimate: what has no effect then, and what a resume compares."""

import json
import shutil

import pytest

from woodshed.adapters.ranking import Entry, Ranking
from woodshed.data.identity import dataset_digest
from woodshed.errors import UserError
from woodshed.settings import rules
from woodshed.training.events import Notice, Saved
from woodshed.training.loop import train
from woodshed.training.preflight import check

NAMES = ["layers.3.mlp.down_proj", "layers.0.cross_attn.v_proj", "layers.2.self_attn.k_proj"]


@pytest.fixture
def estimate(tmp_path, settings_for):
    """Write an estimate that ranks some modules: `estimate(names, name="e.json")`."""
    fingerprint = check(settings_for()).fingerprint

    def write(names=NAMES, name="estimate.json", **changes):
        entries = tuple(Entry(name=module, modules=(module,), score=1, halves=(1, 1)) for module in names)
        facts = {"woodshed": "1", "model": "m", "dataset": "d", "dataset_digest": "d", "formula": "f"}
        counts = {"songs": 1, "batches": 2, "seed": 1, "half_correlation": 1.0, "top_k": 2, "recommendation": ()}
        given = {**facts, **counts, "fingerprint": fingerprint, "granularity": "module", "entries": entries}
        path = tmp_path / name
        Ranking(**given | changes).save(path)
        return path

    return write


def problems_of(settings):
    with pytest.raises(UserError) as caught:
        check(settings)
    return caught.value.problems


def test_a_missing_file_another_model_and_too_large_a_number_are_found_before_the_start(
    settings_for, estimate, tmp_path
):
    assert "There is no estimate" in problems_of(settings_for(targets_from=tmp_path / "none.json"))[0]
    assert "made for m; acestep-v15-sft" in problems_of(settings_for(targets_from=estimate(), model="sft"))[0]
    assert "ranks 3 modules" in problems_of(settings_for(targets_from=estimate(), top_k=4))[0]


def test_without_an_estimate_top_k_is_said_to_do_nothing_and_with_one_the_words_do_nothing(settings_for, estimate):
    assert set(rules.inert(settings_for())) & {"top_k", "target_modules", "attention_type"} == {"top_k"}
    idle = rules.inert(settings_for(targets_from=estimate()))
    assert set(idle) & {"top_k", "target_modules", "attention_type"} == {"target_modules", "attention_type"}
    origins = {"top_k": "command line"}
    said = [event.text for event in train(settings_for(top_k=5, epochs=1), origins=_all(origins)) if _is_notice(event)]
    assert any(line.startswith("top_k has no effect: ") for line in said)


def _all(origins):
    from woodshed.settings.schema import TrainSettings

    return {name: origins.get(name, "default") for name in TrainSettings.model_fields}


def _is_notice(event):
    return isinstance(event, Notice)


def stop_after_one_epoch(settings):
    """Train one of two epochs; return the checkpoint."""
    saved = [event.path for event in train(settings, should_stop=lambda: True) if isinstance(event, Saved)]
    return saved[-1]


def test_a_resume_compares_the_modules_and_not_where_the_estimate_lies(settings_for, estimate, tmp_path):
    first = estimate()
    stop_after_one_epoch(settings_for(targets_from=first))
    moved = shutil.move(first, tmp_path / "elsewhere.json")
    check(settings_for(targets_from=moved, resume_from="latest"))
    check(settings_for(targets_from=moved, top_k=2, resume_from="latest", target_modules="q_proj"))
    for changes in ({"targets_from": moved, "top_k": 3}, {"targets_from": estimate(NAMES[1:])}, {}):
        (problem,) = problems_of(settings_for(resume_from="latest", **changes))
        assert "was trained on 2 modules; this run asks for" in problem
        assert "layers." in problem


def test_a_run_without_an_estimate_cannot_go_on_with_one(settings_for, estimate):
    stop_after_one_epoch(settings_for())
    (problem,) = problems_of(settings_for(targets_from=estimate(), resume_from="latest"))
    assert "was trained on 32 modules; this run asks for 2" in problem


def test_the_recipe_does_not_name_targets_that_had_no_effect(settings_for, estimate):
    (saved,) = [event.path for event in train(settings_for(targets_from=estimate())) if isinstance(event, Saved)]
    header = (saved / "adapter_model.safetensors").read_bytes()[:20_000]
    assert b"learning_rate" in header
    assert b"target_modules" not in header
    assert json.loads((saved / "adapter_config.json").read_text())["target_modules"] == [NAMES[1], NAMES[0]]


def test_an_estimate_of_other_songs_another_model_or_mostly_chance_is_pointed_out(settings_for, estimate, dataset_dir):
    digest = dataset_digest(list(dataset_dir.glob("*.pt")))
    true = {"dataset_digest": digest, "model": "acestep-v15-base"}

    def said(**changes):
        settings = settings_for(targets_from=estimate(**true | changes), validation_share=0.4)
        return [line for line in check(settings).notices if "estimate.json" in line]

    assert said() == []
    (other,) = said(dataset_digest="another", dataset="jazz", songs=7)
    assert "was made from another dataset (jazz, 7 songs), or this one has changed since" in other
    (tuned,) = said(model="my-tune")
    assert "was made with my-tune, and this run trains acestep-v15-base" in tuned
    (chance,) = said(half_correlation=0.5, batches=8)
    assert "rank alike by 0.50 only" in chance
    assert "--estimate-batches 32" in chance
    (none,) = said(half_correlation=None)
    assert "rank alike not at all" in none
    (dataset_dir / "a.pt").unlink()
    assert len(said()) == 1


def test_a_bad_estimate_is_one_problem_beside_the_others(settings_for, tmp_path):
    found = problems_of(settings_for(targets_from=tmp_path / "none.json", dataset_dir=tmp_path / "nowhere"))
    assert len(found) == 2
