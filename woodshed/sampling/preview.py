"""Samples while an adapter trains: the same words and the same noise every time, so that only the adapter is heard.

Letters: T latent frames, C latent channels, L condition tokens, E condition width.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from woodshed import __version__
from woodshed.data.conditioning import lyric_text, prompt_text
from woodshed.data.dataset import SongDataset
from woodshed.data.songs import TagPosition
from woodshed.errors import UserError, collecting
from woodshed.models.checkpoints import Checkpoint, CheckpointRoot
from woodshed.models.config import read_vae_config
from woodshed.models.decoder import Decoder
from woodshed.models.encoders import encode_conditions
from woodshed.models.load import load_condition_encoder, load_silence, load_text_encoder, load_vae
from woodshed.sampling.generate import silent_context
from woodshed.sampling.page import set_aside_later, version_folder, write_page
from woodshed.sampling.recipes import Playback, with_tag
from woodshed.sampling.sampler import Guidance, draw_noise, plan_timesteps, sample_latents
from woodshed.sampling.waveform import decode_latents, read_tags, write_sound
from woodshed.settings.schema import SoundFormat, TrainSettings

_DIGEST = re.compile(r"-[0-9a-f]{8}$")  # what preprocessing puts behind the name of a song


@dataclass(frozen=True)
class Words:
    """What one sample is made from."""

    title: str
    conditions: Tensor  # (L, E) on the CPU
    context: Tensor  # (T, 2 C) on the CPU
    digest: str  # of what they come from: the same on every device


@dataclass(frozen=True)
class PreviewPlan:
    """What samples need, found and checked, with nothing large in memory yet."""

    vae: Path
    text_encoder: Path | None  # None where the dataset's own songs are played
    lines: tuple[str, ...]  # the prompts to be encoded
    count: int  # samples each time
    frames: int  # latent frames of the longest sample
    samples: int  # of sound in it
    sample_rate: int
    format: SoundFormat
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A sound file that was just written."""

    path: Path
    number: int  # of the prompt, counting from 1
    title: str
    seconds: float


def plan_preview(settings: TrainSettings, found: CheckpointRoot, checkpoint: Checkpoint) -> PreviewPlan | None:
    """Look for the VAE and, where prompts are given, for them and the encoders; None where no samples are wanted.

    Raises:
        UserError: with every problem found.
    """
    if settings.sample_every_n_epochs == 0:
        return None
    problems: list[str] = []
    vae = text_encoder = None
    lines: tuple[str, ...] = ()
    with collecting(problems):
        vae = read_vae_config(found.require_vae())
    if settings.sample_prompts is not None:
        with collecting(problems):
            text_encoder = found.require_text_encoder()
        with collecting(problems):
            load_silence(checkpoint)
        with collecting(problems):
            lines = read_prompts(settings.sample_prompts)
    if problems:
        raise UserError(*problems)
    assert vae is not None
    said: tuple[str, ...] = ()
    if len(lines) > settings.sample_count:
        said = (
            f"{settings.sample_prompts} holds {len(lines)} prompts, of which the first {settings.sample_count} are "
            f"played; --sample-count {len(lines)} plays all.",
        )
    samples = max(round(settings.sample_seconds * vae.sampling_rate), 1)
    frames = math.ceil(samples / math.prod(vae.downsampling_ratios))
    lines = lines[: settings.sample_count]
    return PreviewPlan(
        vae=found.require_vae(),
        text_encoder=text_encoder,
        lines=lines,
        count=settings.sample_count,
        frames=frames,
        samples=samples,
        sample_rate=vae.sampling_rate,
        format=settings.sample_format,
        notices=said,
    )


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts in a text file, one a line; empty lines are left out.

    Raises:
        UserError: when the file cannot be read or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The sample prompts in {path} cannot be read: {error}.") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{path} holds no sample prompts. Write one a line.")
    return lines


def song_words(dataset: SongDataset, plan: PreviewPlan) -> list[Words]:
    """Return what the first songs of a dataset give: their own conditions, and the beginning of their context.

    Raises:
        DataError: when a song cannot be read.
    """
    found = []
    for index in range(min(plan.count, len(set(dataset.files)))):  # no second piece of a song in pieces
        song = dataset[index]
        context = song.context[: plan.frames]
        digest = _digest_of(*(tensor.float().numpy().tobytes() for tensor in (song.conditions, context)))
        found.append(Words(_DIGEST.sub("", song.name), song.conditions, context, digest))
    return found


