"""Every kind of file that people get from others: a sound one, how it is damaged, and the commands that read it."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tomli_w
import torch

from tests.fuzz.mutations import JUNK, damage_bytes, damage_song, damage_tree, damaged_json
from woodshed.models.checkpoints import fingerprint, read_checkpoint
from woodshed.toy.songs import write_audio
from woodshed.training.checkpoint import FORMAT, digest_of

MODEL = "--checkpoint-dir checkpoints --model base --device cpu"
RESUME = (
    f"train {MODEL} --dataset-dir tensors --output-dir out --resume-from latest --rank 2 --epochs 5 --num-workers 0"
)
TRAIN = f"train {MODEL} --dataset-dir tensors --output-dir new --rank 2 --epochs 1 --num-workers 0"
PREPROCESS = f"preprocess {MODEL} --audio-dir songs --tensor-output new"
BASE = Path("checkpoints/acestep-v15-base")
TEXT = Path("checkpoints/Qwen3-Embedding-0.6B")
RUN = {
    "rank": 4,
    "alpha": 8.0,
    "epochs": 2,
    "learning_rate": 1e-4,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
}
SONG = {
    "audio_path": "a.wav",
    "caption": "a lute",
    "lyrics": "[Verse]\nla",
    "bpm": 120,
    "keyscale": "C major",
    "language": "en",
}
DATASET = {
    "metadata": {"name": "x", "custom_tag": "zz", "tag_position": "prepend", "genre_ratio": 20},
    "samples": [SONG],
}


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    name: str
    damage: Callable[[Path, Random], object]  # writes the damaged file below the folder
    commands: tuple[str, ...]


def build_desk(folder: Path, golden: Path) -> None:
    """Lay out a sound file of every kind."""
    for name in (BASE.name, "vae", TEXT.name):
        shutil.copytree(golden / "checkpoints" / name, folder / "checkpoints" / name)
    shutil.copytree(golden / "preprocessed_fp32", folder / "tensors")
    shutil.copytree(golden / "adapters" / "lora_r4", folder / "adapter")
    (folder / "songs").mkdir()
    model = read_checkpoint(folder / BASE)
    known = {"model": model.name, "fingerprint": fingerprint(model)}
    state_of = STATE | known
    write(
        folder / "out" / "checkpoint-epoch-1" / "resume" / "state.json",
        json.dumps(state_of | {"digest": digest_of(state_of)}).encode(),
    )
    write(folder / "estimate.json", json.dumps(RANKING | known).encode())
    time = np.arange(2_205) / 44_100
    write_audio(folder / "songs" / "a.wav", np.stack([np.sin(2 * np.pi * 220 * time)] * 2).astype(np.float32))


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def json_at(place: str, tree: Any = None) -> Callable[[Path, Random], None]:
    """Damage a JSON file that is there, or a tree that is given."""

    def damage(folder: Path, random: Random) -> None:
        path = folder / place
        found = json.loads(path.read_text(encoding="utf-8")) if tree is None else tree
        write(path, damaged_json(found, random))

    return damage


def bytes_at(place: str) -> Callable[[Path, Random], None]:
    def damage(folder: Path, random: Random) -> None:
        write(folder / place, damage_bytes((folder / place).read_bytes(), random))

    return damage


def toml_at(place: str) -> Callable[[Path, Random], None]:
    """Damage a run file: values of other kinds, and its text."""

    def damage(folder: Path, random: Random) -> None:
        values: Any = damage_tree(RUN, random)
        try:
            text = tomli_w.dumps(values).encode()
        except (TypeError, AttributeError, UnicodeEncodeError, ValueError):
            text = tomli_w.dumps(RUN).encode()
        if random.random() < 0.4:
            text = damage_bytes(text, random)
        if random.random() < 0.1:
            text += b"\nlog_every = " + random.choice(
                (b"[" * 3000, b"9" * 5000, b"1e400", b"1979-05-27", b"nan", b"{a={b=1}}")
            )
        write(folder / place, text)

    return damage


def text_at(place: str, text: str) -> Callable[[Path, Random], None]:
    """Damage a text file: lines that change places, and its bytes."""

    def damage(folder: Path, random: Random) -> None:
        lines = text.splitlines(keepends=True)
        for _ in range(random.randrange(3)):
            lines.insert(random.randrange(len(lines) + 1), f"{random.choice(JUNK)!s:.80}{random.choice(':,;')}\n")
        content = "".join(lines).encode("utf-8", "surrogatepass")
        write(folder / place, damage_bytes(content, random) if random.random() < 0.5 else content)

    return damage


def song_at(place: str) -> Callable[[Path, Random], None]:
    def damage(folder: Path, random: Random) -> None:
        path = folder / place
        if random.random() < 0.25:
            write(path, damage_bytes(path.read_bytes(), random))
        else:
            torch.save(damage_song(torch.load(path, weights_only=True), random), path)

    return damage


def safetensors_at(place: str) -> Callable[[Path, Random], None]:
    """Damage the header of a safetensors file, its length, or the bytes behind it."""

    def damage(folder: Path, random: Random) -> None:
        content = (folder / place).read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
        if random.random() < 0.7:
            text = damaged_json(header, random)
            odd = random.choice((0, 2**62, length + 1, 10**8)) if random.random() < 0.1 else len(text)
            write(folder / place, struct.pack("<Q", odd) + text + rest)
        else:
            write(folder / place, damage_bytes(content, random))

    return damage


def shard(folder: Path, random: Random) -> None:
    """Leave the manifest of a part, damaged."""
    (folder / "tensors" / "manifest.json").unlink()
    names = sorted(path.name for path in (folder / "tensors").glob("*.pt"))
    part = {"number": 1, "count": 1, "places": [0, 1], "songs": "s", "settings": "t"}
    content = {
        "metadata": {"name": "x", "all_instrumental": False, "num_samples": 2},
        "samples": names,
        "num_samples": 2,
        "woodshed": {"model": "acestep-v15-base", "fingerprint": "", "is_complete": True, "shard": part},
    }
    write(folder / "tensors" / "manifest-1-of-1.json", damaged_json(content, random))


def state(folder: Path, random: Random) -> None:
    """Damage a checkpoint's state, with the digest that fits what came out, as whoever means harm would."""
    path = folder / "out" / "checkpoint-epoch-1" / "resume" / "state.json"
    damaged = damage_tree(json.loads(path.read_text(encoding="utf-8")), random)
    if random.random() < 0.3 or not isinstance(damaged, dict):
        write(path, damaged_json(damaged, random))
        return
    damaged.pop("digest", None)
    write(path, json.dumps(damaged | {"digest": digest_of(damaged)}).encode("utf-8", "surrogatepass"))


