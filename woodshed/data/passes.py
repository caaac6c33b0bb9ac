"""The passes of preprocessing: what each part of the model does to each song."""

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from woodshed.data import audio
from woodshed.data.events import EncodeEvent, Notice, SongDone, SongFailed
from woodshed.data.jobs import Job, Work, digest
from woodshed.data.latents import encode_waveform
from woodshed.data.loudness import normalized
from woodshed.data.manifest import OUR_RECORD, UNFINISHED
from woodshed.data.songs import listed
from woodshed.data.tensor_files import read_tensors, write_tensors
from woodshed.errors import DataError, UserError
from woodshed.models.encoders import (
    MAX_LYRIC_TOKENS,
    MAX_PROMPT_TOKENS,
    ConditionEncoder,
    TextEncoder,
    encode_conditions,
)
from woodshed.models.load import load_condition_encoder, load_silence, load_text_encoder, load_vae

Steps = Generator[EncodeEvent, None, list[Job]]
"""Events on the way; in the end the songs that came through."""


def encode_songs(work: Work, jobs: list[Job]) -> Iterator[EncodeEvent]:
    """Take songs through both passes; one that fails is left out of what follows."""
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
    jobs = yield from _each(jobs, "audio", partial(_encode_audio, work, vae))
    yield from _length_notice(work, jobs)
    vae.to(waiting_room)
    texts.to(work.device)
    jobs = yield from _each(jobs, "text", partial(_encode_text, work, texts))
    yield from _cut_notices(jobs)
    return jobs


def _second_pass(work: Work, jobs: list[Job]) -> Steps:
    """Hidden states to conditions, and the songs' files."""
    encoder = load_condition_encoder(work.checkpoint, dtype=work.dtype, device=work.device)
    silence = load_silence(work.checkpoint)
    return (yield from _each(jobs, "conditions", partial(_encode_conditions, work, encoder, silence)))


def _each(jobs: list[Job], step: str, encode: Callable[[Job], None]) -> Steps:
    """Take every song through a step; return those that came through."""
    through: list[Job] = []
    for number, job in enumerate(jobs, 1):
        try:
            encode(job)
        except DataError as error:
            yield from map(SongFailed, error.problems)
            continue
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"Out of memory on the device at {job.song.path} ({step}). What is done is kept: run the same command "
                "again with --offload-encoder, --precision bf16 or --device cpu, or end what else uses the device."
            ) from error
        through.append(job)
        yield SongDone(step, job.name, number, len(jobs), job.seconds)
    return through


def _encode_audio(work: Work, vae: AutoencoderOobleck, job: Job) -> None:
    """Audio to latents, unless an interrupted run has already done it."""
    path = work.output / UNFINISHED / f"{job.name}.latents.pt"
    made_of = digest(job.audio_digest, work.settings_digest, str(work.longest))
    stored = _read_unfinished(path, made_of)
    if stored is None:
        stored = {"made_of": made_of, **_decode_and_encode(work, vae, job)}
        write_tensors(path, stored)
    job.seconds, job.is_cut = stored["seconds"], stored["is_cut"]
    job.facts["frames"] = len(stored["latents"])


def _decode_and_encode(work: Work, vae: AutoencoderOobleck, job: Job) -> dict[str, Any]:
    """Return a song's latents, and how much of it they hold."""
    one_more = (work.longest + 1) / audio.SAMPLE_RATE if work.longest else 0  # tells whether there is more to it
    waveform = audio.decode(job.song.path, max_seconds=one_more)
    is_cut = work.longest is not None and waveform.shape[1] > work.longest
    waveform = normalized(waveform[:, : work.longest], work.settings.normalize)
    generator = torch.Generator().manual_seed(_song_seed(work.settings.seed, job))
    posterior = encode_waveform(vae, waveform)
    latents = posterior.mean if work.settings.latents == "mean" else posterior.sample(generator)
    _refuse_non_finite(job, latents.to(work.dtype), "latents")
    return {"latents": latents, "seconds": waveform.shape[1] / audio.SAMPLE_RATE, "is_cut": is_cut}


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


def _encode_text(work: Work, texts: TextEncoder, job: Job) -> None:
    """Prompt and lyrics to hidden states."""
    prompt, lyrics = work.texts(job)
    job.facts["prompt_tokens"] = texts.count_tokens(prompt)
    job.facts["lyric_tokens"] = texts.count_tokens(lyrics)
    states = {"prompt": texts.encode_text(prompt).cpu(), "lyrics": texts.embed_lyrics(lyrics).cpu()}
    write_tensors(work.output / UNFINISHED / f"{job.name}.text.pt", states)


def _length_notice(work: Work, jobs: list[Job]) -> Iterator[Notice]:
    """Say which songs are cut."""
    cut = [job.song.path.name for job in jobs if job.is_cut]
    if cut:
        limit = f"{work.settings.max_duration:g} seconds (--max-duration)"
        yield Notice(f"{len(cut)} songs are longer than {limit} and are cut there: {listed(cut)}.")


def _cut_notices(jobs: list[Job]) -> Iterator[Notice]:
    """Say whose words do not fit into what the model reads."""
    for what, limit in (("prompt", MAX_PROMPT_TOKENS), ("lyric", MAX_LYRIC_TOKENS)):
        for job in jobs:
            count = job.facts[f"{what}_tokens"]
            if count > limit:
                lost = count - limit
                yield Notice(
                    f"{job.song.path.name}: the {what} has {count} tokens; the model reads {limit}, {lost} are cut."
                )


def _encode_conditions(work: Work, encoder: ConditionEncoder, silence: Tensor, job: Job) -> None:
    """Hidden states to conditions, and everything into the song's file.

    The reference is silence, as at inference without one; all of the source is silence and all of the chunk mask one:
    everything is to be made.
    """
    folder = work.output / UNFINISHED
    latents = read_tensors(folder / f"{job.name}.latents.pt")["latents"]
    states = read_tensors(folder / f"{job.name}.text.pt")
    reference = silence[None, : work.checkpoint.config.timbre_fix_frame]
    conditions = encode_conditions(encoder, states["prompt"], states["lyrics"], reference)[0].cpu()
    _refuse_non_finite(job, conditions, "conditions")
    source = silence.repeat(-(-len(latents) // len(silence)), 1)[: len(latents)]
    sample = {
        "target_latents": latents.to(work.dtype),
        "attention_mask": torch.ones(len(latents), dtype=work.dtype),
        "encoder_hidden_states": conditions.to(work.dtype),
        "encoder_attention_mask": torch.ones(len(conditions), dtype=torch.bool),
        "context_latents": torch.cat([source, torch.ones_like(source)], dim=1).to(work.dtype),
        "metadata": _metadata(work, job),
    }
    write_tensors(work.output / f"{job.name}.pt", sample)


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
    if device.type == "cuda":
        torch.cuda.empty_cache()
