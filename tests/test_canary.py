"""A stranger's folder, full of code that waits to be run: every command works on it, nothing runs, nothing escapes.

The interpreter itself watches: an audit hook sees every file that is opened for writing, every rename and deletion,
every program that is started and every module that is loaded, whoever does it.
"""

import hashlib
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed import cli
from woodshed.training.checkpoint import digest_of

CANARY = "raise SystemExit(open('owned', 'w').write('owned'))\n"
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "ctypes.dlopen")
WRITES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1}
BASE = "acestep-v15-base"
LIBRARY_CACHE = str(Path(tempfile.gettempdir()) / "torchinductor")
MODEL = ("--checkpoint-dir", "checkpoints", "--model", "base", "--device", "cpu")


class Bomb:
    """What a pickle may hold: a call that is made when it is read."""

    def __reduce__(self):
        return os.system, ("touch owned",)


class Watch:
    """What happened while it was on."""

    is_on = False
    written: list[str]
    started: list[str]
    home = ""


WATCH = Watch()


def _hook(event, arguments):
    if not WATCH.is_on:
        return
    if event == "open":
        path, mode, flags = arguments
        is_writing = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        )
        if is_writing and isinstance(path, str | bytes | os.PathLike):
            WATCH.written.append(os.fsdecode(path))
    elif event in WRITES and arguments[-1] in (-1, None):  # else relative to a folder that is open already
        paths = [os.fsdecode(path) for path in arguments[: WRITES[event]] if not isinstance(path, int)]
        WATCH.written += [path for path in paths if event != "os.mkdir" or not Path(path).is_dir()]
    elif event.startswith(STARTS):
        WATCH.started.append(f"{event} {arguments!r}")
    elif event == "import" and arguments[1] and str(arguments[1]).startswith(WATCH.home):
        WATCH.started.append(f"import {arguments[1]}")


@pytest.fixture(scope="module", autouse=True)
def hook():
    """A hook cannot be taken off again, so it is switched; libraries that look around when they load do it before."""
    for name in ("training.loop", "sampling.generate", "data.encode", "analysis.inspection", "adapters.export"):
        importlib.import_module(f"woodshed.{name}")
    platform.processor()  # the standard library asks the system's uname, once
    sys.addaudithook(_hook)


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Work in a folder beside which nothing may change."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "victim.pt").write_bytes(b"untouched")
    WATCH.home, WATCH.written, WATCH.started = str(home), [], []
    yield home
    WATCH.is_on = False
    assert not list(tmp_path.rglob("owned"))
    assert (tmp_path / "victim.pt").read_bytes() == b"untouched"


def absolute(path):
    return os.path.normpath(Path.cwd() / path)


def run(*words, within=()):
    """Run a command under watch; nothing may be written but below the folders that are given, nothing started."""
    WATCH.written, WATCH.started, WATCH.is_on = [], [], True
    try:
        code = cli.main([*words, "--plain"])
    finally:
        WATCH.is_on = False
    allowed = [str(Path(place).resolve()) for place in (*within, "config")]
    strays = [
        path
        for path in map(absolute, WATCH.written)
        if not any(
            path == place or path.startswith((place + os.sep, str(Path(place).with_name(f".{Path(place).name}"))))
            for place in allowed
        )
        and not path.startswith(("/dev/", "/proc/", LIBRARY_CACHE))
        and "__pycache__" not in path
    ]
    assert not strays, strays
    assert not WATCH.started, WATCH.started
    return code


