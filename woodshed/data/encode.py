"""Songs to tensors: `preprocess` turns a folder of music into a folder that trains.

Two passes, so that the parts of the model are in memory one after the other: VAE and text encoder first, then the
condition encoder. A song's result appears whole or not at all, and an interrupted run goes on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Iterator

from woodshed import __version__
from woodshed.data.catalogue import find_songs
from woodshed.data.dataset import MANIFEST, OUR_RECORD, read_manifest
from woodshed.data.events import EncodeEvent, Finished, Found, Notice, SongDone, SongFailed
from woodshed.data.jobs import CONDITIONING, Job, Work, is_done, list_jobs
from woodshed.data.passes import UNFINISHED, encode_songs
from woodshed.errors import DataError, UserError, collecting
from woodshed.models.checkpoints import choose_model, find_checkpoints, fingerprint
from woodshed.models.devices import resolve_device, resolve_precision
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
    records = dict(read_manifest(work.output / MANIFEST).records)
    good = {job.name for job in jobs if is_done(work, job, records)}
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
    for part in (found.require_vae, found.require_text_encoder) if found else ():
        with collecting(problems):
            part()
    with collecting(problems):
        songs = find_songs(settings.audio_dir, settings.dataset_json)
    if settings.tensor_output.exists() and not settings.tensor_output.is_dir():
        problems.append(f"The tensor output {settings.tensor_output} is a file. Choose a folder.")
    if problems:
        raise UserError(*problems)
    assert found is not None
    assert checkpoint is not None
    assert songs is not None
    assert device is not None
    assert dtype is not None
    return Work(settings, found, checkpoint, known, songs, device, dtype)


def _write_manifest(work: Work, jobs: list[Job], *, is_complete: bool) -> None:
    """Write what other tools read, and beside it what a later run of ours compares with."""
    content = {
        "metadata": {
            "name": work.songs.name or work.output.name,
            "custom_tag": work.custom_tag,
            "tag_position": work.songs.tag_position or work.settings.tag_position,
            "num_samples": len(jobs),
            "all_instrumental": all(job.song.is_instrumental for job in jobs),
            "genre_ratio": work.genre_ratio,
        },
        "samples": [f"{job.name}.pt" for job in jobs],
        "num_samples": len(jobs),
        OUR_RECORD: {
            "version": __version__,
            "model": work.checkpoint.name,
            "fingerprint": work.fingerprint,
            "conditioning": CONDITIONING,
            "is_complete": is_complete,
            "songs": {job.name: work.record(job) for job in jobs},
        },
    }
    write_text(work.output / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False))
