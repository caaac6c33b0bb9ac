"""The checkpoints and the dataset: what is there, what is missing, and what is damaged."""

from collections.abc import Iterator
from pathlib import Path

from woodshed.analysis.inspect_folders import inspect_dataset
from woodshed.analysis.inspect_model import inspect_model
from woodshed.analysis.report import folder_size
from woodshed.doctor.finding import Finding, problems
from woodshed.errors import UserError
from woodshed.models.checkpoints import (
    TEXT_ENCODER_FOLDER,
    VAE_FOLDER,
    Checkpoint,
    choose_model,
    find_checkpoints,
    find_weight_files,
)
from woodshed.models.config import read_json, read_vae_config
from woodshed.models.disk import gib
from woodshed.models.encoders import read_tokenizer
from woodshed.models.fetched import differences, read_record
from woodshed.models.weights import read_headers
from woodshed.settings.schema import DoctorSettings

SHARED = {VAE_FOLDER: "The VAE", TEXT_ENCODER_FOLDER: "The text encoder"}


def look_at_checkpoints(settings: DoctorSettings) -> Iterator[Finding]:
    """Look at every model below the checkpoint directory, and at what they share."""
    try:
        found = find_checkpoints(settings.checkpoint_dir)
    except UserError as error:
        yield from problems("checkpoints", error.problems)
        yield Finding(
            "checkpoints",
            "note",
            "ACE-Step's own models can be fetched.",
            f"woodshed models get base --checkpoint-dir {settings.checkpoint_dir}",
        )
        return
    if settings.model:
        try:
            choose_model(found, settings.model)
        except UserError as error:
            yield from problems("checkpoints", error.problems)
    for model in found.models:
        yield from _model(model)
        yield from _digests(model.folder, reads_all=settings.digests)
    for name, sentences in found.unusable.items():
        remedy = f"woodshed models get {name} --checkpoint-dir {settings.checkpoint_dir}"
        yield Finding("checkpoints", "problem", f"{name} cannot be used: {' '.join(sentences)}", remedy)
    for name, what in SHARED.items():
        yield from _shared(settings.checkpoint_dir, name, what)
        yield from _digests(settings.checkpoint_dir / name, reads_all=settings.digests)


def _model(model: Checkpoint) -> Iterator[Finding]:
    """Compare a model's files with what its config.json promises, tensor by tensor, without reading the weights."""
    try:
        report = inspect_model(model.folder)
    except UserError as error:
        yield from problems("checkpoints", error.problems)
        return
    if report.notices:
        yield from problems("checkpoints", report.notices)
        return
    size, files = "XL" if model.is_xl else "2B", len(model.weight_files)
    origin = "as published" if model.is_official else "a fine-tune"
    text = f"{model.name}: {model.kind}, {size}, {origin}, {gib(folder_size(model.folder))} in {files} weight file"
    yield Finding("checkpoints", "ok", f"{text}{'' if files == 1 else 's'}, every tensor there.")
    if model.kind == "unknown":
        text = f"{model.name} does not say what it descends from, which decides shift and steps for playing."
        yield Finding("checkpoints", "note", text, "Its page or its author says it; the wizard asks.")


def _shared(root: Path, name: str, what: str) -> Iterator[Finding]:
    """Look at the VAE or the text encoder."""
    folder = root / name
    remedy = f"woodshed models get {name} --checkpoint-dir {root}"
    if not folder.is_dir():
        text = f"{what} ({name}) is missing in {root}: training works, preprocessing and listening need it."
        yield Finding("checkpoints", "note", text, remedy)
        return
    try:
        files: tuple[Path, ...] = (folder / "diffusion_pytorch_model.safetensors",)
        if name == VAE_FOLDER:
            read_vae_config(folder)
        else:
            read_json(folder / "config.json")
            read_tokenizer(folder / "tokenizer.json")
            files = find_weight_files(folder)
        count = len(read_headers(files))
    except UserError as error:
        yield from (Finding("checkpoints", "problem", sentence, f"{remedy} --replace") for sentence in error.problems)
        return
    text = f"{what} ({name}): {gib(folder_size(folder))}, {count} tensors."
    yield Finding("checkpoints", "ok", text)


def _digests(folder: Path, *, reads_all: bool) -> Iterator[Finding]:
    """Compare a folder that `woodshed models get` fetched with what it noted."""
    try:
        record = read_record(folder)
        odd = [] if record is None else differences(folder, record, reads_all=reads_all)
    except UserError as error:
        yield from problems("checkpoints", error.problems)
        return
    if record is None:
        if reads_all and folder.is_dir():
            text = f"{folder.name} was not fetched by `woodshed models get`, so there are no digests to compare with."
            yield Finding("checkpoints", "note", text)
        return
    if odd:
        remedy = f"woodshed models get {folder.name} --checkpoint-dir {folder.parent} --replace"
        yield Finding("checkpoints", "problem", f"{folder.name} is not as it was fetched: {'; '.join(odd)}.", remedy)
    elif reads_all:
        yield Finding("checkpoints", "ok", f"{folder.name}: every byte is as {record.repository} publishes it.")


def look_at_dataset(folder: Path) -> Iterator[Finding]:
    """Look at a folder of preprocessed songs, whatever model it is for."""
    try:
        report = inspect_dataset(folder)
    except UserError as error:
        yield from problems("dataset", error.problems)
        return
    facts = report.facts
    text = f"{folder}: {facts['songs']} songs, {facts['seconds of music']:,} seconds, made for {facts['made for']}."
    yield Finding("dataset", "ok", text)
    for notice in report.notices:
        yield Finding("dataset", "note", notice)
