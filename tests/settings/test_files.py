"""Run files repeat a run; presets hold only differences; the user's folder remembers the checkpoints."""

import tomllib
from pathlib import Path

import pytest

from woodshed.errors import SettingsError
from woodshed.settings import files
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings, TrainSettings


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_run_file_repeats_the_settings_exactly(resolved, tmp_path):
    first = resolved(rank="16", target_modules="q_proj up_proj", learning_rate="3e-5", log_dir="logs", shift="2.5")
    path = written(tmp_path, files.run_file_text(first))
    again = resolve(TrainSettings, [files.run_file_layer(path, TrainSettings)])
    assert again.settings == first.settings


def test_a_run_file_says_where_each_value_came_from(resolved):
    text = files.run_file_text(resolved(Layer("preset quick_test", {"epochs": 10}), seed="7"))
    assert "epochs = 10  # preset quick_test" in text
    assert "seed = 7  # command line" in text
    assert "rank = 64  # default" in text


def test_a_value_that_follows_another_goes_on_following_after_a_round_trip(resolved, tmp_path):
    path = written(tmp_path, files.run_file_text(resolved(rank="16")))
    assert "# alpha = 32.0  # 2 x rank" in path.read_text(encoding="utf-8")
    layers = [files.run_file_layer(path, TrainSettings), Layer("command line", {"rank": "8"})]
    assert resolve(TrainSettings, layers).settings.alpha == 16


def test_windows_paths_and_unicode_survive_the_round_trip(tmp_path):
    flags = {"model": "base", "tensor_output": 'C:\\Müsik\\"x"', "custom_tag": "ünï 音楽"}
    first = resolve(PreprocessSettings, [Layer("command line", flags)])
    path = written(tmp_path, files.run_file_text(first))
    assert resolve(PreprocessSettings, [files.run_file_layer(path, PreprocessSettings)]).settings == first.settings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rank = ", "is not valid TOML"),
        ("rnak = 8", "there is no setting called rnak. Did you mean rank?"),
        ("a = 1\nb = 2", "there is no setting called a."),
    ],
)
def test_a_bad_run_file_is_answered_with_its_name_and_the_trouble(tmp_path, text, found):
    with pytest.raises(SettingsError) as caught:
        files.run_file_layer(written(tmp_path, text), TrainSettings)
    assert found in caught.value.problems[0]
    assert "run.toml" in caught.value.problems[0]


def test_every_unknown_line_of_a_run_file_is_named(tmp_path):
    with pytest.raises(SettingsError) as caught:
        files.run_file_layer(written(tmp_path, "a = 1\nb = 2"), TrainSettings)
    assert len(caught.value.problems) == 2


def test_a_missing_or_binary_run_file_is_a_clear_error(tmp_path):
    with pytest.raises(SettingsError, match="There is no file"):
        files.run_file_layer(tmp_path / "none.toml", TrainSettings)
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        files.run_file_layer(path, TrainSettings)


def test_a_run_file_saved_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbfrank = 8\n")
    assert files.run_file_layer(path, TrainSettings).values == {"rank": 8}


WANTED = {
    "recommended",
    "high_quality",
    "quick_test",
    "vram_24gb_plus",
    "vram_16gb",
    "vram_12gb",
    "vram_8gb",
    "lokr_strong",
}


def test_all_promised_presets_are_built_in():
    assert set(files.built_in_presets()) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_built_in_preset_resolves(resolved, name):
    result = resolved(files.preset_layer(name))
    for setting in files.preset_values(name):
        assert result.origins[setting] == f"preset {name}"


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_preset_holds_only_what_differs_from_the_defaults(name):
    for setting, value in files.preset_values(name).items():
        assert value != TrainSettings.model_fields[setting].default


def test_the_nearest_preset_of_a_name_wins(own_config, tmp_path):
    for folder, rank in ((own_config / "presets", 5), (tmp_path / "presets", 6)):
        folder.mkdir(parents=True)
        (folder / "quick_test.toml").write_text(f"rank = {rank}", encoding="utf-8")
    assert files.find_presets()["quick_test"] == "project"
    assert files.preset_values("quick_test") == {"rank": 6}
    (tmp_path / "presets" / "quick_test.toml").unlink()
    assert files.preset_values("quick_test") == {"rank": 5}


@pytest.mark.parametrize("name", ["quick_tset", "../secret", "a/b", "", "con\\x"])
def test_an_unknown_or_unsafe_preset_name_is_refused(name):
    with pytest.raises(SettingsError, match="There is no preset called"):
        files.preset_values(name)


def test_a_misspelled_preset_is_answered_with_the_nearest():
    with pytest.raises(SettingsError, match="Did you mean quick_test"):
        files.preset_values("quick_tset")


def test_the_user_settings_give_the_checkpoint_directory_and_nothing_else(own_config):
    assert files.user_layer(TrainSettings).values == {}
    own_config.mkdir()
    (own_config / "settings.toml").write_text('checkpoint_dir = "/models"\nrank = 3\n', encoding="utf-8")
    assert files.user_layer(TrainSettings).values == {"checkpoint_dir": "/models"}


def test_built_in_presets_are_valid_toml_with_a_comment_saying_what_for():
    for text in files.built_in_presets().values():
        assert text.startswith("# ")
        tomllib.loads(text)


def test_what_is_remembered_for_the_user_is_kept_beside_what_was_there():
    files.save_user_settings({"checkpoint_dir": "/models", "bases": {"mine": "turbo"}})
    files.save_user_settings({"bases": {"other": "sft"}, "last": {"dataset_dir": "C:\\ünï"}})
    assert files.read_user_settings() == {
        "checkpoint_dir": "/models",
        "bases": {"mine": "turbo", "other": "sft"},
        "last": {"dataset_dir": "C:\\ünï"},
    }
    assert files.user_layer(TrainSettings).values == {"checkpoint_dir": "/models"}


