"""`generate`: from words to sound files, by the base model and with adapters."""

import hashlib
import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from woodshed import __version__
from woodshed.errors import UserError
from woodshed.models.checkpoints import Checkpoint
from woodshed.models.encoders import MAX_LYRIC_TOKENS, MAX_PROMPT_TOKENS, encode_conditions
from woodshed.models.load import load_null_condition, load_silence
from woodshed.sampling.events import Finished, GenerateEvent, Notice, Sampled, Started, Written
from woodshed.sampling.parts import Parts
from woodshed.sampling.plan import Plan, Version, prepare, read_lyrics
from woodshed.sampling.sampler import Guidance, draw_noise, plan_timesteps, walk
from woodshed.sampling.waveform import decode_latents, write_sound
from woodshed.settings.schema import GenerateSettings

Words = dict[str, Tensor]


def generate(settings: GenerateSettings) -> Iterator[GenerateEvent]:
    """Make a song, in one version for each adapter.

    A song shorter than 128 latent frames (5.12 s) is sampled at that length, as the original does, and cut afterwards.

    Yields:
        Started, then Notice, Sampled and Written as they happen, then Finished.

    Raises:
        UserError: for everything that is wrong before the model is loaded, all at once; and when memory or disk run
            out.
    """
    started_at = time.monotonic()
    plan = prepare(settings)
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    precision = str(plan.dtype).removeprefix("torch.")
    yield Started(plan.checkpoint.name, str(plan.device), precision, len(plan.versions), settings.duration)
    yield from map(Notice, plan.notices)
    with _saying_what_ran_out(plan):
        parts = Parts(plan)
        words, said = encode_words(plan, parts)
        yield from map(Notice, said)
        conditions = encode_versions(plan, parts, words)
        for number, version in enumerate(plan.versions, 1):
            latents = yield from sample_version(plan, parts, version, number, conditions[version.prompt])
            write_version(plan, parts, version, latents)
            yield Written(version.name, version.output)
    peak = torch.cuda.max_memory_allocated(plan.device) if plan.device.type == "cuda" else None
    yield Finished(tuple(version.output for version in plan.versions), time.monotonic() - started_at, peak)


@contextmanager
def _saying_what_ran_out(plan: Plan) -> Iterator[None]:
    """Turn the two failures that nobody can foresee into advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        ways = [] if plan.settings.offload_encoder else ["--offload-encoder"]
        ways += [f"a shorter song (--duration {plan.settings.duration / 2:g})"]
        raise UserError(f"{plan.device} ran out of memory. Try, in this order: {', '.join(ways)}.") from error
    except OSError as error:
        raise UserError(f"A file cannot be written or read: {error}.") from error


def encode_words(plan: Plan, parts: Parts) -> tuple[Words, list[str]]:
    """Return the text encoder's states of every prompt, the lyrics' embeddings under "", and what was cut."""
    texts = parts.text_encoder()
    counts = [("prompt", texts.count_tokens(version.prompt), MAX_PROMPT_TOKENS) for version in plan.versions]
    counts.append(("lyrics", texts.count_tokens(plan.lyrics), MAX_LYRIC_TOKENS))
    said = [
        f"{what}: {count} tokens, of which the model reads {limit}; {count - limit} are cut."
        for what, count, limit in dict.fromkeys(counts)
        if count > limit
    ]
    states = {version.prompt: texts.encode_text(version.prompt) for version in plan.versions}
    return {**states, "": texts.embed_lyrics(plan.lyrics)}, said


def encode_versions(plan: Plan, parts: Parts, words: Words) -> dict[str, Tensor]:
    """Return the (1, L, E) conditions of every prompt; the reference is silence, as at inference without a song."""
    encoder = parts.condition_encoder()
    reference = load_silence(plan.checkpoint)[None, : plan.checkpoint.config.timbre_fix_frame]
    return {
        prompt: encode_conditions(encoder, states, words[""], reference) for prompt, states in words.items() if prompt
    }


def silent_context(checkpoint: Checkpoint, frames: int) -> Tensor:
    """Return the (1, T, 2 C) context of a song of which nothing is there yet: silence, and a mask of ones."""
    silence = load_silence(checkpoint)
    source = silence.repeat(-(-frames // len(silence)), 1)[:frames]
    return torch.cat([source, torch.ones_like(source)], dim=1)[None]


def sample_version(
    plan: Plan, parts: Parts, version: Version, number: int, conditions: Tensor
) -> Generator[GenerateEvent, None, Tensor]:
    """Walk from noise to a version's latents, (T, C).

    Yields:
        Sampled after each step.
    """
    playback, checkpoint = version.playback, plan.checkpoint
    steps = plan_timesteps(playback.steps, playback.shift, is_turbo=checkpoint.config.is_turbo)
    noise = draw_noise(plan.settings.seed, plan.frames, checkpoint.config.latent_channels)
    interval = plan.settings.guidance_interval
    walking = walk(
        parts.decoder(version),
        conditions=conditions,
        context=silent_context(checkpoint, plan.frames).to(plan.device),
        noise=noise.to(plan.device),
        timesteps=steps,
        null_condition=load_null_condition(checkpoint, dtype=plan.dtype, device=plan.device),
        guidance=Guidance(playback.guidance, (interval[0], interval[1])),
    )
    latents = noise
    for step, reached in enumerate(walking, 1):
        latents = reached
        yield Sampled(version.name, number, step, len(steps))
    return latents[0]


def write_version(plan: Plan, parts: Parts, version: Version, latents: Tensor) -> None:
    """Decode a version's latents and write them, with what repeats them in the file's tags."""
    waveform = decode_latents(parts.vae(), latents, samples=plan.samples)
    tags = {"title": version.caption, "comment": json.dumps(song_recipe(plan, version))}
    write_sound(version.output, waveform, sample_rate=plan.sample_rate, tags=tags)


def song_recipe(plan: Plan, version: Version) -> dict[str, Any]:
    """Return what made a song, as JSON values: enough to make it again."""
    settings = plan.settings
    recipe: dict[str, Any] = {
        "woodshed": __version__,
        "model": plan.checkpoint.name,
        "prompt": version.caption,
        "lyrics": "" if settings.instrumental else read_lyrics(settings.lyrics),
    }
    said = ("language", "bpm", "keyscale", "timesignature", "duration", "seed", "guidance_interval")
    recipe |= settings.model_dump(mode="json", include=set(said))
    recipe |= {
        "steps": version.playback.steps,
        "shift": version.playback.shift,
        "guidance": version.playback.guidance,
        "precision": str(plan.dtype).removeprefix("torch."),
    }
    if version.adapter is not None:
        with version.adapter.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        recipe |= {"adapter": version.name, "adapter_sha256": digest, "strength": settings.strength}
    return recipe
