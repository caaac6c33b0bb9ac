"""An estimate finds where a dataset pulls, twice the same, and says how sure it is."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed.adapters.lora import attach_lora
from woodshed.adapters.ranking import read_ranking
from woodshed.analysis import objective
from woodshed.analysis.estimate import draw_batches, estimate, prepare, stratified_timesteps
from woodshed.analysis.events import BatchDone, Finished, Started
from woodshed.analysis.sensitivity import rank_correlation
from woodshed.errors import UserError
from woodshed.models.load import load_decoder, load_null_condition
from woodshed.training.flow import drop_conditions, flow_matching_loss, mix_with_noise
from woodshed.training.timesteps import sample_timesteps


def ranking_of(settings):
    return list(estimate(settings))[-1].ranking


@pytest.fixture(scope="module")
def planted_root(checkpoint_root, tmp_path_factory):
    """A model in which nothing but the self attention of layer 2 and the MLP of layer 1 can matter.

    Where value and output projections are zero, no gradient reaches any projection of that attention; the same holds
    for an MLP of zeros.
    """
    root = tmp_path_factory.mktemp("planted")
    folder = root / "acestep-v15-base"
    shutil.copytree(checkpoint_root / "acestep-v15-base", folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        is_dead = name.startswith("decoder.layers.") and name.split(".")[3] in ("self_attn", "cross_attn", "mlp")
        is_alive = name.startswith(("decoder.layers.2.self_attn.", "decoder.layers.1.mlp."))
        if is_dead and not is_alive and name.endswith(("v_proj.weight", "o_proj.weight", "up_proj.weight")):
            tensor.zero_()
        if is_dead and not is_alive and name.endswith(("gate_proj.weight", "down_proj.weight")):
            tensor.zero_()
    save_file(tensors, folder / "model.safetensors")
    return root


ALIVE = {f"layers.2.self_attn.{part}_proj" for part in "qkvo"} | {
    f"layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")
}


def test_where_only_some_layers_can_matter_they_are_ranked_first_and_the_rest_is_zero(settings_for, planted_root):
    ranking = ranking_of(settings_for(checkpoint_dir=planted_root))
    assert {entry.name for entry in ranking.entries[: len(ALIVE)]} == ALIVE
    assert all(entry.score > 0 for entry in ranking.entries[: len(ALIVE)])
    assert all(entry.score == 0 for entry in ranking.entries[len(ALIVE) :])
    layers = ranking_of(settings_for(checkpoint_dir=planted_root, granularity="layer", top_k=2))
    assert {entry.name for entry in layers.entries[:2]} == {"layers.1", "layers.2"}
    assert layers.recommendation[0].startswith("Attention type: self (self 100%")


def test_scores_tell_how_much_an_adapter_on_each_module_alone_would_gain(settings_for):
    """By the derivative itself: the loss falls by the learning rate times the sum of the sizes of B's gradient."""
    work = prepare(settings_for(estimate_batches=4))
    decoder = load_decoder(work.checkpoint, dtype=torch.float32, device="cpu")
    null = load_null_condition(work.checkpoint, dtype=torch.float32, device="cpu")
    torch.manual_seed(0)
    adapter = attach_lora(decoder, list(work.shapes), rank=16, alpha=16, dropout=0.0, bias="none")
    gains = dict.fromkeys(work.shapes, 0.0)
    for batch, draws in draw_batches(work):
        velocity = decoder(
            mix_with_noise(batch.latents, draws.noise, draws.t),
            timestep=draws.t,
            timestep_r=draws.t,
            encoder_hidden_states=drop_conditions(batch.conditions, null, draws.dropped),
            context_latents=batch.context,
        ).sample
        flow_matching_loss(velocity, batch.latents, draws.noise, None).mean().backward()
        for name, parameter in adapter.trainable_parameters().items():
            if "lora_B" in name:
                gains[adapter.module_of(name)] += parameter.grad.abs().sum().item()
                parameter.grad = None
    scores = {entry.name: entry.score for entry in ranking_of(work.settings).entries}
    names = list(gains)
    assert rank_correlation([scores[name] for name in names], [gains[name] for name in names]) > 0.95


def test_the_two_halves_of_the_batches_rank_alike(settings_for):
    ranking = ranking_of(settings_for(estimate_batches=16))
    assert ranking.half_correlation > 0.8
    first, second = zip(*(entry.halves for entry in ranking.entries), strict=True)
    assert ranking.half_correlation == rank_correlation(first, second)
    assert first != second


def test_the_same_settings_give_the_same_file_and_another_seed_another(settings_for, tmp_path):
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        list(estimate(settings_for(output=path, seed=seed)))
    first, second, third = (path.read_bytes() for path in files)
    assert first == second
    assert first != third


