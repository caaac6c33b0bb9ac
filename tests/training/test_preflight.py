"""Everything that can be known to be wrong is found before a model is loaded, in one message."""

import pytest

from woodshed import cli
from woodshed.errors import UserError
from woodshed.training import run as run_module
from woodshed.training.preflight import Plan, check


def problems_of(settings):
    with pytest.raises(UserError) as caught:
        check(settings)
    return caught.value.problems


@pytest.mark.parametrize(
    ("songs", "batch", "accumulation", "epochs", "expected"),
    [(5, 1, 2, 2, (5, 3, 6)), (5, 2, 2, 1, (3, 2, 2)), (1, 4, 4, 3, (1, 1, 3)), (8, 2, 4, 10, (4, 1, 10))],
)
def test_steps_are_counted_with_a_last_shorter_group(settings_for, songs, batch, accumulation, epochs, expected):
    plan = Plan.of(songs, settings_for(batch_size=batch, gradient_accumulation=accumulation, epochs=epochs))
    assert (plan.batches_per_epoch, plan.steps_per_epoch, plan.total_steps) == expected


def test_a_sound_run_passes(settings_for):
    found = check(settings_for())
    assert found.checkpoint.name == "acestep-v15-base"
    assert len(found.targets) == 32
    assert found.plan.songs == 5
    assert found.resume is None


def test_all_problems_come_in_one_message_and_no_model_is_loaded(settings_for, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load_decoder", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "out" / "final").mkdir(parents=True)
    found = "\n".join(
        problems_of(settings_for(device="cuda:99", target_modules="q_porj", dataset_dir=tmp_path / "nowhere"))
    )
    for part in ("cuda:99", "q_porj", "nowhere", "already holds a run"):
        assert part in found


BAD = {
    "--rank": ("0", "rank must be at least 1; got 0"),
    "--dropout": ("1", "dropout must be less than 1; got 1"),
    "--learning-rate": ("-1", "learning_rate must be more than 0; got -1"),
    "--weight-decay": ("nan", "weight_decay must be"),
    "--epochs": ("0", "epochs must be at least 1; got 0"),
    "--batch-size": ("0", "batch_size must be at least 1; got 0"),
    "--cfg-ratio": ("2", "cfg_ratio must be at most 1; got 2"),
    "--shift": ("nan", "shift must be more than 0 and finite"),
    "--optimizer-type": ("adamx", "optimizer_type must be one of adamw, "),
    "--device": ("cuda:99", "There is no device cuda:99 here."),
    "--target-modules": ("zz_proj", "There is no layer called 'zz_proj' to adapt."),
    "--resume-from": ("nowhere", "Cannot resume from nowhere: it does not exist."),
}


def test_every_bad_value_is_in_the_one_message_that_the_command_line_gives(settings_for, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "load_decoder", lambda *_, **__: pytest.fail("a model was loaded"))
    places = settings_for().model_dump(include={"checkpoint_dir", "model", "dataset_dir", "output_dir"})
    words = [word for name, value in places.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words += [word for flag, (value, _) in BAD.items() for word in (flag, value)]
    assert cli.main(["train", *words, "--plain"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    for sentence in [sentence for _, sentence in BAD.values()]:
        assert err.count(sentence) == 1, sentence


def test_a_missing_model_is_named_with_those_that_exist(settings_for):
    found = problems_of(settings_for(model="acestep-v15-bsae"))
    assert "acestep-v15-base" in found[0]


def test_a_missing_checkpoint_folder_is_named(settings_for, tmp_path):
    assert "nothing-here" in problems_of(settings_for(checkpoint_dir=tmp_path / "nothing-here"))[0]


def test_a_warm_up_longer_than_the_run_is_pointed_out_not_shortened(settings_for):
    said = check(settings_for(warmup_steps=100)).notices
    assert any("warm-up of 100 steps is not shorter than the whole run of 6 steps" in line for line in said)
    assert not any("warm-up" in line for line in check(settings_for(warmup_steps=2)).notices)
    assert not any(
        "warm-up" in line for line in check(settings_for(warmup_steps=100, scheduler_type="constant")).notices
    )


def test_a_batch_larger_than_the_dataset_is_pointed_out(settings_for):
    for changes in ({"batch_size": 6}, {"gradient_accumulation": 6}, {"batch_size": 3, "gradient_accumulation": 3}):
        assert any("each epoch is a single step" in line for line in check(settings_for(**changes)).notices)
    assert not any(
        "a single step" in line for line in check(settings_for(batch_size=5, gradient_accumulation=1)).notices
    )


def test_another_runs_folder_is_never_reused_in_silence(settings_for, tmp_path):
    (tmp_path / "out").mkdir()
    check(settings_for())  # an empty folder is fine
    (tmp_path / "out" / "run.toml").write_text("")
    assert problems_of(settings_for()) == (
        f"The output directory {tmp_path / 'out'} already holds a run. "
        "Continue it with --resume-from latest, or choose another folder with --output-dir.",
    )


def test_an_output_directory_that_is_a_file_is_refused(settings_for, tmp_path):
    (tmp_path / "out").write_text("")
    assert "is a file" in problems_of(settings_for())[0]


def test_tensors_made_for_a_wider_model_are_refused(settings_for):
    # the toy xl model has the same condition width, so its dataset is told apart by its record, not by its shape
    assert check(settings_for(model="acestep-v15-xl-base")).dataset is not None
