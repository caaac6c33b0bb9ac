"""Sound that tests can recognise, in every format; songs that need no model; the toy models."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from woodshed.data import passes
from woodshed.data.dataset import SongDataset, open_dataset
from woodshed.models.checkpoints import choose_model, find_checkpoints, fingerprint
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import PreprocessSettings

CODECS = {
    ".wav": "pcm_s16le",
    ".mp3": "libmp3lame",
    ".flac": "flac",
    ".ogg": "vorbis",
    ".opus": "libopus",
    ".m4a": "aac",
}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def _tones(seconds: float, rate: int = 48_000, channels: int = 2, amplitude: float = 0.5) -> np.ndarray:
    """(channels, samples): channel 0 plays 440 Hz, channel 1 880 Hz, and so on."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([amplitude * np.sin(2 * np.pi * 440 * (index + 1) * time) for index in range(channels)])


@pytest.fixture(scope="session")
def tones() -> Callable[..., np.ndarray]:
    return _tones


@pytest.fixture(scope="session")
def write_audio() -> Callable[..., Path]:
    """Encode (channels, samples) with FFmpeg: `write_audio(path, wave, rate)`; two seconds of tones by default."""

    def write(path: Path, wave: np.ndarray | None = None, rate: int = 48_000, codec: str | None = None) -> Path:
        wave = _tones(2, rate) if wave is None else wave
        layout = LAYOUTS[len(wave)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                codec or CODECS[path.suffix], rate=rate, layout=layout, options={"strict": "experimental"}
            )
            packed = np.ascontiguousarray(wave.T, np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            resampler = av.AudioResampler(
                format=stream.format.name, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size or None
            )
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def pitch() -> Callable[[torch.Tensor], float]:
    """The loudest frequency of a channel at 48 kHz, in Hz."""

    def measure(channel: torch.Tensor) -> float:
        spectrum = torch.fft.rfft(channel * torch.hann_window(len(channel))).abs()
        return int(spectrum.argmax()) * 48_000 / len(channel)

    return measure


@pytest.fixture
def write_sample(tmp_path) -> Callable[..., Path]:
    """Write a sample file for a toy model into `tmp_path/tensors`; a key set to ... is left out."""

    def write(name: str = "song", *, frames: int = 6, tokens: int = 4, **changes: object) -> Path:
        draw = torch.Generator().manual_seed(sum(name.encode()))
        content = {
            "target_latents": torch.randn(frames, 16, generator=draw),
            "attention_mask": torch.ones(frames),
            "encoder_hidden_states": torch.randn(tokens, 32, generator=draw),
            "encoder_attention_mask": torch.ones(tokens, dtype=torch.bool),
            "context_latents": torch.randn(frames, 32, generator=draw),
            "metadata": {"filename": f"{name}.wav"},
        } | changes
        path = tmp_path / "tensors" / f"{name}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save({key: value for key, value in content.items() if value is not ...}, path)
        return path

    return write


@pytest.fixture
def music(tmp_path, write_audio, tones) -> Path:
    """Three songs of a quarter of a second, two of them of one name."""
    for pitch, name in enumerate(("a.wav", "one/b.wav", "two/b.wav"), 1):
        write_audio(tmp_path / "music" / name, tones(0.25, channels=1) * pitch / 4)
    return tmp_path / "music"


@pytest.fixture
def settings_for(tmp_path, checkpoint_root) -> Callable[..., PreprocessSettings]:
    """Build settings that preprocess `tmp_path/music` into `tmp_path/tensors` for the toy base model."""

    def build(**changes: object) -> PreprocessSettings:
        values = {
            "checkpoint_dir": checkpoint_root,
            "model": "acestep-v15-base",
            "audio_dir": tmp_path / "music",
            "tensor_output": tmp_path / "tensors",
            "device": "cpu",
        }
        return resolve(PreprocessSettings, [Layer("test", values | changes)]).settings

    return build


@pytest.fixture
def write_json(tmp_path) -> Callable[..., Path]:
    """Write a dataset JSON beside the music, from a dictionary of fields for each file."""

    def write(songs: dict[str, dict[str, object]], **metadata: object) -> Path:
        samples = [{"audio_path": f"music/{name}", "caption": name} | fields for name, fields in songs.items()]
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps({"metadata": metadata, "samples": samples}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def open_for(tmp_path, checkpoint_root) -> Callable[..., SongDataset]:
    """Open `tmp_path/tensors` for a toy model, as training does."""

    def open_it(model: str = "base") -> SongDataset:
        checkpoint = choose_model(find_checkpoints(checkpoint_root), model)
        return open_dataset(
            tmp_path / "tensors",
            latent_channels=checkpoint.config.latent_channels,
            condition_width=checkpoint.config.condition_width,
            fingerprint=fingerprint(checkpoint),
            model=checkpoint.name,
        )

    return open_it


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="session")
def bomb() -> Callable[[Path], object]:
    """Something that betrays whoever unpickles it: `bomb(canary)`."""
    return _Bomb


@pytest.fixture(scope="session")
def loaded() -> dict[object, object]:
    return {}


@pytest.fixture
def loaded_once(monkeypatch, loaded) -> None:
    """Load each part of a model once for all tests, and hear each song once: neither gives anything else again."""
    for name in ("load_vae", "load_text_encoder", "load_condition_encoder"):
        load = getattr(passes, name)

        def remember(source, *, dtype, device, name=name, load=load):
            key = (name, getattr(source, "folder", source), dtype, device)
            if key not in loaded:
                loaded[key] = load(source, dtype=dtype, device=device)
            return loaded[key]

        monkeypatch.setattr(passes, name, remember)

    hear = passes.encode_waveform

    def remember_song(vae, waveform):
        key = (id(vae), waveform.numpy().tobytes())
        if key not in loaded:
            loaded[key] = hear(vae, waveform)
        return loaded[key]

    monkeypatch.setattr(passes, "encode_waveform", remember_song)
