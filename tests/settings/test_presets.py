"""Built-in presets leave to the rules what follows from their choices."""

import pytest

from woodshed.settings import files, rules
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings

REQUIRED = Layer("where", {"model": "base", "dataset_dir": "d", "output_dir": "o"})


@pytest.mark.parametrize("name", files.built_in_presets())
def test_alpha_is_twice_the_rank_of_a_preset_and_of_a_flag_over_it(name):
    for flags in ({}, {"rank": "8"}):
        settings = resolve(TrainSettings, [REQUIRED, files.preset_layer(name), Layer("command line", flags)]).settings
        assert settings.alpha == 2 * settings.rank


@pytest.mark.parametrize("name", files.built_in_presets())
def test_a_preset_sets_no_training_choice_that_does_nothing(name):
    settings = resolve(TrainSettings, [REQUIRED, files.preset_layer(name)]).settings
    # Encoders are moved in preprocessing and sampling; a training run alone holds none.
    assert set(files.preset_values(name)) & set(rules.inert(settings)) <= {"offload_encoder"}