def test_checkpointing_saves_memory_and_changes_no_number(settings_for):
    with_it, without = (ranking_of(settings_for(gradient_checkpointing=choice)) for choice in (True, False))
    for one, other in zip(with_it.entries, without.entries, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_ranks_alike(settings_for, precision):
    exact, rough = (ranking_of(settings_for(precision=choice)) for choice in ("fp32", precision))
    scores = {entry.name: entry.score for entry in rough.entries}
    assert rank_correlation([entry.score for entry in exact.entries], [scores[e.name] for e in exact.entries]) > 0.95
    assert max(scores.values()) == pytest.approx(exact.entries[0].score, rel=0.1)


def test_half_precision_tries_smaller_scales_before_it_gives_up(settings_for, monkeypatch):
    tried = []
    collect = objective.GradientNorms.collect

    def overflow_once(self):
        tried.append(1)
        norms = collect(self)
        return dict.fromkeys(norms, float("inf")) if len(tried) == 1 else norms

    monkeypatch.setattr(objective.GradientNorms, "collect", overflow_once)
    found = ranking_of(settings_for(precision="fp16", estimate_batches=2)).entries[0].score
    assert len(tried) >= 3
    exact = ranking_of(settings_for(precision="fp32", estimate_batches=2)).entries[0].score
    assert found == pytest.approx(exact, rel=0.1)


def test_a_gradient_that_is_no_number_stops_with_the_song_and_writes_nothing(settings_for, monkeypatch):
    broken = {"layers.0.self_attn.q_proj": float("nan")}
    monkeypatch.setattr(objective.GradientNorms, "collect", lambda _: broken)
    settings = settings_for()
    with pytest.raises(UserError, match=r"The gradient of [abc] at noise level 0\.\d+ is not a finite number"):
        list(estimate(settings))
    assert not settings.output.exists()


def test_running_out_of_memory_becomes_advice(settings_for, monkeypatch):
    def too_much(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(objective, "mix_with_noise", too_much)
    with pytest.raises(UserError, match="Try --gradient-checkpointing or shorter songs"):
        list(estimate(settings_for(gradient_checkpointing=False)))


def test_noise_levels_cover_the_training_distribution_evenly(settings_for):
    rules = prepare(settings_for()).rules
    levels = stratified_timesteps(2000, rules, 1)
    assert torch.equal(levels, levels.sort().values)
    drawn = (
        sample_timesteps(
            200_000, mu=rules.timestep_mu, sigma=rules.timestep_sigma, generator=torch.Generator().manual_seed(1)
        )
        .sort()
        .values
    )
    torch.testing.assert_close(levels[::100], drawn[50::10_000][:20], rtol=0, atol=0.02)
    assert not torch.equal(levels, stratified_timesteps(2000, rules, 2))


def test_every_song_takes_part_as_often_as_any_other_and_meets_new_noise(settings_for):
    drawn = list(draw_batches(prepare(settings_for(estimate_batches=6))))
    names = [batch.names[0] for batch, _ in drawn]
    assert sorted(names[:3]) == sorted(names[3:]) == ["a", "b", "c"]
    noises = [draws.noise for batch, draws in drawn if batch.names == ("a",)]
    assert not torch.equal(*noises)


def test_the_file_says_what_it_was_made_from(settings_for, dataset_dir):
    events = list(estimate(settings_for(top_k=5)))
    assert events[0] == Started("acestep-v15-base", "cpu", "float32", 3, 8, 44)
    assert [event.number for event in events if isinstance(event, BatchDone)] == list(range(1, 9))
    assert isinstance(events[-1], Finished)
    ranking = read_ranking(events[-1].path)
    assert ranking == events[-1].ranking
    assert (ranking.model, ranking.dataset, ranking.songs) == ("acestep-v15-base", dataset_dir.name, 3)
    assert (ranking.batches, ranking.seed, ranking.top_k, len(ranking.entries)) == (8, 42, 5, 44)


def test_all_problems_come_at_once_and_no_model_is_loaded(settings_for, tmp_path, monkeypatch):
    monkeypatch.setattr(objective, "load_decoder", lambda *_, **__: pytest.fail("a model was loaded"))
    changes = {"device": "cuda:99", "dataset_dir": tmp_path / "nowhere", "top_k": 45, "output": tmp_path}
    with pytest.raises(UserError) as caught:
        list(estimate(settings_for(**changes)))
    found = caught.value.problems
    assert len(found) == 4
    parts = ("cuda:99", "top_k is 45, but acestep-v15-base has 44 modules to rank", "nowhere", "is a folder")
    for problem, part in zip(found, parts, strict=True):
        assert part in problem
    with pytest.raises(UserError, match="has 4 layers to rank"):
        list(estimate(settings_for(top_k=5, granularity="layer")))
