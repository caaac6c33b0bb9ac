"""Songs to tensors: `preprocess` turns a folder of music into a folder that trains.

Two passes, so that the parts of the model are in memory one after the other: VAE and text encoder first, then the
condition encoder. A song's result appears whole or not at all, and an interrupted run goes on where it stopped.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from woodshed import __version__
from woodshed.data.catalogue import find_songs
from woodshed.data.digests import weights_digest
from woodshed.data.events import EncodeEvent, Finished, Found, Notice, SongDone, SongFailed
from woodshed.data.jobs import Job, Work, is_done, list_jobs
from woodshed.data.manifest import MANIFEST, OUR_RECORD, shard_manifests, unfinished_folders, write_manifest
from woodshed.data.passes import encode_songs
from woodshed.data.shards import Shard, choose_shard, songs_digest
from woodshed.errors import CheckpointError, DataError, UserError, collecting
from woodshed.models.checkpoints import CheckpointRoot, choose_model, find_checkpoints, fingerprint
from woodshed.models.devices import resolve_device, resolve_precision, why_not_compile
from woodshed.models.load import load_silence
from woodshed.settings.schema import PreprocessSettings


def preprocess(settings: PreprocessSettings) -> Iterator[EncodeEvent]:
    """Encode songs for a model.

    Yields:
        Found, then Notice, SongDone and SongFailed as they happen, then Finished.

    Raises:
        UserError: for everything that is wrong before the first song, all at once; and when no song could be encoded.
    """
    started_at = time.monotonic()
    work = prepare(settings)
    jobs, failures = yield from list_jobs(work)
    if work.shard.number == 1:  # what is wrong with the words is said once
        failures += [DataError(*item.problems) for item in work.songs.unusable]
    good = {job.name for job in jobs if is_done(work, job)}
    waiting = [job for job in jobs if job.name not in good]
    unchanged = len(good)
    shard = "" if work.shard.is_whole else str(work.shard)
    precision = str(work.dtype).removeprefix("torch.")
    yield Found(len(jobs) + len(failures), unchanged, str(work.device), precision, shard)
    yield from map(Notice, (*_shard_notices(work.shard), *work.songs.notices))
    yield from (SongFailed(problem) for failure in failures for problem in failure.problems)
    is_complete = False
    try:
        if waiting:
            for event in encode_songs(work, waiting):
                if isinstance(event, SongDone) and event.step == "conditions":
                    good.add(event.name)
                yield event
        is_complete = True
    finally:
        kept = [job for job in jobs if job.name in good]
        if kept or (shard and is_complete):
            _write_manifest(work, kept, is_complete=is_complete)
    failed = len(jobs) + len(failures) - len(kept)
    _clear_up(work)
    if not kept and (failed or not shard):
        raise DataError(f"No song could be encoded: all {failed} failed for the reasons above.")
    yield Finished(
        folder=work.output,
        encoded=len(kept) - unchanged,
        unchanged=unchanged,
        failed=failed,
        audio_seconds=sum(job.seconds for job in waiting if job.name in good),
        seconds=time.monotonic() - started_at,
        waited=work.clock.waited,
        peaks=work.clock.peaks,
        shard=shard,
    )


def _shard_notices(shard: Shard) -> tuple[str, ...]:
    if shard.is_whole or not shard.origin:
        return ()
    return (f"This is part {shard} of the songs, by {shard.origin}; --shard 1/1 takes all.",)


def _clear_up(work: Work) -> None:
    """Remove the intermediate results of this run; the whole dataset needs none of its parts any more either."""
    if work.shard.is_whole:
        for path in shard_manifests(work.output):
            path.unlink()
    for folder in unfinished_folders(work.output) if work.shard.is_whole else [work.unfinished]:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(settings: PreprocessSettings) -> Work:
    """Find model, device and songs.

    Raises:
        UserError: with everything that is wrong.
    """
    problems: list[str] = []
    device = dtype = found = checkpoint = songs = None
    shard = Shard()
    known = parts = ""
    with collecting(problems):
        shard = choose_shard(settings.shard, os.environ)
    with collecting(problems):
        device = resolve_device(_own_device(settings.device, shard))
        dtype = resolve_precision(settings.precision, device)
    if settings.compile == "yes" and device is not None and (hindrance := why_not_compile(device)) is not None:
        problems.append(f"--compile yes cannot work here: {hindrance}. Leave it at auto.")
    with collecting(problems):
        found = find_checkpoints(settings.checkpoint_dir)
        checkpoint = choose_model(found, settings.model)
        known = fingerprint(checkpoint)
        load_silence(checkpoint)  # needed only after hours of encoding, so it is looked at now
    with collecting(problems):
        parts = _parts_digest(found) if found else ""
    with collecting(problems):
        songs = find_songs(settings.audio_dir, settings.dataset_json, settings.metadata_csv)
    with collecting(problems):
        _refuse_unusable(settings.tensor_output)
    if problems:
        raise UserError(*problems)
    assert found is not None
    assert checkpoint is not None
    assert songs is not None
    assert device is not None
    assert dtype is not None
    return Work(settings, found, checkpoint, known, parts, songs, shard, device, dtype)


def _own_device(name: str, shard: Shard) -> str:
    """Return the card of this process where torchrun starts one for each; else what the settings say."""
    local = os.environ.get("LOCAL_RANK", "")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and shard.origin and local.isdecimal() and cards:
        return f"cuda:{int(local) % cards}"
    return name


def _parts_digest(found: CheckpointRoot) -> str:
    """Return a digest of the VAE and the text encoder: with others the same song gives other tensors.

    Raises:
        CheckpointError: naming everything that is missing.
    """
    problems: list[str] = []
    files: list[Path] = []
    for require in (found.require_vae, found.require_text_encoder):
        with collecting(problems):
            folder = require()
            files += sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
            files += [path for path in (folder / "tokenizer.json", folder / "config.json") if path.is_file()]
    if problems:
        raise CheckpointError(*problems)
    return weights_digest(files)


def _refuse_unusable(output: Path) -> None:
    """Refuse an output that is no folder, or that cannot be made or written."""
    nearest = next((folder for folder in (output, *output.absolute().parents) if folder.exists()), None)
    if nearest is None or not nearest.is_dir():
        raise DataError(f"The tensor output {output} cannot be made: {nearest} is no folder. Choose another.")
    if not os.access(nearest, os.W_OK):
        raise DataError(f"The tensor output {output} cannot be written: {nearest} is closed to you. Choose another.")


def _write_manifest(work: Work, jobs: list[Job], *, is_complete: bool) -> None:
    """Write what other tools read, and beside it for which model the songs are.

    A shard writes one of its own, with what `merge_shards` must know to make of all of them the one for the whole.
    """
    ours: dict[str, Any] = {
        "version": __version__,
        "model": work.checkpoint.name,
        "fingerprint": work.fingerprint,
        "conditioning": work.settings.conditioning,
        "is_complete": is_complete,
    }
    metadata = {
        "name": work.songs.name or work.output.name,
        "custom_tag": work.wording.custom_tag,
        "tag_position": work.wording.tag_position,
        "num_samples": len(jobs),
        "all_instrumental": all(job.song.is_instrumental for job in jobs),
        "genre_ratio": work.wording.genre_ratio,
    }
    if not work.shard.is_whole:
        metadata["name"] = work.songs.name
        ours["shard"] = {
            "number": work.shard.number,
            "count": work.shard.count,
            "places": [job.place for job in jobs],
            "songs": songs_digest(work.songs.songs),
            "settings": work.shared_settings_digest,
        }
    samples = [f"{job.name}.pt" for job in jobs]
    content = {"metadata": metadata, "samples": samples, "num_samples": len(jobs), OUR_RECORD: ours}
    path = work.output / f"{Path(MANIFEST).stem}{work.shard.suffix}.json"
    write_manifest(path, content)
