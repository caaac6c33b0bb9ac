"""The first run asks for one folder, and the settings page shows and changes what is remembered."""

import pytest

from tests.wizard.conftest import ScriptedFace
from tests.wizard.test_walk import make_tune
from woodshed.settings.files import read_user_settings, save_user_settings
from woodshed.wizard.dialog import BackError, Dialog, ToMenuError
from woodshed.wizard.remember import remember_base, remember_dataset
from woodshed.wizard.settings_pages import first_run, settings_page


def test_the_first_run_lists_what_is_found_and_remembers_the_folder(home, tmp_path):
    make_tune(home)
    face = ScriptedFace([""])
    first_run(Dialog(face))
    assert "acestep-v15-xl-turbo  turbo, XL, official" in face.text
    assert "my-tune               fine-tune, 2B, of unknown base" in face.text
    assert read_user_settings() == {"checkpoint_dir": str(home / "checkpoints")}
    assert (tmp_path / "config" / "settings.toml").is_file()


def test_a_folder_without_models_is_refused_with_what_was_seen():
    face = ScriptedFace(["songs", "nowhere", "checkpoints/acestep-v15-base", "?", "checkpoints"])
    first_run(Dialog(face))
    text = " ".join(face.text.split())
    assert "There is no ACE-Step 1.5 model in songs" in text
    assert "There is no folder nowhere. Type the path of the folder that holds the models" in text
    assert "checkpoints/acestep-v15-base is one of the models. Type the folder that it lies in" in text
    assert "--checkpoint-dir" not in text
    assert "acestep-v15-turbo and the like" in text


def test_the_variable_that_ace_step_knows_is_suggested(home, monkeypatch):
    monkeypatch.setenv("ACESTEP_CHECKPOINTS_DIR", str(home / "checkpoints"))
    face = ScriptedFace([""])
    first_run(Dialog(face))
    assert face.asked[0].default == str(home / "checkpoints")


def test_the_first_run_can_be_put_off():
    with pytest.raises(ToMenuError):
        first_run(Dialog(ScriptedFace(["q"])))
    assert read_user_settings() == {}


def test_missing_parts_and_broken_models_are_named(home):
    (home / "checkpoints" / "vae").rename(home / "elsewhere")
    (home / "checkpoints" / "acestep-v15-sft" / "config.json").write_text("{")
    face = ScriptedFace([""])
    first_run(Dialog(face))
    text = " ".join(face.text.split())
    assert "The VAE is missing" in text
    assert "acestep-v15-sft cannot be used" in text


def test_settings_are_shown_and_changed(home):
    save_user_settings({"checkpoint_dir": "/old"})
    remember_base("my-tune", "sft")
    remember_dataset(home / "songs")
    face = ScriptedFace(["checkpoints", "checkpoints", "base of my-tune", "turbo", "menu"])
    settings_page(Dialog(face))
    assert "/old" in face.text
    assert str(home / "songs") in "".join(face.text.split())
    assert "descends from sft" in face.text
    values = read_user_settings()
    assert values["checkpoint_dir"] == str(home / "checkpoints")
    assert values["bases"] == {"my-tune": "turbo"}


def test_the_settings_page_is_left_by_enter_and_by_b():
    settings_page(Dialog(ScriptedFace([""])))
    with pytest.raises(BackError):
        settings_page(Dialog(ScriptedFace(["b"])))
