"""The loop as a whole: what it yields, that it learns, repeats, resumes, stops and refuses."""

import hashlib
import json
import math
import tomllib

import pytest
import safetensors.torch
import torch

from woodshed.errors import UserError
from woodshed.training import loop, micro_step
from woodshed.training.events import EpochDone, Finished, Notice, Saved, Started, StepDone
from woodshed.training.loop import take_step, train
from woodshed.training.non_finite import NonFiniteLossError
from woodshed.training.preflight import check
from woodshed.training.run import load_run


def events_of(settings, kind=object, **options):
    return [event for event in train(settings, **options) if isinstance(event, kind)]


def losses_of(settings, **options):
    return [event.loss for event in events_of(settings, StepDone, **options)]


def adapter_bytes(folder):
    return (folder / "final" / "adapter_model.safetensors").read_bytes()


def gradients_of(settings):
    """Return loss and gradients of the first optimizer step's songs, as accumulated before the update."""
    run = load_run(check(settings))
    caught = {}
    run.optimizer.step = lambda *_, **__: caught.update(
        {name: parameter.grad.clone() for name, parameter in run.adapter.trainable_parameters().items()}
    )
    step = settings.gradient_accumulation
    group = [batch for _, batch in zip(range(step), run.loader.epoch(1, start_batch=0), strict=False)]
    result = take_step(run, [*run.prepare(group)])
    run.loader.close()
    return result, caught


def test_events_come_in_the_order_of_the_run(settings_for, tmp_path):
    events = events_of(settings_for(epochs=2, save_every=1))
    kinds = [type(event) for event in events if not isinstance(event, Notice | Saved)]
    # five songs, accumulated by two: three optimizer steps an epoch
    epoch = [StepDone, StepDone, StepDone, EpochDone]
    assert kinds == [Started, *epoch, *epoch, Finished]
    saved = [event for event in events if isinstance(event, Saved)]  # said when it is on the disk, while steps go on
    assert [(event.kind, event.step) for event in saved] == [("checkpoint", 3), ("checkpoint", 6), ("final", 6)]
    started = events[0]
    assert (started.songs, started.steps_per_epoch, started.total_steps) == (5, 3, 6)
    assert started.modules == 32
    assert [event.songs for event in events if isinstance(event, StepDone)] == [2, 2, 1] * 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "run.toml",
        "checkpoints.json",
        "checkpoint-epoch-1",
        "checkpoint-epoch-2",
        "final",
    }


@pytest.mark.slow
def test_the_loss_falls_when_there_is_something_to_learn(settings_for):
    settings = settings_for(epochs=60, learning_rate=5e-3, dropout=0, cfg_ratio=0, scheduler_type="constant")
    epochs = [event.loss for event in events_of(settings, EpochDone)]
    assert sum(epochs[-10:]) < 0.8 * sum(epochs[:10])


def test_the_same_seed_gives_the_same_losses_to_the_last_bit_and_another_seed_does_not(settings_for):
    first = losses_of(settings_for("a"))
    assert losses_of(settings_for("b")) == first
    assert losses_of(settings_for("c", seed=7)) != first


def test_the_global_random_state_has_no_influence(settings_for):
    first = losses_of(settings_for("a"))
    torch.manual_seed(999)
    assert losses_of(settings_for("b")) == first


@pytest.fixture
def losses_until(train_until):
    """Train, ask to stop after an optimizer step, and return the losses so far with the last event."""

    def run(settings, step):
        events = train_until(settings, lambda event: isinstance(event, StepDone) and event.step == step)
        return [event.loss for event in events if isinstance(event, StepDone)], events[-1]

    return run


