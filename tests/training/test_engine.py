"""The techniques compute what the plain decoder computes; what fails on a machine is left out, with a line."""

import warnings

import pytest
import torch

from woodshed.models import blocks
from woodshed.models.sights import by_blocks
from woodshed.training import engine as engine_module
from woodshed.training import techniques
from woodshed.training.preflight import check
from woodshed.training.run import load_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def kernels(monkeypatch, request):
    """Let compiled blocks run as they are; in tests marked slow, trace and differentiate them as the compiler does."""
    compiled_before = blocks._compiled
    monkeypatch.setattr(techniques, "_why_not_compile", lambda _device: None)
    if request.node.get_closest_marker("slow"):
        monkeypatch.setattr(blocks, "BACKEND", "aot_eager")
    else:
        monkeypatch.setattr(blocks, "_compiled", lambda run: run)
    yield
    compiled_before.cache_clear()
    torch._dynamo.reset()


def step(settings, songs=slice(0, 2)):
    """Return losses and gradients of a few songs of the first epoch, untrained but with an adapter that is not zero."""
    run = load_run(check(settings))
    generator = torch.Generator().manual_seed(3)
    for parameter in run.parameters:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = [*run.prepare(run.loader.epoch(1))][songs]
        losses = torch.cat([run.engine.micro_step(batch, torch.tensor(1.0)) for batch in batches])
    return losses, [parameter.grad for parameter in run.parameters], run


def assert_same(one, other, tolerance=1e-5):
    for found, expected in zip([one[0], *one[1]], [other[0], *other[1]], strict=True):
        scale = expected.abs().max() or 1
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("adapter_type", "recompute"),
    [
        ("lora", "none"),
        *(
            pytest.param(family, dial, marks=pytest.mark.slow)
            for family in ("lora", "lokr")
            for dial in ("half", "all")
        ),
    ],
)
def test_compiled_blocks_compute_the_same(settings_for, adapter_type, recompute):
    common = {"adapter_type": adapter_type, "dropout": 0.0, "recompute": recompute}
    plain = step(settings_for("a", **common))
    compiled = step(settings_for("b", **common, compile="yes"))
    assert_same(compiled, plain)


@pytest.mark.slow
def test_a_block_that_is_computed_again_meets_the_same_dropout(settings_for):
    kept, again = (step(settings_for(name, dropout=0.4, compile="yes", recompute=name)) for name in ("none", "all"))
    assert_same(again, kept)
    without = step(settings_for("c", dropout=0.0, compile="yes"))
    assert not torch.allclose(without[0], kept[0])


def test_dropout_depends_on_epoch_and_songs_and_on_nothing_else(settings_for):
    settings = settings_for(dropout=0.4, compile="yes", cfg_ratio=0.0)
    (first, *_), (second, *_) = step(settings), step(settings)
    assert torch.equal(first, second)
    run = load_run(check(settings))
    seeds = {songs.seed for epoch in (1, 2) for songs in run.prepare(run.loader.epoch(epoch), epoch)}
    assert len(seeds) == 10


def test_songs_of_different_lengths_are_split_and_their_losses_come_back_in_order(settings_for):
    common = {"batch_size": 5, "dropout": 0.0}
    together = step(settings_for("a", **common), slice(0, 1))
    in_turn = step(settings_for("b", **common, compile="yes"), slice(0, 1))
    assert len(together[0]) == 5
    assert_same(in_turn, together)


def test_gradients_count_what_the_weight_says(settings_for):
    run = load_run(check(settings_for(dropout=0.0)))
    songs = next(run.prepare(run.loader.epoch(1)))
    for weight in (0.25, 0.75):
        run.engine.micro_step(songs, torch.tensor(weight))
    halves = [parameter.grad.clone() for parameter in run.parameters]
    run.optimizer.zero_grad(set_to_none=True)
    run.engine.micro_step(songs, torch.tensor(1.0))
    for parts, whole in zip(halves, run.parameters, strict=True):
        torch.testing.assert_close(parts, whole.grad, rtol=1e-4, atol=1e-6)


def test_the_decoder_is_only_changed_while_a_step_is_computed(settings_for):
    *_, run = step(settings_for(compile="yes"), slice(0, 1))
    assert run.decoder.sight_of is by_blocks
    assert run.decoder.run_block == run.decoder._run_block


def test_a_rehearsal_leaves_no_gradient_behind(settings_for):
    run = load_run(check(settings_for(compile="yes")))
    songs = next(run.prepare(run.loader.epoch(1)))
    assert run.engine.rehearse(songs) == []
    assert all(parameter.grad is None for parameter in run.parameters)


def test_a_rehearsal_empties_the_gradients_that_a_graph_adds_to_where_they_lie(settings_for, monkeypatch):
    class Graphs:
        def __init__(self, model):
            self.model = model
            for parameter in model.parameters:
                parameter.grad = torch.zeros_like(parameter)

        def __call__(self, inputs, _weight):
            return engine_module.forward_backward(self.model, inputs, torch.tensor(1.0))

    monkeypatch.setattr(techniques, "_why_not_graphs", lambda *_: None)
    monkeypatch.setattr(engine_module, "_Graphs", Graphs)
    run = load_run(check(settings_for(compile="no", cuda_graphs="yes")))
    engine = run.engine  # built when it is asked for
    before = [parameter.grad for parameter in run.parameters]
    assert engine.rehearse(next(run.prepare(run.loader.epoch(1)))) == []
    assert all(parameter.grad is grad for parameter, grad in zip(run.parameters, before, strict=True))
    assert not any(grad.any() for grad in before)


def test_a_compiler_that_fails_is_left_out_with_its_reason(settings_for, monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel for you\nand a long trace")

    monkeypatch.setattr(blocks, "_compiled", lambda _run: fail)
    run = load_run(check(settings_for(compile="yes", dropout=0.3)))
    songs = next(run.prepare(run.loader.epoch(1)))
    (line,) = run.engine.rehearse(songs)
    assert line == "compile does not work on this machine, so it is left out: no kernel for you"
    assert run.engine.micro_step(songs, torch.tensor(1.0)).isfinite().all()
    assert run.engine.rehearse(songs) == []


def test_a_failure_of_the_plain_step_and_a_full_memory_are_not_hidden(settings_for, monkeypatch):
    def fail_with(error):
        def fail(*_):
            raise error

        return fail

    songs_of = load_run(check(settings_for("a", compile="yes")))
    songs = next(songs_of.prepare(songs_of.loader.epoch(1)))
    for name, error in {"b": torch.OutOfMemoryError("full"), "c": RuntimeError("broken")}.items():
        run = load_run(check(settings_for(name, compile="yes")))
        monkeypatch.setattr(engine_module, "forward_backward", fail_with(error))
        with pytest.raises(type(error), match=str(error)):
            run.engine.rehearse(songs)
