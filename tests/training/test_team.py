"""Who computes what when several processes train together; what they do together is tested in e2e/test_teams.py."""

import pytest
import torch

from woodshed.errors import UserError
from woodshed.training.team import Place, Team, own_device, own_place, part_of, refuse_too_many, sharing

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1"}


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "4"}, LAUNCHED | {"WORLD_SIZE": "1"}])
def test_without_a_launcher_a_process_is_alone(environment):
    assert own_place(environment) == Place(0, 1, 0)


def test_a_launcher_says_the_place():
    assert own_place(LAUNCHED) == Place(1, 4, 1)
    assert not own_place(LAUNCHED).leads


@pytest.mark.parametrize("change", [{"LOCAL_RANK": ""}, {"RANK": "one"}, {"MASTER_ADDR": None}])
def test_a_place_that_is_only_half_said_is_refused(change):
    environment = {name: value for name, value in (LAUNCHED | change).items() if value is not None}
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        own_place(environment)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(("songs", "batch_size", "accumulation"), [(7, 2, 2), (5, 1, 4), (12, 3, 4), (1, 1, 4)])
def test_every_song_of_a_step_is_computed_once(size, songs, batch_size, accumulation):
    seen = []
    for step in range(-(-songs // (batch_size * accumulation))):
        parts = [
            part_of(Place(rank, size), step, songs=songs, batch_size=batch_size, accumulation=accumulation)
            for rank in range(size)
        ]
        (count,) = {part.songs for part in parts}
        places = sorted(place for part in parts for place in part.places)
        assert places == list(range(count))
        assert max(part.batches for part in parts) - min(part.batches for part in parts) <= 1
        seen.append(count)
    assert sum(seen) == songs


def test_every_process_takes_the_card_of_its_place(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = torch.device("cuda:0")
    assert own_device(card, "auto", Place(3, 4, 1)) == torch.device("cuda:1")
    assert own_device(card, "cuda:0", Place()) == card
    assert own_device(torch.device("cpu"), "cpu", Place(1, 2, 1)) == torch.device("cpu")
    for device, asked, place, words in (
        (card, "cuda:0", Place(0, 2, 0), "on one card"),
        (card, "auto", Place(2, 3, 2), "There are 2 cards"),
        (torch.device("mps"), "auto", Place(0, 2, 0), "not on mps"),
    ):
        with pytest.raises(UserError, match=words):
            own_device(device, asked, place)


def test_there_must_be_a_batch_for_everybody():
    refuse_too_many(Place(0, 4), 4)
    with pytest.raises(UserError, match="--gradient-accumulation 4"):
        refuse_too_many(Place(0, 4), 3)


def test_who_waits_is_said():
    assert sharing(Place(), 4) == []
    assert sharing(Place(0, 2), 4) == ["2 processes compute 2 of the 4 batches of a step each."]
    (line,) = sharing(Place(0, 2), 3)
    assert line.startswith("1 of 2 processes compute 2 of the 3 batches of a step, the others 1 and wait;")
    assert "--gradient-accumulation 4" in line


def test_a_single_process_agrees_with_itself():
    team = Team()
    assert team.leads
    assert team.any(True)
    assert not team.any(False)
    assert team.together(lambda: 3) == 3
    losses = torch.tensor([1.0, 2.0])
    part = part_of(Place(), 0, songs=2, batch_size=1, accumulation=2)
    assert team.add_up([], losses, 7, part) == (losses, 7)
    assert team.gather_names(part, ["a", "b"]) == ["a", "b"]
    team.close()


@pytest.mark.parametrize(("device", "current"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_single_process_works_on_the_card_it_was_given(monkeypatch, device, current):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    Team().use(torch.device(device))
    assert chosen == current
