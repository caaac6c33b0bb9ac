"""The demo, run once as its users run it: over the leftovers of an earlier one."""

import io
import json
import math
import re

import pytest
import torch
from PIL import Image
from rich.console import Console

from woodshed import demo
from woodshed.adapters.files import load_adapter
from woodshed.console import Terminal
from woodshed.data import audio
from woodshed.errors import UserError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.toy import lesson
from woodshed.training.flow import flow_matching_loss, mix_with_noise

LENGTHS = [
    pytest.param((0.75, 0.5), id="shortened"),
    pytest.param((1, 1), id="whole", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=LENGTHS)
def length(request):
    """Leave out some epochs and prompts for old instruments; the new one is asked for as often as ever."""
    epochs, old = (
        round(share * full) for share, full in zip(request.param, (lesson.EPOCHS, demo.OLD_PROMPTS), strict=True)
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (demo, lesson):
            patch.setattr(module, "EPOCHS", epochs)
        patch.setattr(demo, "OLD_PROMPTS", old)
        patch.setattr(demo, "prompts", lambda: lesson.prompts(old=old))
        yield


def recording():
    """Return a terminal of 70 columns that writes into memory."""
    terminal = Terminal(plain=True)
    terminal.out = Console(file=io.StringIO(), width=70, color_system=None)
    return terminal


@pytest.fixture
def recorder():
    """A terminal that writes into memory."""
    return recording()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, length):  # noqa: ARG001 - what it patches is used
    """The folder after the demo, and its lines. What lay there would stop a run that does not begin afresh."""
    recorder = recording()
    folder = tmp_path_factory.mktemp("demo") / "here"
    (folder / "out").mkdir(parents=True)
    (folder / "out" / "run.toml").write_text("an earlier run", encoding="utf-8")
    (folder / "old.wav").write_text("an earlier sound", encoding="utf-8")
    (folder / demo.MARK).touch()
    demo.run_demo(folder, recorder)
    return folder, recorder.out.file.getvalue().splitlines()


def test_it_tells_numbered_steps_and_how_long_it_took(ran):
    _, lines = ran
    titles = [line for line in lines if re.match(r"\d\. ", line)]
    assert [title[0] for title in titles] == list("12345")
    assert any(re.fullmatch(r"Done in [\d.]+ (s|min \d\d s)\. The loss fell from .*", line) for line in lines)


def test_every_file_it_names_is_there(ran):
    folder, lines = ran
    named = [word for line in lines for word in re.findall(rf"{re.escape(str(folder))}\S*", line)]
    assert len(named) >= 8
    for path in named:
        assert (folder / path).exists(), path
    assert (folder / "out" / "final" / "adapter_model.safetensors").is_file()


def test_nothing_of_the_earlier_demo_is_left(ran):
    folder, _ = ran
    assert not (folder / "old.wav").exists()
    assert "earlier" not in (folder / "out" / "run.toml").read_text(encoding="utf-8")


def test_the_loss_falls_before_the_readers_eyes(ran):
    _, lines = ran
    shown = [re.fullmatch(r"   epochs +(\d+) to +(\d+)  loss ([\d.]+)  (#+)", line) for line in lines]
    rows = [match.groups() for match in shown if match]
    line = demo.EPOCHS_A_LINE
    assert [(int(first), int(last)) for first, last, *_ in rows] == [
        (first, first + line - 1) for first in range(1, demo.EPOCHS, line)
    ]
    losses, bars = [float(row[2]) for row in rows], [len(row[3]) for row in rows]
    assert losses[-1] < 0.9 * losses[0]
    assert [bar / bars[0] for bar in bars] == pytest.approx([loss / losses[0] for loss in losses], abs=0.05)


def test_training_stopped_half_way_and_resumed(ran):
    folder, lines = ran
    half = demo.EPOCHS // 2
    assert any(f"stopped after step {half}, saved -> " in line for line in lines)
    assert any(f"resumed after step {half}" in line for line in lines)
    events = [json.loads(line) for line in (folder / "out" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event["step"] for event in events if event["event"] == "StepDone"]
    assert steps == list(range(1, demo.EPOCHS + 1))
    assert [event["was_interrupted"] for event in events if event["event"] == "Finished"] == [True, False]


@pytest.mark.parametrize("what", ["new", "old"])
def test_the_sounds_can_be_heard_and_differ(ran, what):
    folder, _ = ran
    without, with_adapter = (audio.decode(folder / f"{what}_{name}_adapter.wav") for name in ("without", "with"))
    assert without.shape == with_adapter.shape
    assert without.shape[1] > 3 * audio.SAMPLE_RATE
    for sound in (without, with_adapter):
        assert sound.abs().max() > 0.1
    assert (without - with_adapter).abs().max() > 0.01


def shares(lines, word):
    """The two shares in the line about the model without or with the adapter: of the new and of the old, in percent."""
    (line,) = (line for line in lines if line.startswith(f"   {word:<7} adapter: "))
    return [int(share) for share in re.findall(r"(\d+)% of", line)]


def test_the_adapter_teaches_the_new_instrument_and_keeps_the_old_ones(ran):
    _, lines = ran
    (new_before, old_before), (new_after, old_after) = shares(lines, "without"), shares(lines, "with")
    assert new_before <= 10
    assert new_after >= 80
    assert old_after >= 0.85 * old_before  # of 14, one more or less is 7 percent; of 7, 14 percent


def test_the_held_out_loss_falls_by_far_more_than_its_error(ran):
    _, lines = ran
    (line,) = (line for line in lines if "held-out loss" in line)
    loss, fall, error = map(float, re.findall(r"\d+\.\d+", line))
    assert fall > 5 * error > 0
    assert loss > 0


def test_the_sound_moves_towards_the_new_instrument(ran):
    _, lines = ran
    (line,) = (line for line in lines if "away from a real" in line)
    before, after = re.findall(r"\d+\.\d+", line)[:2]
    assert float(after) < 0.8 * float(before)


@pytest.fixture(scope="module")
def predictions(ran):
    """For each strength of the adapter, None being none, the velocity of songs of the new instrument and its error."""
    folder, _ = ran
    songs = [torch.load(path, weights_only=True) for path in sorted((folder / "tensors").glob("*mandolin*.pt"))]
    assert len(songs) == demo.NEW_SONGS
    checkpoint = choose_model(find_checkpoints(folder / "checkpoints"), demo.MODEL)
    t = torch.tensor([0.7])
    found = {}
    for strength in (None, 0.0, 0.5, 1.0):
        decoder = demo._load(checkpoint)
        if strength is not None:
            load_adapter(decoder, folder / "out" / "final", strength)
        generator, velocities, errors = torch.Generator().manual_seed(0), [], []
        for song in songs:
            latents = song["target_latents"][None].float()
            noise = torch.randn(latents.shape, generator=generator)
            with torch.no_grad():
                velocity = decoder(
                    mix_with_noise(latents, noise, t),
                    timestep=t,
                    timestep_r=t,
                    encoder_hidden_states=song["encoder_hidden_states"][None].float(),
                    context_latents=song["context_latents"][None].float(),
                ).sample
            velocities.append(velocity)
            errors.append(flow_matching_loss(velocity, latents, noise, None).item())
        found[strength] = torch.cat(velocities), sum(errors) / len(errors)
    return found


def test_at_strength_zero_the_model_is_the_base_model_to_the_last_bit(predictions):
    assert torch.equal(predictions[0.0][0], predictions[None][0])


def test_the_stronger_the_adapter_the_nearer_the_prediction_is_to_the_new_instrument(predictions):
    without, half, whole = (predictions[strength][1] for strength in (None, 0.5, 1.0))
    assert whole < 0.3 * without
    assert whole < half < without


def test_spectrograms_of_all_four_sounds_are_in_one_picture(ran):
    folder, _ = ran
    with Image.open(folder / "spectra.png") as image:
        assert image.height > 4 * 100


def test_every_line_fits_a_terminal_apart_from_its_path(ran):
    folder, lines = ran
    for line in lines:
        assert len(line.replace(str(folder), "woodshed-demo")) <= 72, line


@pytest.mark.parametrize("player", ["velocity_through_peft", "velocity_through_diffusers"])
@pytest.mark.parametrize("fault", ["another velocity", "no number"])
def test_a_player_that_computes_something_else_stops_the_demo(ran, recorder, monkeypatch, player, fault):
    folder, _ = ran
    right = getattr(demo, player)

    def wrong(*arguments):
        velocity = right(*arguments)
        return velocity * 1.001 if fault == "another velocity" else torch.full_like(velocity, math.nan)

    monkeypatch.setattr(demo, player, wrong)
    checkpoint = choose_model(find_checkpoints(folder / "checkpoints"), demo.MODEL)
    with pytest.raises(
        UserError, match=f"{player.split('_')[-1]} plays the adapter differently".replace("peft", "PEFT")
    ):
        demo._compare_players(folder, checkpoint, recorder)


def test_an_adapter_that_changes_nothing_stops_the_demo(ran, recorder, monkeypatch):
    folder, _ = ran
    monkeypatch.setattr(demo, "load_adapter", lambda *_: None)
    for player in ("velocity_through_peft", "velocity_through_diffusers"):
        monkeypatch.setattr(demo, player, lambda decoder, _, inputs: decoder(**inputs).sample)
    checkpoint = choose_model(find_checkpoints(folder / "checkpoints"), demo.MODEL)
    with pytest.raises(UserError):
        demo._compare_players(folder, checkpoint, recorder)


@pytest.mark.parametrize("losses", [[1.0] * 8, [1, 1, 2, 2, 2, 2, 3, 3], [1.0, 1.0, math.nan, math.nan] * 2])
def test_a_loss_that_does_not_fall_is_an_error(losses):
    with pytest.raises(UserError, match="instead of falling"):
        demo._require_a_fall(losses)


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path, recorder):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds something else"):
        demo.run_demo(tmp_path, recorder)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"thesis.txt": "mine"}


def test_a_file_is_no_folder_to_work_in(tmp_path, recorder):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        demo.run_demo(tmp_path / "thesis.txt", recorder)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_emptying_an_earlier_demo_follows_no_link_out_of_it(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "demo"
    outside.mkdir()
    (outside / "precious.txt").touch()
    inside.mkdir()
    (inside / demo.MARK).touch()
    (inside / "link").symlink_to(outside, target_is_directory=True)
    demo._take_folder(inside)
    assert [path.name for path in inside.iterdir()] == [demo.MARK]
    assert (outside / "precious.txt").is_file()
