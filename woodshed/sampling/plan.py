"""What `woodshed generate` has to do, found and checked before anything large is loaded."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from woodshed.adapters.saved import SavedAdapter, read_adapter
from woodshed.adapters.targets import decoder_linear_shapes
from woodshed.data.conditioning import lyric_text, prompt_text
from woodshed.errors import AdapterError, UserError, collecting
from woodshed.models.checkpoints import Checkpoint, CheckpointRoot, choose_model, find_checkpoints
from woodshed.models.config import read_vae_config
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.sampling.recipes import Playback, Recipe, adapted_playback, playback_of, read_recipe, with_tag
from woodshed.sampling.waveform import CODECS
from woodshed.settings.schema import GenerateSettings
from woodshed.storage import unwritable

BASE = "base"
SMALLEST_FRAMES = 128
"""Shorter songs are sampled at this length and cut. Source: ACE-Step 1.5 inference."""
_RUN_PARTS = ("final", "checkpoint-")  # names of adapter folders that say nothing without the run they lie in


@dataclass(frozen=True)
class Version:
    """One version of the song: what is played, how, and where to."""

    name: str  # of the adapter, or "base"
    adapter: SavedAdapter | None
    path: Path | None  # of the adapter, as the user gave it
    caption: str  # with the trigger tag
    prompt: str  # all that the model reads
    playback: Playback
    output: Path


@dataclass(frozen=True)
class Plan:
    """A song in all its versions."""

    settings: GenerateSettings
    found: CheckpointRoot
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    versions: tuple[Version, ...]
    lyrics: str  # with their header
    frames: int  # latent frames that are sampled, at least 128
    samples: int  # that are kept of the sound
    sample_rate: int
    notices: tuple[str, ...]


def prepare(settings: GenerateSettings) -> Plan:
    """Look at model, device, adapters, lyrics and output.

    Raises:
        UserError: with every problem found.
    """
    problems: list[str] = []
    device = dtype = found = checkpoint = vae = None
    adapters: list[SavedAdapter] = []
    words = ""
    with collecting(problems):
        device = resolve_device(settings.device)
        dtype = resolve_precision(settings.precision, device)
    with collecting(problems):
        found = find_checkpoints(settings.checkpoint_dir)
        checkpoint = choose_model(found, settings.model)
    for part in (found.require_vae, found.require_text_encoder) if found else ():
        with collecting(problems):
            part()
    with collecting(problems):
        if found is not None and found.vae is not None:
            vae = read_vae_config(found.vae)
    for path in settings.adapter:
        with collecting(problems):
            adapters.append(_fitting_adapter(path, checkpoint))
    with collecting(problems):
        words = read_lyrics(settings.lyrics)
    problems += _output_problems(settings.output)
    if problems:
        raise UserError(*problems)
    assert device is not None
    assert dtype is not None
    assert found is not None
    assert checkpoint is not None
    assert vae is not None
    frames = math.ceil(settings.duration * vae.sampling_rate / math.prod(vae.downsampling_ratios))
    versions, notices = _versions(settings, checkpoint, adapters)
    return Plan(
        settings=settings,
        found=found,
        checkpoint=checkpoint,
        device=device,
        dtype=dtype,
        versions=versions,
        lyrics=lyric_text("" if settings.instrumental else words, settings.language),
        frames=max(frames, SMALLEST_FRAMES),
        samples=max(round(settings.duration * vae.sampling_rate), 1),
        sample_rate=vae.sampling_rate,
        notices=(*notices, *_idle_settings(settings, checkpoint, words)),
    )


def _fitting_adapter(path: Path, checkpoint: Checkpoint | None) -> SavedAdapter:
    """Read an adapter and see by its shapes whether it fits, so that the model need not be loaded first.

    Raises:
        AdapterError: when there is none, or it was made for a model of another size.
    """
    saved = read_adapter(path)
    if checkpoint is not None:
        shapes = {_flat(name): shape for name, shape in decoder_linear_shapes(checkpoint.config).items()}
        odd = [name for name in saved.modules if not _fits(saved.shape(name), shapes.get(_flat(name)))]
        if odd:
            raise AdapterError(
                f"{path} is for another model than {checkpoint.name}: {len(odd)} of its {len(saved.modules)} layers "
                f"do not exist there or have another shape, {odd[0]} first. Choose the model it was trained on."
            )
    return saved


def _flat(module: str) -> str:
    """Return a module's name as every kind of file can write it."""
    return module.removeprefix("lycoris_").replace(".", "_")


def _fits(wanted: Sequence[int], there: Sequence[int] | None) -> bool:
    """Compare two shapes; 0 fits any number."""
    return there is not None and all(size in (0, other) for size, other in zip(wanted, there, strict=True))


def read_lyrics(text: str) -> str:
    """Return the words themselves, or those in the file that `@FILE` names.

    Raises:
        UserError: when the file cannot be read.
    """
    if not text.startswith("@"):
        return text.strip()
    path = Path(text[1:])
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The lyrics in {path} cannot be read: {error}.") from error


