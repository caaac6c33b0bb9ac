"""The passes of preprocessing: what each part of the model does to each song."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from woodshed.data import audio
from woodshed.data.ahead import ShouldStop, ahead
from woodshed.data.dataset import record_of
from woodshed.data.digests import digest
from woodshed.data.events import EncodeEvent, Notice, SongDone, SongFailed
from woodshed.data.jobs import Job, Work, is_as_long
from woodshed.data.latents import encode_waveform
from woodshed.data.loudness import normalized
from woodshed.data.manifest import OUR_RECORD
from woodshed.data.songs import listed
from woodshed.data.tensor_files import read_tensors, write_tensors
from woodshed.errors import DataError, UserError
from woodshed.models.devices import why_not_compile
from woodshed.models.encoders import (
    ConditionEncoder,
    TextEncoder,
    encode_conditions,
    encode_padded_conditions,
)
from woodshed.models.load import load_condition_encoder, load_silence, load_text_encoder, load_vae
from woodshed.models.vae import fuse_encoder

Songs = Generator[tuple[Job, Any], None, None]
"""Songs with what is prepared of each."""
Steps = Generator[EncodeEvent, None, list[Job]]
"""Events on the way; in the end the songs that came through."""
SOUND_AHEAD = 2**30  # bytes of decoded sound that may wait for the VAE, beside one song that is longer
WORTH_COMPILING = 8 * 3600.0
"""Seconds of music: compiling takes 12 s and saves a sixth of the time, see docs/performance.md."""
UNKNOWN_SECONDS = 600.0  # taken for a song whose header does not say its length


@dataclass(frozen=True)
class Sound:
    """A song as the VAE hears it."""

    waveform: Tensor  # (2, S)
    is_cut: bool  # whether the song goes on after that


def encode_songs(work: Work, jobs: list[Job]) -> Iterator[EncodeEvent]:
    """Take songs through both passes; one that fails is left out of what follows."""
    _free_memory(work.device)
    jobs = yield from _first_pass(work, jobs)
    _free_memory(work.device)
    if jobs:
        yield from _second_pass(work, jobs)
        _free_memory(work.device)


def _first_pass(work: Work, jobs: list[Job]) -> Steps:
    """Audio to latents, text to hidden states. With `offload_encoder` only the part at work is on the device."""
    waiting_room = torch.device("cpu") if work.settings.offload_encoder else work.device
    vae = load_vae(work.found.require_vae(), dtype=work.dtype, device=work.device)
    texts = load_text_encoder(work.found.require_text_encoder(), dtype=work.dtype, device=waiting_room)
    yield from map(Notice, _fuse(work, vae, jobs))
    jobs = yield from _each(work, _sounds(work, jobs), len(jobs), "audio", partial(_encode_audio, work, vae))
    yield from _length_notice(work, jobs)
    vae.to(waiting_room)
    _free_memory(work.device)
    texts.to(work.device)
    jobs = yield from _each(work, _alone(jobs), len(jobs), "text", partial(_encode_text, work, texts))
    yield from _cut_notices(work, jobs)
    return jobs


def _fuse(work: Work, vae: AutoencoderOobleck, jobs: list[Job]) -> Iterator[str]:
    """Let the compiler make the VAE's kernels where that was asked for or pays; on CUDA say what `auto` came to."""
    asked = work.settings.compile
    if asked == "no" or (asked == "auto" and work.device.type != "cuda"):
        return
    reason = why_not_compile(work.device) or (_why_not_worth_it(jobs) if asked == "auto" else None)
    if reason is None and (failed := fuse_encoder(vae)) is not None:
        yield f"The VAE's kernels cannot be compiled here, so it goes without: {failed}"
    elif asked == "auto":
        yield f"compile: auto -> no ({reason})" if reason else "compile: auto -> yes"


def _why_not_worth_it(jobs: list[Job]) -> str | None:
    """Return why so little music is encoded sooner without waiting for the compiler; None where there is enough."""
    music = 0.0
    for job in jobs:
        with suppress(DataError, OSError):  # what is wrong with a song is said when its turn comes
            music += audio.probe(job.song.path).seconds or UNKNOWN_SECONDS
        if music >= WORTH_COMPILING:
            return None
    return f"{music / 60:.0f} minutes of music are too few to wait for the compiler"


def _second_pass(work: Work, jobs: list[Job]) -> Steps:
    """Hidden states to conditions, and the songs' files."""
    encoder = load_condition_encoder(work.checkpoint, dtype=work.dtype, device=work.device)
    silence = load_silence(work.checkpoint)
    encode = partial(_encode_conditions, work, encoder, silence)
    return (yield from _each(work, _alone(jobs), len(jobs), "conditions", encode))