@pytest.mark.parametrize(
    "optimizer",  # all four stop in mid-epoch in test_exact_resume
    ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("prodigy", "adafactor", "adamw8bit"))],
)
@pytest.mark.parametrize("step", [6, 7, 8], ids=["between epochs", "in mid-epoch", "before an epoch's last step"])
def test_stopping_and_resuming_gives_the_same_adapter_to_the_last_byte(
    settings_for, tmp_path, optimizer, step, losses_until
):
    def settings(output, **changes):
        return settings_for(output, epochs=4, optimizer_type=optimizer, **changes)

    whole = losses_of(settings("whole"))
    first, stopped = losses_until(settings("parts"), step)
    assert stopped.was_interrupted
    assert stopped.adapter.name == ("checkpoint-epoch-2" if step == 6 else f"checkpoint-epoch-3-step-{step}")
    rest = losses_of(settings("parts", resume_from="latest"))
    assert first + rest == whole
    assert adapter_bytes(tmp_path / "whole") == adapter_bytes(tmp_path / "parts")


def test_random_windows_resume_to_the_last_byte_too(settings_for, tmp_path, losses_until):
    whole = losses_of(settings_for("whole", epochs=3, crop_seconds=1))
    first, _ = losses_until(settings_for("parts", epochs=3, crop_seconds=1), 4)
    rest = losses_of(settings_for("parts", epochs=3, crop_seconds=1, resume_from="latest"))
    assert first + rest == whole
    assert adapter_bytes(tmp_path / "whole") == adapter_bytes(tmp_path / "parts")
    assert losses_of(settings_for("uncropped", epochs=3)) != whole


def test_a_resume_in_another_folder_continues_just_the_same(settings_for, tmp_path):
    whole = losses_of(settings_for("whole", epochs=3))
    losses_of(settings_for("first", epochs=3, save_every=2))
    rest = losses_of(settings_for("second", epochs=3, resume_from=tmp_path / "first" / "checkpoint-epoch-2"))
    assert rest == whole[6:]
    assert adapter_bytes(tmp_path / "whole") == adapter_bytes(tmp_path / "second")


def test_the_epoch_loss_of_a_resumed_epoch_is_that_of_the_whole_epoch(settings_for, losses_until):
    whole = [event.loss for event in events_of(settings_for("whole"), EpochDone)]
    losses_until(settings_for("parts"), 2)
    rest = [event.loss for event in events_of(settings_for("parts", resume_from="latest"), EpochDone)]
    assert rest == pytest.approx(whole, rel=1e-12)


def test_more_epochs_on_resume_lay_out_the_schedule_anew_and_say_so(settings_for):
    losses_of(settings_for(epochs=2, save_every=1))
    events = events_of(settings_for(epochs=4, resume_from="latest"))
    assert any("laid out anew" in event.text for event in events if isinstance(event, Notice))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(7, 13))
    straight = [event.learning_rate for event in events_of(settings_for("whole", epochs=4), StepDone)]
    assert [event.learning_rate for event in steps] == straight[6:]


def test_other_batches_on_resume_count_the_steps_to_come_and_not_those_done(settings_for):
    losses_of(settings_for(epochs=2, save_every=1, gradient_accumulation=1))
    events = events_of(settings_for(epochs=4, gradient_accumulation=5, resume_from="latest", warmup_steps=0))
    started = events[0]
    assert (started.first_step, started.total_steps) == (10, 12)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [11, 12]
    half_cosine = [(1 + math.cos(math.pi * step / 12)) / 2 for step in (10, 11)]
    assert [event.learning_rate for event in steps] == pytest.approx([1e-3 * factor for factor in half_cosine])


def compare_gradients(one, other):
    assert one.keys() == other.keys()
    scale = max(grad.abs().max() for grad in other.values())
    for name in one:
        assert (one[name] - other[name]).abs().max() <= 1e-5 * scale, name


