"""Songs to tensors: `preprocess` turns a folder of music into a folder that trains.

Two passes, so that the parts of the model are in memory one after the other: VAE and text encoder first, then the
condition encoder. A song's result appears whole or not at all, and an interrupted run goes on where it stopped.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from woodshed import __version__
from woodshed.data.catalogue import find_songs
from woodshed.data.events import EncodeEvent, Finished, Found, Notice, SongDone, SongFailed
from woodshed.data.jobs import CONDITIONING, Job, Work, is_done, list_jobs
from woodshed.data.manifest import MANIFEST, OUR_RECORD, UNFINISHED
from woodshed.data.passes import encode_songs
from woodshed.errors import DataError, UserError, collecting
from woodshed.models.checkpoints import choose_model, find_checkpoints, fingerprint
from woodshed.models.devices import resolve_device, resolve_precision
from woodshed.models.load import load_silence
from woodshed.settings.schema import PreprocessSettings
from woodshed.storage import write_text


def preprocess(settings: PreprocessSettings) -> Iterator[EncodeEvent]:
    """Encode songs for a model.

    Yields:
        Found, then Notice, SongDone and SongFailed as they happen, then Finished.

    Raises:
        UserError: for everything that is wrong before the first song, all at once; and when no song could be encoded.
    """
    started_at = time.monotonic()
    work = prepare(settings)
    jobs, failures = list_jobs(work)
    good = {job.name for job in jobs if is_done(work, job)}
    waiting = [job for job in jobs if job.name not in good]
    unchanged = len(good)
    yield Found(len(jobs) + len(failures), unchanged, str(work.device), str(work.dtype).removeprefix("torch."))
    yield from map(Notice, work.songs.notices)
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
        if kept:
            _write_manifest(work, kept, is_complete=is_complete)
    failed = len(jobs) + len(failures) - len(kept)
    shutil.rmtree(work.output / UNFINISHED, ignore_errors=True)
    if not kept:
        raise DataError(f"No song could be encoded: all {failed} failed for the reasons above.")
    seconds = sum(job.seconds for job in waiting if job.name in good)
    yield Finished(work.output, len(kept) - unchanged, unchanged, failed, seconds, time.monotonic() - started_at)


def prepare(settings: PreprocessSettings) -> Work:
    """Find model, device and songs.

    Raises:
        UserError: with everything that is wrong.
    """
    problems: list[str] = []
    device = dtype = found = checkpoint = songs = None
    known = ""
    with collecting(problems):
        device = resolve_device(settings.device)
        dtype = resolve_precision(settings.precision, device)
    with collecting(problems):
        found = find_checkpoints(settings.checkpoint_dir)
        checkpoint = choose_model(found, settings.model)
        known = fingerprint(checkpoint)
        load_silence(checkpoint)  # needed only after hours of encoding, so it is looked at now
    for part in (found.require_vae, found.require_text_encoder) if found else ():
        with collecting(problems):
            part()
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
    return Work(settings, found, checkpoint, known, songs, device, dtype)


def _refuse_unusable(output: Path) -> None:
    """Refuse an output that is no folder, or that cannot be made or written."""
    nearest = next((folder for folder in (output, *output.absolute().parents) if folder.exists()), None)
    if nearest is None or not nearest.is_dir():
        raise DataError(f"The tensor output {output} cannot be made: {nearest} is no folder. Choose another.")
    if not os.access(nearest, os.W_OK):
        raise DataError(f"The tensor output {output} cannot be written: {nearest} is closed to you. Choose another.")


def _write_manifest(work: Work, jobs: list[Job], *, is_complete: bool) -> None:
    """Write what other tools read, and beside it for which model the songs are."""
    content = {
        "metadata": {
            "name": work.songs.name or work.output.name,
            "custom_tag": work.wording.custom_tag,
            "tag_position": work.wording.tag_position,
            "num_samples": len(jobs),
            "all_instrumental": all(job.song.is_instrumental for job in jobs),
            "genre_ratio": work.wording.genre_ratio,
        },
        "samples": [f"{job.name}.pt" for job in jobs],
        "num_samples": len(jobs),
        OUR_RECORD: {
            "version": __version__,
            "model": work.checkpoint.name,
            "fingerprint": work.fingerprint,
            "conditioning": CONDITIONING,
            "is_complete": is_complete,
        },
    }
    write_text(work.output / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False))
