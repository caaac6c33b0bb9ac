"""Presets are shown, exported, imported and deleted from the menu."""

import json

import pytest

from tests.wizard.conftest import ScriptedFace
from woodshed.settings.files import built_in_presets, find_presets, preset_values, save_preset
from woodshed.settings.rules import FAMILY_SETTINGS
from woodshed.wizard.dialog import BackError, Dialog
from woodshed.wizard.preset_pages import families_of, offered_presets, presets_page


def page(*answers):
    face = ScriptedFace([*answers, "b"])
    try:
        return presets_page(Dialog(face)), face
    except BackError:
        return None, face


EVERY = tuple(FAMILY_SETTINGS)


@pytest.mark.parametrize(
    ("values", "families"),
    [
        ({"adapter_type": "lokr"}, ("lokr",)),
        ({"adapter_type": "dora", "rank": 4}, ("dora",)),
        ({"lokr_factor": 4, "epochs": 3}, ("lokr",)),
        ({"rank": 4, "epochs": 3}, ("lora", "dora", "loha")),
        ({"rank": 4, "dropout": 0.2}, ("lora", "dora")),
        ({"bias": "all"}, ("lora", "dora", "lokr")),
        ({"rank": 4, "lokr_factor": 4}, EVERY),  # a mixture made by hand
        ({"epochs": 4}, EVERY),
        ({}, EVERY),
    ],
)
def test_the_adapters_a_saved_preset_is_for_are_told_from_what_it_sets(values, families):
    assert families_of(values, is_built_in=False) == families
    is_named = "adapter_type" in values
    assert families_of(values, is_built_in=True) == (families if is_named else EVERY)


def test_a_lokr_is_offered_all_that_can_apply_to_it_and_nothing_made_for_a_lora():
    save_preset("small", {"rank": 8, "epochs": 3})
    save_preset("kron", {"lokr_factor": 4})
    save_preset("slow", {"learning_rate": 5e-5}, place="project")
    built_in = {*built_in_presets()}
    assert {*offered_presets("lokr")} == {*built_in, "kron", "slow"}
    assert {*offered_presets("lora")} == {*built_in, "small", "slow"} - {"lokr_strong"}
    assert "small" in offered_presets("dora")
    assert "small" in offered_presets("lokr", keep="small")


def test_every_preset_is_listed_with_its_place_and_adapter():
    save_preset("mine", {"lokr_factor": 4}, place="project")
    _, face = page()
    notes = {choice.word: choice.note for choice in face.asked[0].choices}
    assert notes["mine"] == "project, LoKr"
    save_preset("small", {"rank": 4, "dropout": 0.2})
    notes |= {choice.word: choice.note for choice in page()[1].asked[0].choices}
    assert notes["small"] == "user, LoRA, DoRA"
    assert notes["lokr_strong"] == "built in, LoKr"
    assert notes["quick_test"] == "built in, any adapter"
    assert notes["recommended"] == "built in, any adapter"


def test_a_preset_is_shown_and_can_be_trained_with():
    name, face = page("quick_test", "train")
    assert name == "quick_test"
    assert "epochs" in face.text
    _, face = page("recommended", "b")
    assert "it is the defaults" in face.text


def test_a_preset_is_exported_and_imported(home):
    save_preset("mine", {"rank": 8})
    page("mine", "export", "mine.json")
    assert json.loads((home / "mine.json").read_text()) == {"rank": 8}
    _, face = page("import a file", "mine.json", "again", "")
    assert preset_values("again") == {"rank": 8}
    assert "Saved as" in face.text


def test_an_export_replaces_a_file_only_when_asked(home):
    (home / "quick_test.toml").write_text("x")
    _, face = page("quick_test", "export", "", "n")
    assert (home / "quick_test.toml").read_text() == "x"
    assert "exists already" in face.text
    page("quick_test", "export", "", "y")
    assert "rank = 16" in (home / "quick_test.toml").read_text()


def test_what_an_import_leaves_out_is_named_and_a_bad_file_is_refused(home):
    (home / "theirs.json").write_text('{"rank": 8, "magic": 1}')
    _, face = page("import a file", "theirs.json", "", "")
    assert preset_values("theirs") == {"rank": 8}
    assert "magic is not a setting" in face.text
    (home / "bad.json").write_text("[]")
    _, face = page("import a file", "bad.json")
    assert "holds no JSON object" in face.text


@pytest.mark.parametrize("name", ["CON", "../x", "quick_test", "a b"])
def test_an_unsafe_name_is_refused_and_asked_again(home, name):
    (home / "theirs.json").write_text('{"rank": 8}')
    _, face = page("import a file", "theirs.json", name, "fine", "")
    assert "fine" in find_presets()
    assert face.titles.count("Name of the preset") == 2


def test_a_preset_is_deleted_after_asking_and_a_built_in_one_never():
    save_preset("mine", {"rank": 8})
    page("mine", "delete", "")
    assert "mine" in find_presets()
    page("mine", "delete", "y")
    assert "mine" not in find_presets()
    _, face = page("quick_test", "b")
    assert [choice.word for choice in face.asked[1].choices] == ["train", "export"]


def test_a_broken_preset_is_named_not_offered_and_does_not_stop_the_page(tmp_path):
    folder = tmp_path / "config" / "presets"
    folder.mkdir(parents=True)
    (folder / "broken.toml").write_text("rank = ")
    _, face = page("broken")
    assert {choice.word: choice.note for choice in face.asked[0].choices}["broken"] == "user, cannot be read"
    assert "is not valid TOML" in face.text
    assert "broken" not in offered_presets("lora")