def _each(work: Work, songs: Songs, total: int, step: str, encode: Callable[[Job, Any], None]) -> Steps:
    """Take every song, with what is prepared of it, through a step; return those that came through."""
    through: list[Job] = []
    with work.clock.step(), closing(songs):
        for number, (job, prepared) in enumerate(songs, 1):
            try:
                encode(job, prepared)
            except DataError as error:
                yield from map(SongFailed, error.problems)
                continue
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"Out of memory on the device at {job.song.path} ({step}). What is done is kept: run the same "
                    "command again with --offload-encoder, --precision bf16 or --device cpu, or end what else uses "
                    "the device."
                ) from error
            finally:
                _note_peak(work, step)
            through.append(job)
            yield SongDone(step, job.name, number, total, job.seconds)
    return through


def _note_peak(work: Work, step: str) -> None:
    """Note how much of a card's memory a step has taken so far; `_free_memory` begins a new count."""
    if work.device.type == "cuda":
        work.clock.peaks[step] = torch.cuda.max_memory_allocated(work.device)


def _alone(jobs: list[Job]) -> Songs:
    """Yield songs of which nothing is prepared."""
    yield from ((job, None) for job in jobs)


def _sounds(work: Work, jobs: list[Job]) -> Songs:
    """Yield every song with its future sound, decoded by threads while the VAE is at work on others."""
    return ahead(partial(_hear, work), jobs, room=SOUND_AHEAD, weigh=partial(_weight, work))


def _weight(work: Work, job: Job) -> float:
    """Return the bytes that a song takes while it is decoded: its sound, and the pieces that it is made of."""
    try:
        seconds = audio.probe(job.song.path).seconds or UNKNOWN_SECONDS
    except (DataError, OSError):
        return 0.0
    if work.settings.max_duration:
        seconds = min(seconds, work.settings.max_duration)
    return seconds * audio.SAMPLE_RATE * 2 * torch.float32.itemsize * 2


def _hear(work: Work, job: Job, should_stop: ShouldStop) -> Sound | dict[str, Any]:
    """Return a song's sound, or what an interrupted run or an older one with other words has already made of it."""
    stored = _read_unfinished(_latents_file(work, job), _made_of(work, job)) or _read_older(work, job)
    if stored is not None:
        return stored
    one_more = (work.longest + 1) / audio.SAMPLE_RATE if work.longest else 0  # tells whether there is more to it
    waveform = audio.decode(job.song.path, max_seconds=one_more, should_stop=should_stop)
    is_cut = work.longest is not None and waveform.shape[1] > work.longest
    return Sound(normalized(waveform[:, : work.longest], work.settings.normalize), is_cut)


def _latents_file(work: Work, job: Job) -> Path:
    return work.unfinished / f"{job.name}.latents.pt"


def _made_of(work: Work, job: Job) -> str:
    """Return a digest of what a song's latents are made of."""
    return digest(job.audio_digest, work.sound_digest, str(work.longest))


def _encode_audio(work: Work, vae: AutoencoderOobleck, job: Job, heard: "Future[Sound | dict[str, Any]]") -> None:
    """Audio to latents, unless an interrupted run has already done it."""
    stored = heard.result()
    if isinstance(stored, Sound):
        stored = {"made_of": _made_of(work, job), **_encode_sound(work, vae, job, stored)}
        write_tensors(_latents_file(work, job), stored)
    job.seconds, job.is_cut = stored["seconds"], stored["is_cut"]
    job.facts["frames"] = len(stored["latents"])


def _encode_sound(work: Work, vae: AutoencoderOobleck, job: Job, sound: Sound) -> dict[str, Any]:
    """Return a song's latents, and how much of it they hold."""
    generator = torch.Generator().manual_seed(_song_seed(work.settings.seed, job))
    with work.clock.at_work():
        posterior = encode_waveform(vae, sound.waveform)
    latents = posterior.mean if work.settings.latents == "mean" else posterior.sample(generator)
    _refuse_non_finite(job, latents.to(work.dtype), "latents")
    return {"latents": latents, "seconds": sound.waveform.shape[1] / audio.SAMPLE_RATE, "is_cut": sound.is_cut}


def _song_seed(seed: int, job: Job) -> int:
    """Return a seed that depends on the user's and on the song's sound, so that no order of songs matters."""
    return int(digest(str(seed), job.audio_digest)[:15], 16)


def _read_unfinished(path: Path, made_of: str) -> dict[str, Any] | None:
    """Return an intermediate result that fits, or None."""
    try:
        stored = read_tensors(path)
    except DataError:
        return None  # missing or damaged: made again
    return stored if isinstance(stored, dict) and stored.get("made_of") == made_of else None


def _read_older(work: Work, job: Job) -> dict[str, Any] | None:
    """Return the latents of a finished song whose words or model have changed since, or None; keep them at hand."""
    try:
        content = read_tensors(work.output / f"{job.name}.pt")
    except DataError:
        return None
    record = record_of(content)
    sound = (record.get("audio"), record.get("sound"))
    if sound != (job.audio_digest, work.sound_digest) or not is_as_long(work, record):
        return None
    known = {"seconds": record["seconds"], "is_cut": record["is_cut"]}
    stored = {"made_of": _made_of(work, job), "latents": content["target_latents"], **known}
    write_tensors(_latents_file(work, job), stored)
    return stored


