"""Captured and compiled steps on a real card: equal to plain ones, the same every time, and exact across a resume."""

import pytest
import torch

from woodshed.models.devices import repeatable
from woodshed.training.events import StepDone
from woodshed.training.loop import train
from woodshed.training.preflight import check
from woodshed.training.run import load_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
PLAIN = {"device": "cuda", "precision": "fp32", "compile": "no", "cuda_graphs": "no", "attention": "blocks"}
FAST = {"device": "cuda", "precision": "bf16", "compile": "yes", "cuda_graphs": "yes"}


@repeatable()
def epoch_of(settings):
    """Return the losses of an epoch's songs and the gradients of their sum, of an adapter that is not zero."""
    run = load_run(check(settings))
    generator = torch.Generator().manual_seed(3)
    for parameter in run.parameters:
        parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(run.device)
    one = torch.ones((), device=run.device)
    losses = torch.cat([run.engine.micro_step(songs, one) for songs in run.prepare(run.loader.epoch(1))])
    return losses, torch.cat([parameter.grad.flatten() for parameter in run.parameters])


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("adapter_type", ["lora", "lokr", "dora", "loha"])
def test_a_captured_step_equals_a_plain_one(settings_for, adapter_type):
    common = {"adapter_type": adapter_type, "dropout": 0.0}
    plain = epoch_of(settings_for("a", **PLAIN, **common))
    captured = epoch_of(settings_for("b", **PLAIN | {"cuda_graphs": "yes"}, **common))
    for found, expected in zip(captured, plain, strict=True):
        assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("recompute", ["none", "half", "all"])
@pytest.mark.parametrize("adapter_type", ["lora", "lokr"])
def test_everything_together_is_as_near_as_bf16_allows(settings_for, adapter_type, recompute):
    common = {"adapter_type": adapter_type, "dropout": 0.0, "recompute": recompute}
    exact = epoch_of(settings_for("a", **PLAIN, **common))
    narrow = epoch_of(settings_for("b", **PLAIN | {"precision": "bf16"}, **common))
    fast = epoch_of(settings_for("c", **FAST, **common))
    for found, by_bf16, expected in zip(fast, narrow, exact, strict=True):
        assert distance(found, expected) < max(1.5 * distance(by_bf16, expected), 0.01)


@pytest.mark.parametrize("techniques", [PLAIN | {"cuda_graphs": "yes"}, FAST], ids=["captured", "all"])
def test_dropout_is_the_same_however_often_a_graph_is_replayed(settings_for, techniques):
    settings = settings_for(**techniques, dropout=0.5, recompute="all")
    first, second = epoch_of(settings), epoch_of(settings)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], epoch_of(settings_for("other", **techniques, dropout=0.0))[1])


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_a_packed_base_computes_the_same_under_the_compiler(settings_for, kind, recompute):
    common = {"dropout": 0.0, "base_precision": kind, "recompute": recompute, "precision": "bf16"}
    plain = epoch_of(settings_for("a", **PLAIN | common))
    fast = epoch_of(settings_for("b", **FAST | common))
    for found, expected in zip(fast, plain, strict=True):
        assert distance(found, expected) < 0.02


def test_a_captured_update_equals_a_plain_one(settings_for):
    def losses(name, graphs):
        settings = settings_for(name, **PLAIN | {"cuda_graphs": graphs}, epochs=3, dropout=0.0)
        return [(event.loss, event.grad_norm) for event in train(settings) if isinstance(event, StepDone)]

    captured, plain = losses("a", "yes"), losses("b", "no")
    assert len(captured) == len(plain) >= 6
    for found, expected in zip(captured, plain, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("techniques", [PLAIN | {"cuda_graphs": "yes"}, FAST], ids=["captured", "all"])
def test_a_run_that_was_stopped_continues_to_the_last_bit(settings_for, train_until, techniques):
    common = techniques | {"epochs": 2, "batch_size": 2, "dropout": 0.3}
    whole = [event.loss for event in train(settings_for("whole", **common)) if isinstance(event, StepDone)]
    before = train_until(settings_for("half", **common), lambda event: isinstance(event, StepDone) and event.step == 2)
    after = train(settings_for("half", **common, resume_from="latest"))
    parts = [event.loss for event in (*before, *after) if isinstance(event, StepDone)]
    assert parts == whole
    adapters = [settings_for(name).output_dir / "final" / "adapter_model.safetensors" for name in ("whole", "half")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
