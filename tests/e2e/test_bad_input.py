"""What people do wrong: one message that names the thing, the right exit code, and nothing half-written."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed import cli
from woodshed.toy.songs import write_audio

MISSING = ("encoder_attention_mask", "context_latents")
TENSOR = "decoder.layers.1.cross_attn.q_proj.weight"


class Desk:
    """A folder with checkpoints that may be spoiled, tensors to train on, and a song."""

    def __init__(self, folder: Path, golden: Path) -> None:
        self.folder = folder
        self.base = folder / "checkpoints" / "acestep-v15-base"
        self.tensors = folder / "tensors"
        self.songs = folder / "songs"
        for name in ("acestep-v15-base", "vae", "Qwen3-Embedding-0.6B"):
            shutil.copytree(golden / "checkpoints" / name, folder / "checkpoints" / name)
        shutil.copytree(golden / "preprocessed_fp32", self.tensors)
        self.songs.mkdir()
        write_audio(self.songs / "good.wav", _tone(1.0))

    def spoil_weights(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        """Let a function change the tensors of the base model."""
        tensors = load_file(self.base / "model.safetensors")
        change(tensors)
        save_file(tensors, self.base / "model.safetensors")

    def spoil_song(self, change: Callable[[dict[str, object]], object]) -> None:
        """Let a function change what sample_b.pt holds."""
        content = torch.load(self.tensors / "sample_b.pt", weights_only=True)
        change(content)
        torch.save(content, self.tensors / "sample_b.pt")

    def edit_json(self, path: Path, **changes: object) -> None:
        """Change fields of a JSON object; one set to ... is removed."""
        fields = json.loads(path.read_text(encoding="utf-8")) | changes
        kept = {name: value for name, value in fields.items() if value is not ...}
        path.write_text(json.dumps(kept), encoding="utf-8")


def _tone(seconds):
    t = np.arange(round(seconds * 44_100)) / 44_100
    return np.stack([0.4 * np.sin(2 * np.pi * 220 * t)] * 2).astype(np.float32)


@pytest.fixture
def desk(tmp_path, golden, monkeypatch):
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, golden)


COMMON = "--checkpoint-dir checkpoints --model base --device cpu"
TRAIN = f"train {COMMON} --dataset-dir tensors --output-dir out --rank 2 --epochs 1 --num-workers 0"
PREPROCESS = f"preprocess {COMMON} --audio-dir songs --tensor-output new"


@dataclass(frozen=True)
class Case:
    """One mistake."""

    title: str
    words: str
    says: tuple[str, ...]  # all of them in the message
    spoil: Callable[[Desk], object] = lambda _: None
    code: int = 1


def _only(desk: Desk, name: str, content: bytes) -> None:
    """Leave one file among the songs."""
    (desk.songs / "good.wav").unlink()
    (desk.songs / name).write_bytes(content)


def _no_samples(desk: Desk) -> None:
    (desk.songs / "good.wav").unlink()
    write_audio(desk.songs / "silent.wav", np.zeros((2, 1), np.float32))
    whole = (desk.songs / "silent.wav").read_bytes()
    (desk.songs / "silent.wav").write_bytes(whole[: whole.index(b"data") + 4] + b"\0\0\0\0")


def _of_another_variant(desk: Desk) -> None:
    made_for = {"model": "acestep-v15-turbo", "fingerprint": "0" * 64}
    desk.edit_json(desk.tensors / "manifest.json", woodshed=made_for)


def _with_an_old_run(desk: Desk) -> None:
    (desk.folder / "out").mkdir()
    (desk.folder / "out" / "run.toml").write_text("rank = 2\n", encoding="utf-8")


def _without_songs(desk: Desk) -> None:
    for path in desk.tensors.iterdir():
        path.unlink()


CHECKPOINTS = [
    Case(
        "no checkpoint folder",
        TRAIN,
        ("no checkpoint folder checkpoints", "--checkpoint-dir"),
        lambda desk: shutil.rmtree(desk.folder / "checkpoints"),
    ),
    Case(
        "a folder without models",
        TRAIN,
        ("no ACE-Step 1.5 model in checkpoints", "saw Qwen3-Embedding-0.6B, vae"),
        lambda desk: shutil.rmtree(desk.base),
    ),
    Case(
        "an unknown model",
        TRAIN.replace("--model base", "--model bsae"),
        ("no model bsae", "Did you mean acestep-v15-base?"),
    ),
    Case(
        "a model folder given as the root",
        TRAIN.replace("-dir checkpoints", "-dir checkpoints/acestep-v15-base"),
        ("is a model, not the folder that holds the models", "--model acestep-v15-base"),
    ),
    Case(
        "a checkpoint that lacks a tensor",
        TRAIN,
        (TENSOR, "1 tensor is missing", "acestep-v15-base"),
        lambda desk: desk.spoil_weights(lambda tensors: tensors.pop(TENSOR)),
    ),
    Case(
        "a checkpoint with a tensor of another shape",
        TRAIN,
        (TENSOR, "another shape", "[3, 3]"),
        lambda desk: desk.spoil_weights(lambda tensors: tensors.update({TENSOR: torch.zeros(3, 3)})),
    ),
    Case(
        "weights that a download cut short",
        TRAIN,
        ("model.safetensors cannot be read", "download it again"),
        lambda desk: os.truncate(desk.base / "model.safetensors", 5000),
    ),
    Case(
        "a config.json that lacks a field",
        TRAIN,
        ("config.json: head_dim is missing",),
        lambda desk: desk.edit_json(desk.base / "config.json", head_dim=...),
    ),
    Case(
        "no VAE to encode with",
        PREPROCESS,
        ("no folder vae",),
        lambda desk: shutil.rmtree(desk.folder / "checkpoints" / "vae"),
    ),
]

SONGS = [
    Case(
        "a text file called .wav",
        PREPROCESS,
        ("lyrics.wav is no audio file that can be read",),
        lambda desk: _only(desk, "lyrics.wav", b"[Verse]\nla la la\n" * 50),
    ),
    Case(
        "an empty audio file",
        PREPROCESS,
        ("empty.mp3 is empty: it has no bytes",),
        lambda desk: _only(desk, "empty.mp3", b""),
    ),
    Case("audio without a single sample", PREPROCESS, ("silent.wav holds no sound",), _no_samples),
    Case(
        "a folder without audio",
        PREPROCESS,
        ("No songs found in songs", "looked for .wav", "saw files with .pdf"),
        lambda desk: _only(desk, "score.pdf", b"%PDF"),
    ),
    Case("no folder of songs", PREPROCESS.replace("songs", "sogns"), ("no audio folder sogns",)),
    Case(
        "a dataset JSON that is none",
        PREPROCESS + " --dataset-json songs/dataset.json",
        ("dataset.json is not valid JSON: line 1",),
        lambda desk: (desk.songs / "dataset.json").write_text("{samples: []}", encoding="utf-8"),
    ),
    Case(
        "a dataset JSON that names a missing song",
        PREPROCESS + " --dataset-json songs/dataset.json",
        ("sample 1", "gone.wav does not exist"),
        lambda desk: (desk.songs / "dataset.json").write_text('[{"audio_path": "gone.wav"}]', encoding="utf-8"),
    ),
    Case(
        "a tensor output that is a file",
        PREPROCESS.replace("--tensor-output new", "--tensor-output songs/good.wav"),
        ("The tensor output songs/good.wav", "is no folder"),
    ),
]

DATASETS = [
    Case(
        "no dataset folder", TRAIN.replace("tensors", "tensros"), ("no dataset folder tensros", "woodshed preprocess")
    ),
    Case("an empty dataset folder", TRAIN, ("no .pt files in tensors", "woodshed preprocess"), _without_songs),
    Case(
        "a song whose latents are no numbers",
        TRAIN,
        ("sample_b.pt", "target_latents holds numbers that are not finite"),
        lambda desk: desk.spoil_song(lambda song: song["target_latents"].fill_(float("nan"))),
    ),
    Case(
        "a song with missing parts",
        TRAIN,
        ("sample_b.pt", "lacks encoder_attention_mask, context_latents"),
        lambda desk: desk.spoil_song(lambda song: [song.pop(key) for key in MISSING]),
    ),
    Case(
        "a song of another latent width",
        TRAIN,
        ("sample_b.pt", "target_latents has the shape"),
        lambda desk: desk.spoil_song(lambda song: song.update(target_latents=torch.zeros(10, 5))),
    ),
    Case(
        "a .pt file that holds no tensors",
        TRAIN,
        ("sample_b.pt is no file of tensors",),
        lambda desk: (desk.tensors / "sample_b.pt").write_text("hello", encoding="utf-8"),
    ),
    Case(
        "a .pt file that would run code",
        TRAIN,
        ("sample_b.pt cannot be read as tensors",),
        lambda desk: torch.save({"target_latents": Path("x"), "run": print}, desk.tensors / "sample_b.pt"),
    ),
    Case(
        "a manifest that names a missing file",
        TRAIN,
        ("names files that are not there: sample_b.pt",),
        lambda desk: (desk.tensors / "sample_b.pt").unlink(),
    ),
    Case(
        "tensors made for another variant",
        TRAIN,
        ("was made for acestep-v15-turbo", "--model acestep-v15-base"),
        _of_another_variant,
    ),
]

RUNS = [
    Case(
        "an output folder that holds a run",
        TRAIN,
        ("out already holds a run", "--resume-from latest"),
        _with_an_old_run,
    ),
    Case(
        "an output directory that is a file",
        TRAIN.replace("--output-dir out", "--output-dir songs/good.wav"),
        ("songs/good.wav is a file",),
    ),
    Case("nothing to resume from", TRAIN + " --resume-from latest", ("no checkpoint in out",)),
    Case("a checkpoint that is none", TRAIN + " --resume-from tensors", ("Cannot resume from tensors",)),
    Case("a run file that does not exist", TRAIN + " --config run.toml", ("no file run.toml",)),
    Case(
        "a run file with an unknown setting",
        TRAIN + " --config run.toml",
        ("no setting called rnak", "Did you mean rank?"),
        lambda desk: (desk.folder / "run.toml").write_text("rnak = 3\n", encoding="utf-8"),
    ),
    Case("a target that matches nothing", TRAIN + " --target-modules zz_proj", ("zz_proj", "q_proj")),
    Case("a device that is not there", TRAIN.replace("--device cpu", "--device cuda:99"), ("no device cuda:99", "cpu")),
]

USAGE = [
    Case("an unknown command", "trian", ("no command trian", "Did you mean train?"), code=2),
    Case("an unknown flag", TRAIN + " --rnak 3", ("no flag --rnak", "Did you mean --rank?"), code=2),
    Case(
        "two unknown flags and a stray word",
        TRAIN + " --rnak 3 --ephocs 2",
        ("Did you mean --rank?", "Did you mean --epochs?"),
        code=2,
    ),
    Case("a flag without its value", "train --rank", ("--rank: expected one argument",), code=2),
    Case("an unknown action", "presets shwo", ("invalid choice",), code=2),
]

EVERY_CASE = [*CHECKPOINTS, *SONGS, *DATASETS, *RUNS, *USAGE]


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.title)
def test_a_mistake_is_named_and_leaves_nothing_behind(case, desk, listing, capsys):
    case.spoil(desk)
    before = listing(desk.folder)
    code = cli.main(case.words.split())  # a traceback would come out of here
    captured = capsys.readouterr()
    assert code == case.code, captured.err
    for part in case.says:
        assert part in captured.err, captured.err
    assert all(line.endswith((".", "?")) for line in captured.err.splitlines())
    assert listing(desk.folder) == before


def test_missing_silence_is_named_before_the_first_song_is_encoded(desk, listing, capsys):
    (desk.base / "silence_latent.pt").unlink()
    before = listing(desk.folder)
    assert cli.main(PREPROCESS.split()) == 1
    assert "silence_latent.pt is missing" in capsys.readouterr().err
    assert listing(desk.folder) == before


def test_several_mistakes_come_in_one_message_before_any_model_is_loaded(desk, listing, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded for settings that were wrong")

    monkeypatch.setattr("woodshed.training.run.load_decoder", refuse)
    desk.spoil_song(lambda song: song.pop("metadata"))
    (desk.tensors / "sample_a.pt").write_bytes(b"")
    before = listing(desk.folder)
    wrong = "--device cuda:99 --target-modules zz_proj --resume-from nowhere --rank 0 --dropout 1 --optimizer-type sgd"
    assert cli.main([*TRAIN.split(), *wrong.split()]) == 1
    error = capsys.readouterr().err
    for part in (
        "rank must",
        "dropout must",
        "optimizer_type must",
        "cuda:99",
        "zz_proj",
        "nowhere",
        "sample_a.pt",
        "sample_b.pt",
    ):
        assert part in error, part
    assert listing(desk.folder) == before


def test_one_bad_song_among_good_ones_is_named_and_the_others_are_encoded(desk, capsys):
    (desk.songs / "bad.wav").write_bytes(b"no music")
    assert cli.main(PREPROCESS.split()) == 1
    captured = capsys.readouterr()
    assert "bad.wav is no audio file" in captured.err
    assert "1 songs encoded" in captured.out
    assert "1 failed" in captured.out
    files = [path.name for path in (desk.folder / "new").iterdir() if path.suffix == ".pt"]
    assert len(files) == 1
    assert files[0].startswith("good-")


@pytest.mark.usefixtures("desk")
def test_the_untouched_desk_works_so_that_only_the_mistakes_are_refused(capsys):
    for words in (PREPROCESS, TRAIN):
        assert cli.main(words.split()) == 0, capsys.readouterr().err