def _digest_of(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def encode_lines(
    plan: PreviewPlan,
    checkpoint: Checkpoint,
    *,
    tag: str,
    position: TagPosition,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Words]:
    """Return what the prompts give, as instrumental songs; each encoder is loaded, used and freed in turn.

    Args:
        plan: with lines.
        checkpoint: of the model.
        tag: the dataset's trigger tag, put into a prompt that does not hold it.
        position: where the dataset has its tag.
        dtype, device: in which and where the encoders compute.

    Raises:
        CheckpointError: when an encoder's files cannot be used.
    """
    assert plan.text_encoder is not None, "prompts were planned"
    texts = load_text_encoder(plan.text_encoder, dtype=dtype, device=device)
    seconds = plan.samples / plan.sample_rate
    prompts = [
        prompt_text(with_tag(line, tag, position), bpm="", timesignature="", keyscale="", seconds=seconds)
        for line in plan.lines
    ]
    states = [texts.encode_text(prompt).cpu() for prompt in prompts]
    lyrics = texts.embed_lyrics(lyric_text("", "unknown")).cpu()
    del texts
    encoder = load_condition_encoder(checkpoint, dtype=dtype, device=device)
    reference = load_silence(checkpoint)[None, : checkpoint.config.timbre_fix_frame]
    context = silent_context(checkpoint, plan.frames)[0]
    return [
        Words(
            line,
            encode_conditions(encoder, state, lyrics, reference)[0].float().cpu(),
            context,
            _digest_of(prompt.encode()),
        )
        for line, prompt, state in zip(plan.lines, prompts, states, strict=True)
    ]


class Preview:
    """Plays the same words with whatever a decoder is at the moment.

    Args:
        plan: what was found.
        words: one sample each.
        playback: steps, shift and guidance.
        checkpoint: of the model.
        seed: of the noise.
        folder: where the samples and the page to listen go.
        dtype, device: in which and where the VAE computes.
        offload: keep the VAE on the CPU except while it is used.
    """

    def __init__(
        self,
        plan: PreviewPlan,
        words: Iterable[Words],
        playback: Playback,
        *,
        checkpoint: Checkpoint,
        seed: int,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        offload: bool,
    ) -> None:
        self.plan, self.folder = plan, folder
        self._words = list(words)
        self._playback = playback
        self._model = checkpoint.name
        self._steps = plan_timesteps(playback.steps, playback.shift, is_turbo=checkpoint.config.is_turbo)
        self._seed, self._device, self._offload = seed, device, offload
        self._precision = str(dtype).removeprefix("torch.")
        self._vae = load_vae(plan.vae, dtype=dtype, device="cpu" if offload else device)

    def set_aside_later(self, epoch: int) -> list[Path]:
        """Rename what was made after an epoch, before the run went back to it; return the new names."""
        return set_aside_later(self.folder, epoch)

    def has_made(self, epoch: int) -> bool:
        """Whether all samples of an epoch are there, from these words and this noise; epoch 0 is the base model."""
        return all(self._belongs(self._path(epoch, number), number) for number in range(1, len(self._words) + 1))

    def make(
        self, decoder: Decoder, null_condition: Tensor, epoch: int, should_stop: Callable[[], bool] = lambda: False
    ) -> list[Made]:
        """Write the samples of an epoch, and the page anew.

        Args:
            decoder: in eval mode.
            null_condition: (1, 1, E).
            epoch: the last finished one; 0 where the decoder plays as the base model.
            should_stop: asked before each sample; when true, nothing is written.

        Raises:
            UserError, OSError: when a file cannot be written.
        """
        songs = []
        for number, words in enumerate(self._words, 1):
            if should_stop():
                return []
            songs.append(self._sample(decoder, null_condition, number, words))
        made = []
        with self._vae_at_work() as vae:
            for number, (words, latents) in enumerate(zip(self._words, songs, strict=True), 1):
                waveform = decode_latents(vae, latents, samples=self.plan.samples)
                path = self._path(epoch, number)
                tags = {"title": f"{words.title} ({'base model' if epoch == 0 else f'epoch {epoch}'})"}
                tags["comment"] = json.dumps({"woodshed": __version__, "epoch": epoch, **self._recipe(number)})
                write_sound(path, waveform, sample_rate=self.plan.sample_rate, tags=tags)
                made.append(Made(path, number, words.title, waveform.shape[1] / self.plan.sample_rate))
        self._write_page(epoch)
        return made

    def _write_page(self, epoch: int) -> None:
        numbers = {self._path(0, number).name: number for number in range(1, len(self._words) + 1)}
        playback = self._playback
        write_page(
            self.folder,
            {name: self._words[number - 1].title for name, number in numbers.items()},
            epoch,
            about=f"{self.folder.parent.name}, on {self._model}: {playback.steps} steps, shift {playback.shift:g}, "
            f"guidance {playback.guidance:g}, seed {self._seed}",
            belongs=lambda path: self._belongs(path, numbers[path.name]),
        )

    def _recipe(self, number: int) -> dict[str, Any]:
        """Return what makes a sample what it is, but for the adapter, as JSON values."""
        playback, words = self._playback, self._words[number - 1]
        return {
            "model": self._model,
            "words": words.digest,
            "seed": self._seed + number - 1,
            "seconds": self.plan.samples / self.plan.sample_rate,
            "steps": playback.steps,
            "shift": playback.shift,
            "guidance": playback.guidance,
            "precision": self._precision,
        }

    def _belongs(self, path: Path, number: int) -> bool:
        """Tell whether a file is there and was made from these words and this noise."""
        if not path.is_file():
            return False
        try:
            found = json.loads(read_tags(path).get("comment", ""))
        except (UserError, ValueError, RecursionError):
            return False
        wanted = self._recipe(number)
        return isinstance(found, dict) and all(found.get(name) == value for name, value in wanted.items())

    def _sample(self, decoder: Decoder, null_condition: Tensor, number: int, words: Words) -> Tensor:
        """Return the (T, C) latents of one sample."""
        frames, channels = len(words.context), words.context.shape[1] // 2
        return sample_latents(
            decoder,
            conditions=words.conditions[None].to(self._device),
            context=words.context[None].to(self._device),
            noise=draw_noise(self._seed + number - 1, frames, channels).to(self._device),
            timesteps=self._steps,
            null_condition=null_condition,
            guidance=Guidance(self._playback.guidance),
        )[0]

    @contextmanager
    def _vae_at_work(self) -> Iterator[AutoencoderOobleck]:
        """Bring the VAE to the device, and where it may not stay, away again."""
        if not self._offload:
            yield self._vae
            return
        try:
            yield self._vae.to(self._device)
        finally:
            self._vae.to("cpu")

    def _path(self, epoch: int, number: int) -> Path:
        words = re.sub(r"[^a-z0-9]+", "-", self._words[number - 1].title.lower()).strip("-")[:40]
        return self.folder / version_folder(epoch) / f"{number}-{words or 'sample'}.{self.plan.format}"