STATE = {
    "format": FORMAT,
    "run": "r",
    "position": {"epoch": 1, "steps_in_epoch": 0, "step": 0, "epoch_loss": 0.0, "epoch_songs": 0},
    "settings": {"rank": 2, "epochs": 5, "batch_size": 1, "gradient_accumulation": 4, "seed": 42, "recompute": "auto"},
    "model": "acestep-v15-base",
    "fingerprint": "0",
    "songs": 2,
    "scaler": {},
    "targets": ["layers.0.self_attn.q_proj"],
    "held_out": ["a"],
    "validation": {"best": 0.5},
    "techniques": {"recompute": "all", "compile": False},
    "digests": {},
}
Q = "layers.0.self_attn.q_proj"
RANKING = {
    **{"format": 1, "woodshed": "0.1", "dataset": "tensors", "dataset_digest": "", "songs": 2, "batches": 2, "seed": 1},
    **{"granularity": "module", "formula": "x", "half_correlation": 0.5, "top_k": 1, "recommendation": [Q]},
    "entries": [{"name": Q, "modules": [Q], "score": 1.0, "halves": [1.0, 1.0]}],
}
EVENTS = '{"event": "StepDone", "step": 1, "epoch": 1, "loss": 0.5}\n{"event": "Finished", "epochs": 1}\n'
CSV = "file,caption,bpm,lyrics,is_instrumental\na.wav,a lute,120,la la,no\n"
SIDECAR = "caption: a lute\nbpm: 120\nlyrics: la la\nla\nkeyscale: C major\n"
RECIPE = {"woodshed": "0.1", "base_model": "acestep-v15-base", "shift": 3.0}

