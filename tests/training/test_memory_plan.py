"""As little is computed again as fits; what does not fit in the first step is, with a line that says so."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from woodshed.models.memory import GIB
from woodshed.training import engine as engine_module
from woodshed.training import memory_plan, preflight
from woodshed.training.events import StepDone
from woodshed.training.memory_plan import fit, longest_song, place_songs, room_beside
from woodshed.training.preflight import check
from woodshed.training.run import load_run
from woodshed.training.techniques import Techniques

ALL = Techniques(compile=True, cuda_graphs=True, attention="compiled", recompute="all")
NEEDS = {"none": 12 * GIB, "quarter": 10 * GIB, "half": 8 * GIB, "all": 4 * GIB}
SAVED = {None: 0, "int8": GIB, "nf4": 2 * GIB}
FRAMES = 6000


def needed(these, frames):
    """Stand for an estimate: half of it grows with the song."""
    return SimpleNamespace(total=NEEDS[these.recompute] * (0.5 + 0.5 * frames / FRAMES) - SAVED[these.packed])


def fitted(settings, free, dtype=torch.float32):
    found, said = fit(settings, ALL, dtype, free=free * GIB, frames=FRAMES, plan=needed)
    return found, said


@pytest.mark.parametrize(
    ("free", "dial"), [(80, "none"), (15, "none"), (14, "quarter"), (11, "half"), (9, "all"), (5, "all")]
)
def test_the_free_memory_decides_with_a_margin(settings_for, free, dial):
    found, (line,) = fitted(settings_for(), free)
    assert (found.recompute, found.packed) == (dial, None)
    assert line == f"recompute: auto -> {dial} (about {NEEDS[dial] / GIB:.1f} of {free}.0 GiB that are free)"


def test_samples_between_the_epochs_need_room_too(settings_for):
    assert fitted(settings_for(), 16)[0].recompute == "none"
    assert fitted(settings_for(sample_every_n_epochs=1), 16)[0].recompute == "half"


@pytest.mark.parametrize(("free", "packed"), [(5.2, None), (4.9, "int8"), (3.7, "nf4")])
def test_the_base_is_held_in_fewer_bits_only_where_computing_again_is_not_enough(settings_for, free, packed):
    found, said = fitted(settings_for(), free, torch.bfloat16)
    assert (found.recompute, found.packed) == ("all", packed)
    assert len(said) == 1
    assert (f"base_precision: auto -> {packed}" in said[0]) == (packed is not None)


def test_what_fits_in_no_way_is_said_with_a_length_that_would(settings_for):
    found, said = fitted(settings_for(), 2.0, torch.bfloat16)
    assert (found.recompute, found.packed) == ("all", "nf4")
    assert said[1] == (
        "A step needs about 2.0 GiB, more than the 1.6 GiB that can be planned with here: --crop-seconds 180 would fit."
    )
    assert "smaller rank" in fitted(settings_for(), 0.1, torch.bfloat16)[1][1]


def test_four_bits_are_passed_over_without_their_package(settings_for, monkeypatch):
    monkeypatch.setattr(memory_plan, "has_nf4", lambda: False)
    assert fitted(settings_for(), 3.7, torch.bfloat16)[0].packed == "int8"


@pytest.mark.parametrize(
    "changes",
    [{"recompute": "all"}, {"gradient_checkpointing": False}, {"adapter_type": "dora"}, {"adapter_type": "oft"}],
)
def test_what_the_user_chose_and_what_was_never_measured_stays(settings_for, changes):
    assert fitted(settings_for(**changes), 80) == (ALL, [])


def test_a_card_with_room_computes_nothing_again(settings_for, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 6))
    for free, dial in ((24 * GIB, "none"), (0, "all")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=free: (free, 24 * GIB))
        monkeypatch.setattr("woodshed.training.preflight.resolve_device", lambda _name: torch.device("cuda:0"))
        found = check(settings_for(precision="bf16"))
        assert found.techniques.recompute == dial
        assert any(notice.startswith(f"recompute: auto -> {dial}") for notice in found.notices)


def test_the_longest_song_counts_as_it_trains(settings_for):
    settings = settings_for()
    dataset = check(settings).dataset
    song, share = longest_song(dataset, settings)
    assert (song.name, len(song.latents)) == ("e", 64)
    assert 0.4 < share < 1
    window, share = longest_song(dataset, settings_for(crop_seconds=0.4))
    assert len(window.latents) == 10
    assert share == 1


def test_a_first_step_that_does_not_fit_is_computed_again_from_there_on(settings_for, monkeypatch):
    real, calls = engine_module.forward_backward, []

    def full_at_first(model, inputs, weight):
        calls.append(weight.item())
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")
        return real(model, inputs, weight)

    monkeypatch.setattr(engine_module, "forward_backward", full_at_first)
    monkeypatch.setattr("woodshed.training.techniques._why_not_compile", lambda _device: None)
    monkeypatch.setattr("woodshed.models.blocks._compiled", lambda run: run)
    run = load_run(check(settings_for(compile="yes", recompute="half")))
    songs = next(run.prepare(run.loader.epoch(1)))
    (line,) = run.engine.rehearse(songs)
    assert "every block is computed again" in line
    assert calls == [0.0, 0.0]
    again = []
    for layer in run.decoder.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: again.append(1))
    run.engine.micro_step(songs, torch.tensor(1.0))
    assert len(again) == len(run.decoder.layers)
    assert run.engine._techniques.recompute == "all"


def test_a_resumed_run_computes_as_it_did_before_however_much_is_free_now(settings_for, train_until, monkeypatch):
    real = preflight._fit
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "_fit", lambda *given: (replace(real(*given)[0], recompute="half", packed="int8"), []))
        train_until(settings_for(), lambda event: isinstance(event, StepDone))
    found = check(settings_for(resume_from="latest")).techniques
    assert (found.recompute, found.packed) == ("half", "int8")
    found = check(settings_for(resume_from="latest", gradient_checkpointing=False)).techniques
    assert (found.recompute, found.packed) == ("none", None)


CARD, RAM = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "device", "room", "limit", "expected"),
    [
        ("auto", CARD, 2.0, 1.0, "card"),
        ("auto", CARD, 1.99, 1.0, "yes"),
        ("auto", CARD, -5.0, 0.9, "no"),
        ("auto", RAM, 9.0, 1.0, "yes"),
        ("auto", RAM, 9.0, 0.9, "no"),
        ("card", CARD, 0.0, 0.0, "card"),
        ("card", RAM, 0.0, 0.0, "yes"),
        ("yes", CARD, 9.0, 0.0, "yes"),
        ("no", CARD, 9.0, 9.0, "no"),
    ],
)
def test_songs_lie_where_they_are_wanted_or_where_there_is_room(
    settings_for, monkeypatch, asked, device, room, limit, expected
):
    """Room and limit in times of what the songs weigh; of what a plan leaves, songs get half."""
    dataset = check(settings_for()).dataset
    weight = sum(path.stat().st_size for path in dataset.files)
    monkeypatch.setattr(memory_plan, "MEMORY_LIMIT", limit * weight)
    found = place_songs(settings_for(keep_in_memory=asked), dataset, device, lambda: room * weight)
    assert found == (expected, weight if expected == "card" else 0)


def test_what_a_plan_leaves_is_counted_without_the_margin_and_only_where_the_plan_is_known(settings_for, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * GIB, 80 * GIB))
    plan = SimpleNamespace(total=3 * GIB)
    assert room_beside(settings_for(), plan, CARD) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert room_beside(settings_for(device="cpu"), plan, CARD) == 5 * GIB
    assert room_beside(settings_for(sample_every_n_epochs=1), plan, CARD) == 1 * GIB
    assert room_beside(settings_for(adapter_type="oft"), plan, CARD) == 0


def test_songs_on_the_card_are_a_part_of_the_plan(settings_for):
    found = check(settings_for())
    config, settings = found.checkpoint.config, found.settings
    trained = memory_plan.trained_by(settings, config, found.targets, found.adapter_parameters)
    common = {"dtype": torch.float32, "frames": 50, "is_cuda": True}
    without = memory_plan.plan_memory(settings, config, trained, ALL, **common)
    with_songs = memory_plan.plan_memory(settings, config, trained, ALL, **common, songs=7)
    assert with_songs.parts() == without.parts() | {"songs": 7}
    assert with_songs.total == without.total + 7