def _output_problems(output: Path) -> list[str]:
    """Return why a song cannot be written, without writing anything."""
    problems = []
    if output.suffix.lower() not in CODECS:
        problems.append(f"The output {output} must end in .wav or .flac; got {output.suffix or 'no ending'}.")
    return problems + unwritable(output)


def _versions(
    settings: GenerateSettings, checkpoint: Checkpoint, adapters: Sequence[SavedAdapter]
) -> tuple[tuple[Version, ...], list[str]]:
    """Return one version for each adapter, and the base model's where there is none or a comparison is asked for.

    The base model's version has the words and the sampling of the first adapter's, so that nothing but the weights
    differs.
    """
    notices: list[str] = []
    names = version_names(settings.adapter)
    played: list[tuple[str, SavedAdapter | None, Path | None, Recipe, Playback]] = []
    for name, path, saved in zip(names, settings.adapter, adapters, strict=True):
        recipe, said = read_recipe(saved.recipe, name)
        playback, more = adapted_playback(recipe, checkpoint, name)
        used = _used_of_recipe(settings, recipe, playback)
        notices += [*said, *more, *([f"{name}: {used}, from its recipe."] if used else [])]
        notices += _tag_notice(settings, recipe, name)
        played.append((name, saved, path, recipe, playback))
    if not played:
        played.append((BASE, None, None, Recipe(), playback_of(checkpoint)))
    elif settings.compare:
        played.insert(0, (BASE, None, None, *played[0][3:]))
    is_alone = len(played) == 1
    versions = []
    for name, adapter, path_or_none, recipe, usual in played:
        caption = with_tag(settings.prompt, recipe.custom_tag if settings.tag else "", recipe.tag_position)
        output = settings.output if is_alone else settings.output.with_stem(f"{settings.output.stem}-{name}")
        playback = _chosen_playback(settings, usual, checkpoint)
        versions.append(Version(name, adapter, path_or_none, caption, _prompt(settings, caption), playback, output))
    return tuple(versions), notices


def version_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each adapter that tells it from the others and can be part of a file's name.

    >>> version_names([Path("drums/final"), Path("bass/final"), Path("flute.safetensors")])
    ['drums-final', 'bass-final', 'flute']
    """
    short = [_short_name(path.absolute()) for path in paths]
    taken: Counter[str] = Counter({BASE: 1})
    names = []
    for name in short:
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}-{taken[name]}")
    return names


def _short_name(path: Path) -> str:
    """Return what people call an adapter: its folder or file, after the run it lies in where only that says much."""
    while path.is_file() and path.name.startswith(("adapter_", "lokr_weights")):
        path = path.parent
    name = path.stem if path.suffix == ".safetensors" else path.name
    return f"{path.parent.name}-{name}" if name.startswith(_RUN_PARTS) and path.parent.name else name


def _used_of_recipe(settings: GenerateSettings, recipe: Recipe, playback: Playback) -> str:
    """Return what a recipe decides about the sampling, as words; nothing where the user or the model decides."""
    steps_used = settings.steps == "auto" and recipe.num_inference_steps == playback.steps
    shift_used = settings.shift == "auto" and recipe.shift == playback.shift
    used = [f"{playback.steps} steps"] if steps_used else []
    return " and ".join([*used, *([f"shift {playback.shift:g}"] if shift_used else [])])


def _tag_notice(settings: GenerateSettings, recipe: Recipe, name: str) -> list[str]:
    tag = recipe.custom_tag
    if not settings.tag or with_tag(settings.prompt, tag) == settings.prompt:
        return []
    where = {
        "prepend": "is put before the prompt",
        "append": "is put after the prompt",
        "replace": "was the whole caption of its songs, and is put before the prompt",
    }[recipe.tag_position]
    return [f"{name}: its trigger tag {tag} {where}; --no-tag leaves it out."]


def _chosen_playback(settings: GenerateSettings, usual: Playback, checkpoint: Checkpoint) -> Playback:
    """Put what the user chose in place of what is usual; turbo has no guidance."""
    guidance = usual.guidance if settings.guidance == "auto" or checkpoint.config.is_turbo else settings.guidance
    return Playback(
        usual.shift if settings.shift == "auto" else settings.shift,
        usual.steps if settings.steps == "auto" else settings.steps,
        guidance,
    )


def _prompt(settings: GenerateSettings, caption: str) -> str:
    return prompt_text(
        caption,
        bpm=str(settings.bpm or ""),
        timesignature=settings.timesignature,
        keyscale=settings.keyscale,
        seconds=settings.duration,
    )


def _idle_settings(settings: GenerateSettings, checkpoint: Checkpoint, words: str) -> list[str]:
    """Say which of the user's choices change nothing here, and why."""
    said = []
    if checkpoint.config.is_turbo and settings.guidance not in ("auto", 1):
        said.append(f"guidance has no effect: {checkpoint.name} is a turbo model, made to sample without.")
    if settings.compare and not settings.adapter:
        said.append("compare has no effect: there is no adapter to compare with.")
    if settings.strength != 1 and not settings.adapter:
        said.append("strength has no effect: there is no adapter.")
    if settings.instrumental and words:
        said.append("The song is to be instrumental, so its lyrics are left out.")
    return said
