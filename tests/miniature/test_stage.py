"""Learning rates, the end in time, and training that keeps an average."""

import json

import pytest
import torch

from miniature import stage
from miniature.stage import Log, Trainer, learning_rate, run


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth():
    rates = [learning_rate(step / 1000, 2.0) for step in range(1000)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(2.0)
    assert (rates[0], rates[-1]) == pytest.approx((0.02, 0.02), rel=0.01)


@pytest.fixture
def lesson():
    """A layer, the weights it is to learn, and a trainer for it."""
    torch.manual_seed(0)
    layer, target = torch.nn.Linear(3, 1), torch.tensor([[1.0, -2.0, 0.5]])
    inputs = torch.randn(64, 3)

    def compute_loss():
        return (layer(inputs) - inputs @ target.T).square().mean()

    trainer = Trainer(compute_loss, list(layer.parameters()), layer, peak=0.1, weight_decay=0.0, decay=0.9)
    return layer, target, trainer, compute_loss


def test_training_approaches_the_target_and_the_average_follows(lesson):
    layer, target, trainer, _ = lesson
    losses = [float(trainer.step(number, number / 200)) for number in range(200)]
    assert losses[-1] < 1e-3 * losses[0]
    trainer.use_average()
    torch.testing.assert_close(layer.weight, target, atol=0.02, rtol=0)


def test_averages_are_put_in_place_for_a_while(lesson):
    layer, _, trainer, _ = lesson
    for number in range(5):
        trainer.step(number, 0.5)
    live = layer.weight.detach().clone()
    with trainer.averages():
        average = layer.weight.detach().clone()
        assert not torch.equal(average, live)
    assert torch.equal(layer.weight, live)
    trainer.use_average()
    assert torch.equal(layer.weight, average)


def test_a_stage_fills_every_step_logs_eighty_times_and_leaves_the_averages(lesson, tmp_path):
    _, _, trainer, compute_loss = lesson
    filled = []
    run("any", trainer, filled.append, 160, Log(tmp_path / "log.jsonl"), lambda: compute_loss().item())
    assert filled == list(range(160))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 161, 2))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["held_out"] == pytest.approx(compute_loss().item(), rel=1e-3)


def test_the_log_is_lines_of_json(tmp_path, capsys):
    log = Log(tmp_path / "log.jsonl")
    log("base", step=3, loss=0.123456789)
    (line,) = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"stage": "base", "seconds": json.loads(line)["seconds"], "step": 3, "loss": 0.12346}
    assert "0.12346" in capsys.readouterr().out


@pytest.mark.gpu
def test_a_gpu_replays_what_it_would_compute_kernel_by_kernel(monkeypatch):
    def losses(eager_steps):
        monkeypatch.setattr(stage, "EAGER_STEPS", eager_steps)
        torch.manual_seed(0)
        layer, inputs = torch.nn.Linear(8, 8).cuda(), torch.zeros(16, 8, device="cuda")
        generator = torch.Generator("cuda").manual_seed(0)
        trainer = Trainer(
            lambda: (layer(inputs) - 1).square().mean(), [*layer.parameters()], layer, peak=0.1, weight_decay=0.0
        )
        found = []
        with torch.cuda.stream(torch.cuda.Stream()):
            for number in range(12):
                inputs.normal_(generator=generator)
                found.append(trainer.step(number, number / 12).item())
        return found

    assert losses(eager_steps=3) == losses(eager_steps=99)