def test_a_batch_of_different_lengths_gives_loss_and_gradients_of_its_songs_taken_singly(settings_for):
    common = {"dropout": 0, "max_grad_norm": 0, "precision": "fp32"}
    together, grads_together = gradients_of(settings_for("a", batch_size=4, gradient_accumulation=1, **common))
    singly, grads_singly = gradients_of(settings_for("b", batch_size=1, gradient_accumulation=4, **common))
    assert together.losses == pytest.approx(singly.losses, rel=1e-5)
    assert together.grad_norm == pytest.approx(singly.grad_norm, rel=1e-5)
    compare_gradients(grads_together, grads_singly)


def test_a_last_shorter_group_is_weighted_by_what_it_holds(settings_for):
    common = {"dropout": 0, "max_grad_norm": 0}
    short, grads_short = gradients_of(settings_for("a", gradient_accumulation=8, **common))
    exact, grads_exact = gradients_of(settings_for("b", gradient_accumulation=5, **common))
    assert len(short.losses) == 5
    assert short.losses == exact.losses
    compare_gradients(grads_short, grads_exact)


def test_gradients_with_and_without_checkpointing_are_equal(settings_for):
    kept, grads_kept = gradients_of(settings_for("a", gradient_checkpointing=False))
    again, grads_again = gradients_of(settings_for("b", gradient_checkpointing=True))
    assert kept.losses == again.losses
    compare_gradients(grads_again, grads_kept)


def test_the_logged_norm_is_that_before_clipping(settings_for):
    free, grads_free = gradients_of(settings_for("a", max_grad_norm=0))
    clipped, grads_clipped = gradients_of(settings_for("b", max_grad_norm=0.01))
    assert clipped.grad_norm == free.grad_norm > 0.01
    norm = torch.stack([grad.norm() for grad in grads_clipped.values()]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert torch.stack([grad.norm() for grad in grads_free.values()]).norm().item() == pytest.approx(free.grad_norm)


def test_heavy_logging_gives_each_modules_norm_before_clipping(settings_for):
    events = events_of(settings_for(log_heavy_every=2, max_grad_norm=1e-3), StepDone)
    assert [event.module_grad_norms is not None for event in events] == [False, True] * 3
    norms = events[1].module_grad_norms
    assert len(norms) == 32
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(events[1].grad_norm, rel=1e-5)


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (4, [4])])
def test_steps_are_logged_as_often_as_asked(settings_for, every, steps):
    events = events_of(settings_for(log_every=every), StepDone)
    assert [event.step for event in events if event.is_logged] == steps


@pytest.mark.parametrize(("every", "names"), [(0, []), (1, ["1", "2", "3"]), (2, ["2"])])
def test_checkpoints_are_saved_as_often_as_asked(settings_for, every, names):
    saved = [
        event for event in events_of(settings_for(epochs=3, save_every=every), Saved) if event.kind == "checkpoint"
    ]
    assert [event.path.name for event in saved] == [f"checkpoint-epoch-{name}" for name in names]


def test_only_the_newest_checkpoints_are_kept(settings_for, tmp_path):
    events_of(settings_for(epochs=4, save_every=1, keep_last=2))
    names = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert names == ["checkpoint-epoch-3", "checkpoint-epoch-4"]