def _encode_text(work: Work, texts: TextEncoder, job: Job, _: None) -> None:
    """Prompt and lyrics to hidden states."""
    prompt, lyrics = work.texts(job)
    prompt_limit, lyric_limit = work.wording.limits
    padded = work.settings.conditioning == "legacy"
    job.facts["prompt_tokens"] = texts.count_tokens(prompt)
    job.facts["lyric_tokens"] = texts.count_tokens(lyrics)
    with work.clock.at_work():
        states = {
            "prompt": texts.encode_text(prompt, prompt_limit, padded=padded).cpu(),
            "lyrics": texts.embed_lyrics(lyrics, lyric_limit, padded=padded).cpu(),
        }
    write_tensors(work.unfinished / f"{job.name}.text.pt", states)


def _length_notice(work: Work, jobs: list[Job]) -> Iterator[Notice]:
    """Say which songs are cut."""
    cut = [job.song.path.name for job in jobs if job.is_cut]
    if cut:
        limit = f"{work.settings.max_duration:g} seconds (--max-duration)"
        yield Notice(f"{len(cut)} songs are longer than {limit} and are cut there: {listed(cut)}.")


def _cut_notices(work: Work, jobs: list[Job]) -> Iterator[Notice]:
    """Say whose words do not fit into what the model reads."""
    for what, limit in zip(("prompt", "lyric"), work.wording.limits, strict=True):
        for job in jobs:
            count = job.facts[f"{what}_tokens"]
            if count > limit:
                lost = count - limit
                yield Notice(
                    f"{job.song.path.name}: the {what} has {count} tokens; the model reads {limit}, {lost} are cut."
                )


def _encode_conditions(work: Work, encoder: ConditionEncoder, silence: Tensor, job: Job, _: None) -> None:
    """Hidden states to conditions, and everything into the song's file.

    All of the source is silence and all of the chunk mask one: everything is to be made.
    """
    latents = read_tensors(_latents_file(work, job))["latents"]
    states = read_tensors(work.unfinished / f"{job.name}.text.pt")
    with work.clock.at_work():
        conditions, mask = _conditions(work, encoder, silence, job, states)
    _refuse_non_finite(job, conditions, "conditions")
    source = silence.repeat(-(-len(latents) // len(silence)), 1)[: len(latents)]
    sample = {
        "target_latents": latents.to(work.dtype),
        "attention_mask": torch.ones(len(latents), dtype=work.dtype),
        "encoder_hidden_states": conditions.to(work.dtype),
        "encoder_attention_mask": mask,
        "context_latents": torch.cat([source, torch.ones_like(source)], dim=1).to(work.dtype),
        "metadata": _metadata(work, job),
    }
    write_tensors(work.output / f"{job.name}.pt", sample)


def _conditions(
    work: Work, encoder: ConditionEncoder, silence: Tensor, job: Job, states: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return (L, E) conditions and (L,) which of them are valid, on the CPU.

    The reference is silence, as at inference without one; older trainers took a single frame of zeros.
    """
    prompt, lyrics = states["prompt"], states["lyrics"]
    if work.settings.conditioning == "inference":
        reference = silence[None, : work.checkpoint.config.timbre_fix_frame]
        conditions = encode_conditions(encoder, prompt, lyrics, reference)[0].cpu()
        return conditions, torch.ones(len(conditions), dtype=torch.bool)
    counts = (job.facts["prompt_tokens"], job.facts["lyric_tokens"])
    valid = map(min, counts, work.wording.limits)
    padded, mask = encode_padded_conditions(encoder, prompt, lyrics, torch.zeros(1, 1, silence.shape[1]), *valid)
    return padded[0].cpu(), mask[0].cpu()


def _metadata(work: Work, job: Job) -> dict[str, Any]:
    """Return the plain facts that other tools expect in a sample file, and our own record of its making."""
    song = job.song
    return {
        "audio_path": song.path.as_posix(),
        "filename": song.path.name,
        "caption": song.caption,
        "lyrics": song.lyrics,
        "duration": int(job.seconds),
        "bpm": song.bpm,
        "keyscale": song.keyscale,
        "timesignature": song.timesignature,
        "language": song.language or work.settings.language,
        "genre": song.genre,
        "is_instrumental": song.is_instrumental,
        "custom_tag": song.custom_tag or work.wording.custom_tag,
        "prompt_override": song.prompt_override,
        OUR_RECORD: work.record(job),
    }


def _refuse_non_finite(job: Job, values: Tensor, what: str) -> None:
    if not values.isfinite().all():
        raise DataError(
            f"{job.song.path}: the model made {what} that are no finite numbers. "
            "Try --precision fp32, or remove the song."
        )


def _free_memory(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
