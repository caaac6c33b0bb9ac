"""What a run writes down, and where it continues."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from woodshed.console import Terminal
from woodshed.monitor.views import watch
from woodshed.training import loop
from woodshed.training.events import Finished, Notice, Saved, Started
from woodshed.training.loop import train
from woodshed.training.preflight import check as preflight


def test_save_every_writes_a_checkpoint_after_so_many_epochs(bench):
    for every, names in ((0, []), (1, [1, 2, 3]), (2, [2])):
        saved = bench.events(Saved, epochs=3, save_every=every)
        assert [event.path.name for event in saved] == [*(f"checkpoint-epoch-{name}" for name in names), "final"]


def scalars_of(bench, **changes):
    """Train, watched by the program's own views, and return TensorBoard's steps by the name of the curve."""
    settings = bench.settings(**changes)
    watch(train(settings), settings, Terminal(plain=True))
    reader = EventAccumulator(str(settings.log_dir or settings.output_dir / "runs"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [point.step for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_log_every_draws_the_curves_at_every_so_many_steps(bench):
    for every, steps in ((0, None), (1, [1, 2, 3, 4]), (3, [3])):
        curves = scalars_of(bench, log_every=every)
        for curve in ("train/loss", "train/learning_rate", "train/grad_norm"):
            assert curves.get(curve) == steps


def test_log_heavy_every_measures_each_layer_at_its_own_steps_only(bench):
    measured = []
    measure = loop._module_grad_norms
    bench.patch.setattr(loop, "_module_grad_norms", lambda run: measured.append(run.position.step + 1) or measure(run))
    curves = scalars_of(bench, log_heavy_every=3)
    assert {name: steps for name, steps in curves.items() if "gradients" in name} == {
        f"gradients/layers.{i}.{kind}_attn.q_proj": [3] for i in range(4) for kind in ("self", "cross")
    }
    assert measured == [3]  # it costs on its own steps only
    assert not any("gradients" in name for name in scalars_of(bench, log_heavy_every=0))


def test_log_dir_is_where_the_curves_go(bench):
    assert "train/epoch_loss" in scalars_of(bench, log_dir=bench.root / "curves")
    assert not (bench.root / f"run-{bench.runs}" / "runs").exists()
    assert "train/epoch_loss" in scalars_of(bench)


def test_resume_from_continues_from_a_folder_a_file_in_it_or_the_latest(bench):
    folder = bench.root / "first"
    bench.events(Saved, output_dir=folder, save_every=1)
    newest = folder / "checkpoint-epoch-2"
    for given in ("latest", newest, newest / "resume" / "state.json", folder / "checkpoint-epoch-1"):
        found = preflight(bench.settings(output_dir=folder, resume_from=given, epochs=4)).resume
        assert found.folder == (newest if given == "latest" else given if given.is_dir() else newest)
    (started,) = bench.events(Started, output_dir=folder, resume_from=newest, epochs=4)
    assert (started.first_epoch, started.first_step, started.total_steps) == (3, 4, 8)


def test_keep_last_deletes_older_checkpoints(bench):
    for count, left in ((0, {1, 2, 3}), (2, {2, 3})):
        bench.events(Saved, epochs=3, save_every=1, keep_last=count)
        folder = bench.root / f"run-{bench.runs}"
        assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-epoch-{n}" for n in left}


def test_max_time_saves_and_stops_as_if_interrupted(bench):
    """A run of a thousand epochs ends by itself, and goes on from where it stopped."""
    folder = bench.root / "limited"
    (finished,) = bench.events(Finished, output_dir=folder, epochs=1000, max_time=1e-6)
    assert finished.was_interrupted
    assert (finished.steps, finished.adapter.parent) == (1, folder)
    said = [event.text for event in bench.events(Notice, epochs=1, max_time=600)]
    assert "The run saves and stops after 600 minutes (max_time)." in said
    assert not any("are over" in text for text in said)
    (started, *_) = bench.events(Started, output_dir=folder, epochs=2, resume_from="latest")
    assert started.first_step == 1


def test_shift_travels_with_the_adapter(bench):
    assert bench.recipe()["shift"] == 1.0
    assert bench.recipe(shift=2.5)["shift"] == 2.5
    assert bench.recipe(model="acestep-v15-turbo")["shift"] == 3.0


def test_num_inference_steps_travel_with_the_adapter(bench):
    assert bench.recipe()["num_inference_steps"] == 50
    assert bench.recipe(num_inference_steps=12)["num_inference_steps"] == 12