@pytest.fixture
def stranger(watch, golden):
    """A model, a text encoder and a dataset whose every file says what should be run."""
    for name in (BASE, "vae", "Qwen3-Embedding-0.6B"):
        folder = Path(shutil.copytree(golden / "checkpoints" / name, watch / "checkpoints" / name))
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        fields["auto_map"] = {"AutoConfig": "owned.Config", "AutoModel": "modeling_owned.Model"}
        fields |= {
            "custom_pipelines": {"x": {"impl": "modeling_owned.run"}},
            "_target_": "os.system",
            "trust_remote_code": True,
        }
        (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        for script in ("modeling_owned.py", "owned.py", "__init__.py", "sitecustomize.py", "config.py"):
            (folder / script).write_text(CANARY, encoding="utf-8")
    hints = {"auto_map": {"AutoTokenizer": ["owned.Tokenizer", None]}, "tokenizer_class": "Owned"}
    hints["chat_template"] = "{{ cycler.__init__.__globals__.os.system('touch owned') }}"
    (watch / "checkpoints" / "Qwen3-Embedding-0.6B" / "tokenizer_config.json").write_text(
        json.dumps(hints), encoding="utf-8"
    )
    for script in ("torch.py", "owned.py", "sitecustomize.py", "conftest.py", "nvidia-smi"):
        (watch / script).write_text(CANARY, encoding="utf-8")
    shutil.copytree(golden / "preprocessed_fp32", watch / "tensors")
    return watch


def test_the_watch_sees_what_it_shall_see(watch, tmp_path):
    WATCH.is_on = True
    (tmp_path / "seen").write_text("x", encoding="utf-8")
    os.system("true")
    WATCH.is_on = False
    assert str(tmp_path / "seen") in WATCH.written
    assert any(line.startswith("os.system") for line in WATCH.started)
    with pytest.raises(AssertionError):
        run("presets", "save", "mine", "--place", "project")  # writes a folder that was not given
    assert (watch / "presets" / "mine.toml").is_file()


@pytest.mark.usefixtures("stranger")
def test_a_models_own_code_never_runs_whatever_is_done_with_it(write_song):
    write_song(Path("songs/a.wav"))
    common = ("--dataset-dir", "tensors", "--num-workers", "0")
    assert run("models", "--checkpoint-dir", "checkpoints") == 0
    assert run("inspect", f"checkpoints/{BASE}") == 0
    assert run("preprocess", *MODEL, "--audio-dir", "songs", "--tensor-output", "new", within=("new",)) == 0
    training = ("--output-dir", "out", "--rank", "2", "--epochs", "1", "--warmup-steps", "0")
    assert run("train", *MODEL, *common, *training, within=("out",)) == 0
    sound = ("--prompt", "a lute", "--duration", "1", "--steps", "1", "--adapter", "out/final", "--output", "x.wav")
    assert run("generate", *MODEL, *sound, within=("x.wav",)) == 0


@pytest.fixture
def write_song():
    import numpy as np

    from woodshed.toy.songs import write_audio

    def write(path):
        path.parent.mkdir(exist_ok=True)
        time = np.arange(11_025) / 44_100
        write_audio(path, np.stack([np.sin(2 * np.pi * 220 * time)] * 2).astype(np.float32))

    return write


TRAINING = ("train", *MODEL, "--dataset-dir", "tensors", "--rank", "2", "--num-workers", "0", "--warmup-steps", "0")


def forge(resume):
    """Write the digests that fit what lies there, as whoever means harm would."""
    state = json.loads((resume / "state.json").read_text(encoding="utf-8"))
    optimizer = hashlib.sha256((resume / "optimizer.pt").read_bytes()).hexdigest()
    state["digests"] = {name: optimizer if "optimizer" in name else old for name, old in state["digests"].items()}
    del state["digest"]
    (resume / "state.json").write_text(json.dumps(state | {"digest": digest_of(state)}), encoding="utf-8")


@pytest.mark.parametrize("form", ["torch.save", "old torch.save", "pickle", "zip with a pickle"])
@pytest.mark.parametrize(
    "place",
    ["tensors/sample_a.pt", f"checkpoints/{BASE}/silence_latent.pt", "out/checkpoint-epoch-1/resume/optimizer.pt"],
)
def test_a_pickle_with_code_is_refused_wherever_it_lies(stranger, form, place, capsys):
    path = stranger / place
    if place.startswith("out"):
        first = (*TRAINING, "--output-dir", "out", "--epochs", "1", "--save-every", "1")
        assert run(*first, within=("out",)) == 0
    if form == "torch.save":
        torch.save({"target_latents": Bomb()}, path)
    elif form == "old torch.save":
        torch.save({"target_latents": Bomb()}, path, _use_new_zipfile_serialization=False)
    else:
        import pickle

        content = pickle.dumps(Bomb())
        path.write_bytes(content)
        if form != "pickle":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", content)
                archive.writestr("archive/version", "3\n")
    training = (*TRAINING, "--epochs", "2")
    if place.startswith("out"):
        forge(path.parent)
        assert run(*training, "--output-dir", "out", "--resume-from", "latest", within=("out",)) == 1
        said = capsys.readouterr().err
        assert "cannot be resumed" in said
        assert "weights_only" not in said  # PyTorch's words for running what is in there
    elif place.startswith("tensors"):
        assert run(*training, "--output-dir", "new") == 1
        run("inspect", "tensors")
        run("dataset", "tensors")
    else:
        run("inspect", f"checkpoints/{BASE}")
        run("doctor", "--checkpoint-dir", "checkpoints", "--device", "cpu")
        assert run("preprocess", *MODEL, "--audio-dir", "tensors", "--tensor-output", "new", within=("new",)) == 1
    capsys.readouterr()


NAMES = (
    "../up",
    "..",
    "/abs",
    "a/b",
    "a\\b",
    "CON",
    "nul",
    "com1",
    "x" * 65,
    "",
    ".hidden",
    "-x",
    "a:b",
    "a\0b",
    "a b",
    "a.toml",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_of_a_strangers_name_is_never_written_read_or_deleted(watch, name):
    (watch.parent / "up.toml").write_text("rank = 1\n", encoding="utf-8")
    (watch / "good.toml").write_text("rank = 3\n", encoding="utf-8")
    for words in (("save",), ("import", "good.toml"), ("show",), ("delete",)):
        given = [*words, name] if name else list(words)
        if (words[0], name) == ("import", ""):
            continue  # then the file's own name counts
        assert run("presets", *given) in (1, 2)
    assert (watch.parent / "up.toml").read_text(encoding="utf-8") == "rank = 1\n"


def test_a_strangers_preset_names_no_place_on_this_machine(watch, capsys):
    places = {
        "log_dir": "/etc/cron.d",
        "init_from": "../x",
        "targets_from": "y",
        "sample_prompts": "z",
        "output_dir": "w",
    }
    text = "".join(["rank = 8\n", *(f'{name} = "{place}"\n' for name, place in places.items())])
    (watch / "theirs.toml").write_text(text, encoding="utf-8")
    assert run("presets", "import", "theirs.toml") == 0
    said = capsys.readouterr().out
    assert "rank = 8" in said
    for name in places:
        assert f"{name} " in said.split("rank = 8")[1]
    assert (watch / "config" / "presets" / "theirs.toml").read_text(encoding="utf-8").count("=") == 1


def test_songs_named_by_a_stranger_are_written_below_the_output_only(stranger, write_song):
    write_song(stranger / "songs" / "a.wav")
    (stranger.parent / "secret.wav").write_bytes((stranger / "songs" / "a.wav").read_bytes())
    paths = (
        "a.wav",
        "../../secret.wav",
        str(stranger.parent / "secret.wav"),
        "/etc/passwd",
        "~/x.wav",
        "file:///x.wav",
        "-rf",
        "CON",
    )
    samples = [
        {"audio_path": path, "caption": "$(touch owned)", "lyrics": "`touch owned`", "custom_tag": "../../x"}
        for path in paths
    ]
    (stranger / "songs" / "dataset.json").write_text(json.dumps(samples), encoding="utf-8")
    words = ("--audio-dir", "songs", "--dataset-json", "songs/dataset.json", "--tensor-output", "new")
    assert run("preprocess", *MODEL, *words, within=("new",)) == 1  # some failed
    assert {path.parent for path in stranger.rglob("*.pt")} >= {stranger / "new"}


@pytest.mark.parametrize("name", ["../../victim.pt", "/etc/passwd", "..\\..\\victim.pt", "../tensors/sample_a.pt"])
def test_manifests_of_strangers_lead_nowhere(stranger, name):
    manifest = stranger / "tensors" / "manifest.json"
    manifest.write_text(json.dumps({"samples": [name]}), encoding="utf-8")
    training = (
        "train",
        *MODEL,
        "--dataset-dir",
        "tensors",
        "--output-dir",
        "new",
        "--rank",
        "2",
        "--epochs",
        "1",
        "--num-workers",
        "0",
    )
    run(*training, within=("new",))
    manifest.unlink()
    shard = {"number": 1, "count": 1, "places": [0], "songs": "s", "settings": "t"}
    content = {
        "metadata": {"name": "x", "all_instrumental": False},
        "samples": [name],
        "woodshed": {"is_complete": True, "shard": shard},
    }
    (stranger / "tensors" / "manifest-1-of-1.json").write_text(json.dumps(content), encoding="utf-8")
    assert run("dataset", "merge", "tensors", "--output", "merged", within=("merged",)) == 1
    assert not (stranger / "merged").exists()


def test_an_adapters_header_is_words_and_nothing_more(stranger, golden):
    tensors = load_file(golden / "adapters" / "lora_r4" / "adapter_model.safetensors")
    hostile = {"_target_": "os.system", "auto_map": "owned.x", "output": "../../x", "__reduce__": "touch owned"}
    header = {
        "format": "pt",
        "lora_adapter_metadata": "__import__('os').system('touch owned')",
        "lokr_config": "{{7*7}}",
        "woodshed": json.dumps(hostile),
    }
    shutil.copytree(golden / "adapters" / "lora_r4", stranger / "adapter")
    save_file(tensors, stranger / "adapter" / "adapter_model.safetensors", header)
    run("inspect", "adapter")
    run("export", "adapter", "--to", "comfyui", "--output", "new", within=("new",))
    run(
        "generate",
        *MODEL,
        "--prompt",
        "x",
        "--duration",
        "1",
        "--steps",
        "1",
        "--adapter",
        "adapter",
        "--output",
        "x.wav",
        within=("x.wav",),
    )


def test_a_strangers_run_file_is_settings_and_nothing_more(stranger):
    lines = (
        '"__class__" = "os.system"',
        'command = "touch owned"',
        'hooks = ["touch owned"]',
        'rank = "$(touch owned)"',
    )
    for line in lines:
        (stranger / "run.toml").write_text(line + "\n", encoding="utf-8")
        assert run("train", *MODEL, "--dataset-dir", "tensors", "--output-dir", "new", "--config", "run.toml") == 1
