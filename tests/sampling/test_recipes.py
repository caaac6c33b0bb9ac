"""What is played: the adapter's recipe where it fits and makes sense, else what suits the model."""

import pytest

from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.sampling.recipes import Playback, Recipe, adapted_playback, playback_of, read_recipe, with_tag


@pytest.fixture(scope="module")
def model(checkpoint_root):
    found = find_checkpoints(checkpoint_root)
    return lambda name: choose_model(found, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("turbo", Playback(3.0, 8, 1.0)),
        ("xl-turbo", Playback(3.0, 8, 1.0)),
        ("base", Playback(1.0, 50, 7.0)),
        ("sft", Playback(1.0, 50, 7.0)),
    ],
)
def test_each_variant_has_its_usual_playback(model, name, expected):
    assert playback_of(model(name)) == expected


def test_a_recipe_made_for_this_model_decides_shift_and_steps(model):
    recipe = Recipe(base_model="acestep-v15-base", shift=2.5, num_inference_steps=30)
    playback, said = adapted_playback(recipe, model("base"), "style")
    assert playback == Playback(2.5, 30, 7.0)
    assert said == []


def test_a_recipe_made_for_another_model_does_not_and_the_user_is_told(model):
    recipe = Recipe(base_model="acestep-v15-base", shift=1.0, num_inference_steps=50)
    playback, said = adapted_playback(recipe, model("turbo"), "style")
    assert playback == Playback(3.0, 8, 1.0)
    assert "style was trained on acestep-v15-base" in said[0]


def test_an_adapter_without_recipe_is_played_as_the_model(model):
    assert adapted_playback(Recipe(), model("sft"), "style") == (Playback(1.0, 50, 7.0), [])


@pytest.mark.parametrize(
    "content",
    [
        {"num_inference_steps": 10**9},
        {"num_inference_steps": "8"},
        {"shift": float("nan")},
        {"shift": -1},
        {"custom_tag": ["x"]},
        {"custom_tag": "x" * 1000},
        {"custom_tag": "\x1b[2J"},
        {"base_model": 3},
    ],
    ids=str,
)
def test_a_recipe_that_makes_no_sense_counts_as_none(content):
    recipe, said = read_recipe({"shift": 2.0, "custom_tag": "ok"} | content, "style")
    assert recipe == Recipe()
    assert said == [f"The recipe in style makes no sense ({next(iter(content))}), so it is left aside."]


def test_what_a_training_run_writes_is_understood():
    content = {
        "woodshed": "1",
        "base_model": "m",
        "shift": 3.0,
        "num_inference_steps": 8,
        "custom_tag": "zz",
        "songs": 3,
    }
    assert read_recipe(content, "style") == (
        Recipe(base_model="m", shift=3.0, num_inference_steps=8, custom_tag="zz"),
        [],
    )


def test_a_tag_goes_before_the_prompt_once():
    assert with_tag("warm funk", "zyx") == "zyx, warm funk"
    assert with_tag("warm ZYX funk", "zyx") == "warm ZYX funk"
    assert with_tag("warm funk", "") == "warm funk"


def test_a_tag_goes_where_the_training_had_it_and_never_in_place_of_a_prompt():
    assert with_tag("warm funk", "zyx", "append") == "warm funk, zyx"
    assert with_tag("warm funk", "zyx", "replace") == "zyx, warm funk"
    assert [with_tag("", "zyx", position) for position in ("prepend", "append", "replace")] == ["zyx"] * 3
    assert with_tag("warm ZYX funk", "zyx", "append") == "warm ZYX funk"


def test_a_position_that_makes_no_sense_sets_the_recipe_aside():
    recipe, (said,) = read_recipe({"custom_tag": "zyx", "tag_position": "sideways"}, "style")
    assert (recipe, "(tag_position)" in said) == (Recipe(), True)