KINDS = (
    Kind("run file", toml_at("run.toml"), (f"{TRAIN} --config run.toml", "inspect run.toml")),
    Kind("preset", toml_at("mine.toml"), ("presets import mine.toml --replace", "presets show mine", "presets list")),
    Kind("preset in the project", toml_at("presets/mine.toml"), ("presets show mine", f"{TRAIN} --preset mine")),
    Kind("foreign preset", json_at("mine.json", RUN | {"lora_rank": 8}), ("presets import mine.json",)),
    Kind("user settings", toml_at("config/settings.toml"), ("models", "presets list")),
    Kind(
        "dataset JSON",
        json_at("songs/dataset.json", DATASET),
        ("dataset songs --dataset-json songs/dataset.json", "dataset songs --dataset-json songs/dataset.json --show a"),
    ),
    Kind("CSV", text_at("songs/metadata.csv", CSV), ("dataset songs", "dataset songs --check --plain")),
    Kind("sidecar", text_at("songs/a.txt", SIDECAR), ("dataset songs", "dataset songs --show a")),
    Kind("JSON sidecar", json_at("songs/a.json", SONG), ("dataset songs",)),
    Kind("audio", bytes_at("songs/a.wav"), ("dataset songs --check", PREPROCESS)),
    Kind("song", song_at("tensors/sample_a.pt"), (TRAIN, "inspect tensors", "dataset tensors")),
    Kind("manifest", json_at("tensors/manifest.json"), (TRAIN, "inspect tensors")),
    Kind("part of a dataset", shard, ("dataset merge tensors", "inspect tensors")),
    Kind(
        "weights",
        safetensors_at(f"{BASE}/model.safetensors"),
        (f"inspect {BASE}", TRAIN, "models --checkpoint-dir checkpoints"),
    ),
    Kind("model config", json_at(f"{BASE}/config.json"), ("models", f"inspect {BASE}", TRAIN)),
    Kind("silence", bytes_at(f"{BASE}/silence_latent.pt"), (f"inspect {BASE}",)),
    Kind("VAE config", json_at("checkpoints/vae/config.json"), (PREPROCESS,)),
    Kind("text encoder config", json_at(f"{TEXT}/config.json"), (PREPROCESS,)),
    Kind("tokenizer", json_at(f"{TEXT}/tokenizer.json"), ("dataset songs --show a", PREPROCESS)),
    Kind(
        "adapter",
        safetensors_at("adapter/adapter_model.safetensors"),
        ("inspect adapter", f"{TRAIN} --rank 4 --init-from adapter"),
    ),
    Kind(
        "adapter config",
        json_at("adapter/adapter_config.json"),
        ("inspect adapter", "export adapter --to peft --output new"),
    ),
    Kind(
        "state",
        state,
        (RESUME, "inspect out"),
    ),
    Kind("estimate", json_at("estimate.json"), ("inspect estimate.json", f"{TRAIN} --targets-from estimate.json")),
    Kind("journal", text_at("out/events.jsonl", EVENTS), ("inspect out",)),
    Kind(
        "fetch record",
        json_at(f"{BASE}/woodshed-fetched.json", {"repository": "a/b", "revision": "c", "files": {}}),
        ("doctor",),
    ),
)
