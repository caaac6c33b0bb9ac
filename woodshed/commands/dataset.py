"""`woodshed dataset`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.commands.inspect import show_report
from woodshed.console import Terminal, printable
from woodshed.errors import DataError, UsageError, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from woodshed.analysis.report import Report
    from woodshed.data.checkup import Finding
    from woodshed.data.conditioning import Wording
    from woodshed.data.songs import PromptSource, Song
    from woodshed.settings.flags import Parser
    from woodshed.settings.schema import DatasetSettings

MERGE = "merge"
SHOWN = 40  # characters of a caption in the table


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import DatasetSettings

    parser.add_argument(
        "path",
        type=Path,
        nargs="+",
        help="a folder of songs, or of preprocessed songs; `merge FOLDER...` puts the parts of a dataset together",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where merge puts the dataset, if not there")
    parser.add_argument("--show", metavar="SONG", help="what the model will read about one song")
    parser.add_argument(
        "--check", action="store_true", help="look for what is wrong or doubtful; 1 when there are errors"
    )
    add_json_flag(parser)
    add_flags(parser, DatasetSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import DatasetSettings

    settings = resolve(DatasetSettings, layers(arguments, DatasetSettings)).settings
    first, *others = arguments.path
    if str(first) == MERGE:
        return _merge(others, getattr(arguments, "output", None), terminal, as_json="json" in arguments)
    if others or "output" in arguments:
        raise UsageError(f"Only `woodshed dataset {MERGE}` takes several folders, and --output.")
    from woodshed.data.catalogue import find_songs
    from woodshed.data.conditioning import Wording

    as_json = "json" in arguments
    if _is_preprocessed(first):
        if "show" in arguments or "check" in arguments:
            raise UserError(f"{first} holds preprocessed songs. --show and --check want the folder of audio.")
        from woodshed.analysis.inspect_folders import inspect_dataset

        _print(inspect_dataset(first), terminal, as_json=as_json)
        return 0
    wording = Wording(settings, find_songs(first, settings.dataset_json, settings.metadata_csv))
    if "show" in arguments:
        _show_song(wording, arguments.show, _tokenizer(settings, terminal, is_quiet=as_json), terminal, as_json=as_json)
        return 0
    if "check" in arguments:
        return _check(wording, _tokenizer(settings, terminal, is_quiet=as_json), terminal, as_json=as_json)
    _print(_table(first, wording), terminal, as_json=as_json)
    return 0


def _merge(folders: "Sequence[Path]", output: Path | None, terminal: Terminal, *, as_json: bool) -> int:
    """Put the parts of a dataset together."""
    from woodshed.data.merging import merge_shards

    if not folders:
        raise UsageError(f"Say which folders hold the parts; a folder of songs called {MERGE} is ./{MERGE}.")
    if output is None and len(folders) > 1:
        raise UsageError("Say where the dataset goes with --output; it may be one of the folders.")
    done = merge_shards(folders, output or folders[0])
    if as_json:
        terminal.data(json.dumps({"path": str(done.folder), "songs": done.songs, "parts": done.parts}, indent=1))
    else:
        terminal.say(f"{done.songs} songs of {done.parts} parts are one dataset now: {done.folder}")
    return 0


def _is_preprocessed(path: Path) -> bool:
    from woodshed.data.manifest import MANIFEST

    return (path / MANIFEST).is_file() or any(path.glob("*.pt"))


def _print(report: "Report", terminal: Terminal, *, as_json: bool) -> None:
    if as_json:
        terminal.data(json.dumps(report.as_json(), indent=1))
    else:
        show_report(report, terminal)


def _tokenizer(settings: "DatasetSettings", terminal: Terminal, *, is_quiet: bool) -> "Tokenizer | None":
    """Return the tokenizer of the models, None and a hint where there is none."""
    from woodshed.models.checkpoints import find_checkpoints
    from woodshed.models.encoders import read_tokenizer

    try:
        return read_tokenizer(find_checkpoints(settings.checkpoint_dir).require_text_encoder() / "tokenizer.json")
    except UserError as error:
        if not is_quiet:
            terminal.hint(f"Tokens are not counted: {error.problems[0]}")
        return None


def _table(folder: Path, wording: "Wording") -> "Report":
    """Return the songs with what is known about each, and where captions and lyrics come from."""
    from woodshed.analysis.report import Report, Table

    columns = ("song", "seconds", "caption", "from", "lyrics", "from ", "bpm", "key", "language")
    rows: list[list[Any]] = []
    notices = [*wording.songs.notices, *(problem for item in wording.songs.unusable for problem in item.problems)]
    for song in wording.songs.songs:
        words = song.caption or song.genre
        short = words if len(words) <= SHOWN else f"{words[: SHOWN - 3]}..."
        lyrics = "instrumental" if song.is_instrumental or not song.lyrics else f"{len(song.lyrics.splitlines())} lines"
        origin = song.origins.get("caption" if song.caption else "genre", "")
        spoken = song.language or wording.settings.language
        facts = [_seconds(song.path, notices), short, origin, lyrics, song.origins.get("lyrics", "")]
        rows.append([_name(song.path, folder), *facts, song.bpm, song.keyscale, spoken])
    known = [row[1] for row in rows if row[1] is not None]
    facts_of_all = {
        "songs": len(rows),
        "seconds of music": round(sum(known), 2),
        "with lyrics": sum(row[4] != "instrumental" for row in rows),
        "trigger tag": wording.custom_tag or "none",
    }
    return Report("songs", folder, facts_of_all, (Table("songs", columns, rows),), tuple(notices))


def _seconds(path: Path, notices: list[str]) -> float | None:
    """Return the length that a file states; what is wrong with a file is a notice."""
    from woodshed.data.audio import probe

    try:
        seconds = probe(path).seconds
    except DataError as error:
        notices += error.problems
        return None
    return None if seconds is None else round(seconds, 2)


def _name(path: Path, folder: Path) -> str:
    inside = path.is_relative_to(folder)
    return (path.relative_to(folder) if inside else path).as_posix().encode(errors="replace").decode()


def _show_song(
    wording: "Wording", name: str, tokenizer: "Tokenizer | None", terminal: Terminal, *, as_json: bool
) -> None:
    """Print exactly what the model will read about a song."""
    from woodshed.data.audio import SAMPLE_RATE, decode
    from woodshed.data.checkup import lengths

    song, source = _find(wording, name)
    seconds = decode(song.path, max_seconds=wording.settings.max_duration).shape[1] / SAMPLE_RATE
    prompt, lyrics = wording.texts(song, source, seconds)
    measured = (
        [] if tokenizer is None else [vars(length) for length in lengths(tokenizer, prompt, lyrics, wording.limits)]
    )
    if as_json:
        content = {"song": str(song.path), "seconds": seconds, "prompt": prompt, "lyrics": lyrics}
        terminal.data(json.dumps(content | {"lengths": measured, "origins": dict(song.origins)}, indent=1))
        return
    for title, text in (("prompt", prompt), ("lyrics", lyrics)):
        terminal.title(f"--- {title} ---")
        terminal.say(printable(text, keep="\n"))
    terminal.title("---")
    for length in measured:
        terminal.say(f"{length['what']}: {length['tokens']} of at most {length['limit']} tokens")
        if length["lost"]:
            terminal.hint(f"The model does not read the rest of the {length['what']}: {printable(length['lost'])}")
    for field, origin in song.origins.items():
        terminal.say(f"{field} comes from {printable(origin)}")


def _find(wording: "Wording", name: str) -> "tuple[Song, PromptSource]":
    """Return the song of a name: its path, the end of its path, its file name, or that without the ending.

    Raises:
        DataError: when there is none, or more than one.
    """
    from woodshed.data.songs import listed
    from woodshed.settings.declare import did_you_mean

    songs = list(zip(wording.songs.songs, wording.sources(), strict=True))
    found = [item for item in songs if name in (str(item[0].path), item[0].path.name, item[0].path.stem)]
    found = found or [item for item in songs if item[0].path.as_posix().endswith(f"/{name}")]
    if len(found) == 1:
        return found[0]
    names = [song.path.name for song, _ in songs]
    if not found:
        raise DataError(f"There is no song {name}.{did_you_mean(name, names)} Songs are {listed(names)}.")
    paths = [song.path.as_posix() for song, _ in found]
    raise DataError(f"{len(paths)} songs are called {name}: {listed(paths)}. Give more of the path.")


def _check(wording: "Wording", tokenizer: "Tokenizer | None", terminal: Terminal, *, as_json: bool) -> int:
    """Print what the dataset doctor finds."""
    from woodshed.data.checkup import Finding, Listened, check_songs, counts
    from woodshed.monitor.progress import LiveBlock

    found: list[Finding] = []
    block = LiveBlock(terminal) if terminal.is_live and not as_json else None
    try:
        for event in check_songs(wording, tokenizer):
            if isinstance(event, Finding):
                found.append(event)
            elif block is not None and isinstance(event, Listened):
                count = f"{event.done:,}/{event.total:,}"
                block.show("listening", event.done, event.total, count, printable(event.song.name))
    finally:
        if block is not None:
            block.stop()
    levels = counts(found)
    if as_json:
        rows = [{"level": item.level, "song": str(item.song), "text": item.text} for item in found]
        terminal.data(json.dumps({"counts": levels, "findings": rows}, indent=1))
    else:
        _say_findings(found, terminal)
        said = ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in levels.items())
        terminal.say(f"{len(wording.songs.songs)} songs: {said}.")
    return 1 if levels["error"] else 0


def _say_findings(found: "Sequence[Finding]", terminal: Terminal) -> None:
    say = {"error": terminal.problem, "warning": terminal.hint, "note": terminal.say}
    for level, speak in say.items():
        for item in found:
            if item.level == level:
                about = "" if str(item.song) in item.text and level == "error" else f"{item.song}: "
                speak(printable(f"{level}: {about}{item.text}"))


COMMAND = Command("dataset", "What is in a folder of songs, and what is wrong with it.", _build, _run)
