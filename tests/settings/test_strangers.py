"""A file of settings writes where it lies or where one stands; anywhere else the user has to say it too."""

import pytest

from woodshed.errors import SettingsError
from woodshed.settings.resolve import Layer
from woodshed.settings.schema import TrainSettings
from woodshed.settings.strangers import require_near_places


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Stand in one folder, with a run file in another."""
    for name in ("here", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def judge(place, said=(), **values):
    require_near_places(place / "run" / "run.toml", Layer("run.toml", values), TrainSettings, said)


def test_places_in_the_folder_of_the_file_and_in_the_current_one_are_taken(place):
    judge(place, output_dir=str(place / "run"), log_dir=str(place / "run" / "logs"))
    judge(place, output_dir="runs/mine", log_dir=str(place / "here"))
    judge(place, rank=8)


@pytest.mark.parametrize("stray", ["../elsewhere", "{}/run-2", "{}/run/../other", "/etc/woodshed"])
def test_any_other_place_is_refused_with_the_flag_that_says_yes(place, stray):
    stray = stray.format(place)
    with pytest.raises(SettingsError) as caught:
        judge(place, output_dir=stray, log_dir=stray + "/my logs")
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].endswith(f"--output-dir {stray}")
    assert caught.value.problems[1].endswith(f'--log-dir "{stray}/my logs"')
    judge(place, said={"output_dir", "log_dir"}, output_dir=stray, log_dir=stray)


def test_a_link_out_of_the_folder_leads_out_of_it(place):
    (place / "run" / "link").symlink_to(place)
    with pytest.raises(SettingsError, match="outside its own folder"):
        judge(place, output_dir=str(place / "run" / "link" / "elsewhere"))


def test_what_is_no_path_is_left_to_those_who_read_it(place):
    judge(place, output_dir=7, log_dir="nul\0byte")