def test_the_adapters_header_says_how_it_was_made_and_how_to_play_it(settings_for, tmp_path):
    events_of(settings_for(model="acestep-v15-turbo", epochs=2))
    with safetensors.safe_open(tmp_path / "out" / "final" / "adapter_model.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["woodshed"])
    assert recipe["base_model"] == "acestep-v15-turbo"
    assert (recipe["shift"], recipe["num_inference_steps"]) == (3.0, 8)
    assert (recipe["songs"], recipe["epochs"], recipe["steps"]) == (5, 2, 6)
    assert recipe["settings"]["rank"] == 4
    assert recipe["variant"] == "turbo"
    assert recipe["dataset_digest"] == hashlib.sha256(b"a\nb\nc\nd\ne").hexdigest()


@pytest.mark.parametrize("validation_share", [0.0, 0.2])
def test_the_trigger_tag_and_its_place_travel_from_the_dataset_into_the_header(
    settings_for, dataset_dir, tmp_path, validation_share
):
    samples = [path.name for path in dataset_dir.glob("*.pt")]
    metadata = {"custom_tag": "zydeco", "tag_position": "append"}
    (dataset_dir / "manifest.json").write_text(json.dumps({"metadata": metadata, "samples": samples}))
    events_of(settings_for(epochs=1, validation_share=validation_share))
    with safetensors.safe_open(tmp_path / "out" / "final" / "adapter_model.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["woodshed"])
    assert (recipe["custom_tag"], recipe["tag_position"]) == ("zydeco", "append")


@pytest.mark.parametrize(("shift", "steps"), [("auto", "auto"), (2.0, 30)])
def test_playback_settings_travel_with_the_adapter(settings_for, tmp_path, shift, steps):
    events_of(settings_for(epochs=1, shift=shift, num_inference_steps=steps))
    with safetensors.safe_open(tmp_path / "out" / "final" / "adapter_model.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["woodshed"])
    assert (recipe["shift"], recipe["num_inference_steps"]) == ((1.0, 50) if shift == "auto" else (2.0, 30))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_forced_precision_is_honoured_in_the_compute_and_the_adapter_stays_float32(settings_for, precision):
    run = load_run(check(settings_for(precision=precision)))
    seen = set()
    run.decoder.layers[0].mlp.register_forward_hook(lambda module, given, out: seen.add(out.dtype))  # noqa: ARG005
    take_step(run, [*run.prepare(run.loader.epoch(1))][:1])
    run.loader.close()
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {parameter.dtype for parameter in run.parameters} == {torch.float32}


def test_precisions_give_losses_that_differ_as_they_should(settings_for):
    exact, bf16, fp16 = (losses_of(settings_for(name, precision=name))[0] for name in ("fp32", "bf16", "fp16"))
    assert bf16 == pytest.approx(exact, rel=0.03)
    assert fp16 == pytest.approx(exact, rel=0.005)
    assert len({exact, bf16, fp16}) == 3


def run_order(settings):
    """Return each step's songs, for runs without accumulation and with five songs."""
    loader = load_run(check(settings.model_copy(update={"output_dir": settings.output_dir / "none"}))).loader
    steps = [batch.names for epoch in range(1, settings.epochs + 1) for batch in loader.epoch(epoch)]
    return enumerate(steps, start=1)


def poison(monkeypatch, step):
    """Make the loss of one optimizer step's first song infinite."""
    true_loss = micro_step.flow_matching_loss
    calls = iter(range(1, 10**6))

    def loss(*arguments):
        value = true_loss(*arguments)
        return value * float("inf") if next(calls) == step else value

    monkeypatch.setattr(micro_step, "flow_matching_loss", loss)


def test_a_non_finite_loss_stops_the_run_with_step_song_and_advice_and_saves_the_last_good_step(
    settings_for, tmp_path, monkeypatch, losses_until
):
    settings = settings_for(epochs=3, gradient_accumulation=1)
    losses_until(settings_for("good", epochs=3, gradient_accumulation=1), 7)
    poison(monkeypatch, step=8)
    with pytest.raises(NonFiniteLossError) as caught:
        events_of(settings)
    song = next(name for name in "abcde" if f"The loss of {name} is" in str(caught.value))
    assert song in dict(run_order(settings))[8]
    assert "is not a finite number in step 8. Lower --learning-rate." in str(caught.value)
    assert "--precision fp32" not in str(caught.value)  # it is fp32
    saved = tmp_path / "out" / "checkpoint-epoch-2-step-7"
    good_adapter = tmp_path / "good" / "checkpoint-epoch-2-step-7"
    for name in ("adapter_model.safetensors", "resume/parameters.safetensors"):
        assert (saved / name).read_bytes() == (good_adapter / name).read_bytes()


def test_a_non_finite_loss_in_bf16_is_answered_with_fp32_too(settings_for, monkeypatch):
    poison(monkeypatch, step=1)
    with pytest.raises(NonFiniteLossError, match=r"--learning-rate\..*--precision fp32"):
        events_of(settings_for(precision="bf16"))


def test_a_float16_run_that_never_recovers_stops_with_advice(settings_for, monkeypatch):
    monkeypatch.setattr(micro_step, "flow_matching_loss", lambda velocity, *_: velocity.float().mean((1, 2)) * math.inf)
    with pytest.raises(NonFiniteLossError, match="use --precision bf16, or fp32"):
        events_of(settings_for(precision="fp16", gradient_accumulation=1, epochs=6))


def skipped_steps(settings):
    said = [event.text for event in events_of(settings, Notice) if "overflowed float16 and was skipped" in event.text]
    return {int(text.split()[1]) for text in said}


def test_a_float16_overflow_is_skipped_and_rescaled(settings_for, monkeypatch):
    def settings(output):
        return settings_for(output, precision="fp16", gradient_accumulation=1)

    natural = skipped_steps(settings("a"))
    poison(monkeypatch, step=5)
    assert 5 not in natural
    assert 5 in skipped_steps(settings("b"))


def test_a_float16_overflow_leaves_the_adapter_as_it_was_and_halves_the_scale(settings_for, monkeypatch):
    run = load_run(check(settings_for(precision="fp16", gradient_accumulation=1)))
    batches = list(run.loader.epoch(1, start_batch=0))
    before = {name: value.clone() for name, value in run.adapter.trainable_parameters().items()}
    scale = run.scaler.get_scale()
    poison(monkeypatch, step=1)
    assert take_step(run, [*run.prepare(batches[:1])]).was_skipped
    assert run.scaler.get_scale() == scale / 2
    assert all(torch.equal(before[name], value) for name, value in run.adapter.trainable_parameters().items())


def test_out_of_memory_saves_the_state_and_says_what_to_change(settings_for, tmp_path, monkeypatch):
    true_step, calls = loop.take_step, iter(range(1, 100))

    def step(*arguments, **options):
        if next(calls) == 2:
            raise torch.OutOfMemoryError
        return true_step(*arguments, **options)

    monkeypatch.setattr(loop, "take_step", step)
    with pytest.raises(UserError) as caught:
        events_of(settings_for(batch_size=2, gradient_checkpointing=False))
    for advice in ("ran out of memory", "--recompute all", "--batch-size 1", "--rank 2"):
        assert advice in str(caught.value)
    assert (tmp_path / "out" / "checkpoint-epoch-1-step-1" / "resume" / "state.json").is_file()


def test_padding_in_a_sample_file_would_change_the_loss_so_it_is_trimmed(settings_for, dataset_dir):
    clean = losses_of(settings_for("clean"))
    for path in dataset_dir.glob("*.pt"):
        sample = torch.load(path, weights_only=True)
        states, mask = sample["encoder_hidden_states"], sample["encoder_attention_mask"]
        sample["encoder_hidden_states"] = torch.cat([states, torch.full((20, states.shape[1]), 3.0)])
        sample["encoder_attention_mask"] = torch.cat([mask, torch.zeros(20, dtype=torch.bool)])
        torch.save(sample, path)
    assert losses_of(settings_for("padded")) == clean


def test_a_resumed_runs_file_repeats_the_whole_run(settings_for, tmp_path):
    losses_of(settings_for(epochs=1, save_every=1))
    losses_of(settings_for(epochs=2, resume_from="latest"))
    values = tomllib.loads((tmp_path / "out" / "run.toml").read_text(encoding="utf-8"))
    assert values["epochs"] == 2
    assert "resume_from" not in values


def test_a_model_that_does_not_fit_into_memory_is_no_bug_of_ours(settings_for, monkeypatch):
    def load(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "load_run", load)
    with pytest.raises(UserError, match="ran out of memory"):
        events_of(settings_for())
