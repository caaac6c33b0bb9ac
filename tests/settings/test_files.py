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