def test_a_config_folder_that_cannot_be_written_is_a_clear_error(own_config):
    own_config.write_text("a file where the folder should be")
    with pytest.raises(SettingsError, match="cannot be written"):
        files.save_user_settings({"checkpoint_dir": "/models"})


def test_a_preset_holds_what_differs_and_lets_the_rest_follow(resolved):
    assert files.preset_of(resolved()) == {}
    assert files.preset_of(resolved(rank="16", target_modules="q_proj", checkpoint_dir="/m", log_dir="logs")) == {
        "rank": 16,
        "target_modules": ["q_proj"],
        "log_dir": "logs",
    }
    assert files.preset_of(resolved(optimizer_type="prodigy")) == {"optimizer_type": "prodigy"}


def test_a_default_chosen_against_what_it_would_follow_is_kept(resolved):
    chosen = resolved(rank="16", alpha="128", optimizer_type="prodigy", learning_rate="1e-4")
    values = files.preset_of(chosen)
    assert values == {"rank": 16, "optimizer_type": "prodigy", "alpha": 128.0, "learning_rate": 1e-4}
    assert resolved(Layer("preset", values)).settings == chosen.settings


def test_a_saved_preset_loads_with_the_same_settings(resolved, own_config):
    chosen = resolved(rank="16", learning_rate="3e-5", gradient_checkpointing="no", shift="2.5")
    path = files.save_preset("Mine-1", files.preset_of(chosen))
    assert path == own_config / "presets" / "Mine-1.toml"
    assert resolved(files.preset_layer("Mine-1")).settings == chosen.settings


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "CON", "nul", "com1", "a b", "a.toml", "-x", "x" * 65, "ä"])
def test_a_name_that_is_no_good_file_name_everywhere_is_refused(name, own_config):
    with pytest.raises(SettingsError, match="A preset cannot be called"):
        files.save_preset(name, {})
    assert not own_config.exists()


def test_a_taken_name_is_replaced_only_when_asked_whatever_its_case(own_config):
    files.save_preset("Mine", {"rank": 8})
    with pytest.raises(SettingsError, match="There is a preset Mine in"):
        files.save_preset("mine", {"rank": 4})
    files.save_preset("mine", {"rank": 4}, replace=True)
    assert [path.name for path in (own_config / "presets").iterdir()] == ["mine.toml"]
    assert files.preset_values("mine") == {"rank": 4}


def test_built_in_presets_are_neither_replaced_nor_deleted():
    with pytest.raises(SettingsError, match="built-in"):
        files.save_preset("quick_test", {}, replace=True)
    with pytest.raises(SettingsError, match="cannot be deleted"):
        files.delete_preset("quick_test")


def test_a_preset_is_deleted_where_it_is_found_first():
    for place in files.places():
        files.save_preset("mine", {"rank": 8}, place=place)
    assert files.delete_preset("mine") == Path("presets") / "mine.toml"
    assert files.find_presets()["mine"] == "user"


@pytest.mark.parametrize("name", ["out.toml", "out.json"])
def test_an_exported_preset_is_imported_as_it_was(tmp_path, name):
    files.save_preset("mine", {"rank": 8, "target_modules": ("q_proj", "v_proj")})
    files.export_preset("mine", tmp_path / name)
    assert files.read_foreign_preset(tmp_path / name).values == {"rank": 8, "target_modules": ["q_proj", "v_proj"]}
    with pytest.raises(SettingsError, match="exists already"):
        files.export_preset("mine", tmp_path / name)
    files.export_preset("mine", tmp_path / name, replace=True)


def side_step(tmp_path, text):
    path = tmp_path / "foreign.json"
    path.write_text(text, encoding="utf-8")
    return files.read_foreign_preset(path)


def test_a_side_step_preset_is_read_by_the_names_of_the_flags(tmp_path):
    found = side_step(
        tmp_path,
        '{"rank": 32, "lr": 5e-5, "target-modules": "q_proj, v_proj", "gradient_checkpointing": false,'
        ' "--warmup-steps": 100, "resume_from": null, "shift": 3.0}',
    )
    assert found.values == {
        "rank": 32,
        "learning_rate": 5e-5,
        "target_modules": ["q_proj", "v_proj"],
        "gradient_checkpointing": False,
        "shift": 3.0,
    }
    assert found.left_out == ("resume_from belongs to one run; it was left out.",)


def test_unknown_entries_of_a_foreign_preset_are_named_and_nothing_is_executed(tmp_path):
    bomb = "__import__('pathlib').Path('boom').touch()"
    found = side_step(tmp_path, f'{{"rnak": 8, "lr_formula": "{bomb}", "model": "base", "epochs": 5}}')
    assert found.values == {"epochs": 5}
    assert found.left_out[0] == "rnak is not a setting; it was left out. Did you mean rank?"
    assert len(found.left_out) == 3
    assert not Path("boom").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "holds no JSON object"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"rank": 0, "dropout": 3}', "rank must be at least 1; got 0 .foreign.json."),
        ('{"rank": {"a": 1}}', "rank must be a whole number"),
    ],
)
def test_a_foreign_preset_that_makes_no_sense_is_refused(tmp_path, text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        side_step(tmp_path, text)


def test_required_settings_can_be_stood_in_for():
    for kind in (TrainSettings, PreprocessSettings):
        assert resolve(kind, [files.stand_ins(kind)]).settings
