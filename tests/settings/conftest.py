import pytest

from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings

REQUIRED = {"model": "base", "dataset_dir": "data", "output_dir": "out"}


@pytest.fixture
def resolved():
    """Resolve training settings from flags, with the required ones filled in."""

    def build(*layers: Layer, **flags):
        return resolve(TrainSettings, [*layers, Layer("command line", REQUIRED | flags)])

    return build


@pytest.fixture(autouse=True)
def own_config(tmp_path, monkeypatch):
    """Keep the tests away from the user's config folder and presets."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config"
