"""Before a run: a card that lies idle is named, and a disk that cannot hold a checkpoint stops the start."""

import shutil
from collections import namedtuple

import pytest

from woodshed.errors import UserError
from woodshed.models.disk import free_bytes
from woodshed.models.machine import Cards, TorchBuild
from woodshed.models.memory import Trained
from woodshed.training import readiness
from woodshed.training.loop import train
from woodshed.training.preflight import check
from woodshed.training.readiness import checkpoint_bytes, count_checkpoints

USAGE = namedtuple("USAGE", "total used free")


@pytest.fixture
def disk(monkeypatch):
    def has(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: USAGE(10**15, 0, free))

    return has


def test_a_disk_without_room_for_a_checkpoint_stops_the_start_and_nothing_is_written(settings_for, disk, tmp_path):
    disk(1000)
    with pytest.raises(UserError, match=r"has 0\.0 MiB left"):
        next(train(settings_for()))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_on_the_way_is_pointed_out(settings_for, disk):
    need = 4 * 2**20
    disk(need)
    said = check(settings_for(save_every=1, epochs=50)).notices
    assert any("The checkpoints of this run take about" in line and "--keep-last 3" in line for line in said)
    assert not any("take about" in line for line in check(settings_for(save_every=1, epochs=50, keep_last=1)).notices)
    disk(10**12)
    assert not any("take about" in line for line in check(settings_for(save_every=1, epochs=50)).notices)


@pytest.mark.parametrize(
    ("changes", "epochs", "count"),
    [
        ({"save_every": 2}, 10, 6),
        ({"save_every": 2, "keep_last": 3}, 10, 4),
        ({"save_every": 0}, 10, 1),
        ({"save_every": 2}, 2, 2),
        ({"save_every": 2, "keep_best": True, "validation_share": 0.2}, 10, 7),
    ],
)
def test_checkpoints_are_counted_as_they_lie_on_the_disk(settings_for, changes, epochs, count):
    assert count_checkpoints(settings_for(**changes), epochs) == count


def test_the_size_that_is_said_is_that_of_a_real_checkpoint_or_a_little_more(settings_for):
    settings = settings_for(save_every=1, epochs=1, rank=64)
    assert list(train(settings))
    folder = settings.output_dir / "checkpoint-epoch-1"
    real = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    targets = check(settings.model_copy(update={"output_dir": settings.output_dir / "other"})).targets
    shapes = [pair for rows, columns in targets.values() for pair in ((64, columns), (rows, 64))]
    trained = Trained(shapes, [])
    said = checkpoint_bytes(settings, trained)
    assert real <= said <= real + 1.5 * 2**20


def test_an_idle_card_is_named_before_the_start_unless_the_cpu_was_asked_for(settings_for, monkeypatch):
    monkeypatch.setattr(readiness, "find_cards", lambda: Cards(("NVIDIA RTX 3060",), "580.1"))
    monkeypatch.setattr(readiness, "torch_build", lambda: TorchBuild("2.13.0+cpu", None))
    monkeypatch.setattr("woodshed.models.devices.available_devices", lambda: ["cpu"])
    said = check(settings_for(device="auto")).notices
    assert any("RTX 3060" in line and "pip install" in line for line in said)
    assert not any("RTX 3060" in line for line in check(settings_for(device="cpu")).notices)


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.1)
