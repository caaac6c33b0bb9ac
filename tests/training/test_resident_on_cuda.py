"""Songs on a real card: the same run to the last bit, with nothing but the draws copied in a step."""

import pytest
import torch

from woodshed.training.engine import Engine
from woodshed.training.events import Notice, StepDone
from woodshed.training.loop import train
from woodshed.training.preflight import check
from woodshed.training.run import load_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
PLAIN = {"device": "cuda", "precision": "bf16", "compile": "no", "cuda_graphs": "no", "attention": "blocks"}
TECHNIQUES = {"plain": PLAIN, "captured": PLAIN | {"cuda_graphs": "yes"}}
SHAPE = {"batch_size": 2, "epochs": 3, "crop_seconds": 1.5, "dropout": 0.3}


def losses_of(settings, **options):
    return [(event.loss, event.grad_norm) for event in train(settings, **options) if isinstance(event, StepDone)]


@pytest.mark.parametrize("techniques", TECHNIQUES.values(), ids=TECHNIQUES)
@pytest.mark.parametrize(
    "changes", [{}, {"keep_in_memory": "card", "pin_memory": False}, {"keep_in_memory": "no", "num_workers": 1}]
)
def test_where_songs_lie_changes_no_bit(settings_for, techniques, changes):
    in_ram = losses_of(settings_for("ram", keep_in_memory="yes", **techniques, **SHAPE))
    assert losses_of(settings_for("other", **techniques, **SHAPE, **changes)) == in_ram


def test_auto_takes_a_card_with_room_and_says_so(settings_for):
    found = check(settings_for(device="cuda"))
    assert (found.kept, found.songs_on_card > 0) == ("card", True)


@pytest.mark.parametrize("word", ["card", "yes"])
def test_songs_are_made_on_a_stream_beside_the_computation(settings_for, word):
    run = load_run(check(settings_for(keep_in_memory=word, **TECHNIQUES["captured"])))
    for _ in range(2):
        for songs in run.prepare(run.loader.epoch(1)):
            assert songs.arrival.query() in (True, False)
            assert {value.device.type for part in songs.parts for value in part.tensors().values()} == {"cuda"}
            assert {value.device.type for part in songs.arrived() for value in part.tensors().values()} == {"cuda"}
    assert torch.cuda.current_stream() != run.courier._stream
    assert run.loader._kept._place[0].type == ("cuda" if word == "card" else "cpu")


@pytest.mark.parametrize("techniques", TECHNIQUES.values(), ids=TECHNIQUES)
def test_a_run_that_is_short_of_memory_gives_the_songs_back_and_goes_on_to_the_same_end(
    settings_for, techniques, monkeypatch
):
    settings = {"keep_in_memory": "card", **techniques, **SHAPE}
    whole = losses_of(settings_for("whole", **settings))
    micro_step, calls = Engine.micro_step, []

    def short(engine, songs, weight):
        calls.append(songs)
        losses = micro_step(engine, songs, weight)
        if len(calls) == 6:
            raise torch.OutOfMemoryError("short")
        return losses

    monkeypatch.setattr(Engine, "micro_step", short)
    events = [*train(settings_for("short", **settings))]
    assert [(event.loss, event.grad_norm) for event in events if isinstance(event, StepDone)] == whole
    assert [event.text for event in events if isinstance(event, Notice) and "no more room for songs" in event.text]
