"""Damaged files of every kind, given to the commands that read them: only sentences and exit codes come out.

About a hundred files are tried here in seconds; the slow test tries ten times as many. A failure names kind and seed,
and `damaged(kind, seed)` makes the file again.
"""

import shutil
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.desk import KINDS, build_desk
from woodshed import cli
from woodshed.errors import UserError
from woodshed.training import loop

QUICK, THOROUGH = 4, 40
NOT_THERE = ("There is no", "There are no parts")  # of files that only a damaged copy brings
UNFINISHED = (".writing", ".outgoing", ".part", ".tmp")


@pytest.fixture(scope="module")
def sound(tmp_path_factory, golden):
    """A sound file of every kind, to be copied."""
    folder = tmp_path_factory.mktemp("sound")
    build_desk(folder, golden)
    return folder


@pytest.fixture
def desk(sound, tmp_path, monkeypatch):
    """A fresh copy for each try; no model is loaded for training, so that a file that passes costs no training."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", "config")

    def stop(*_, **__):
        raise UserError("Everything was accepted.")

    monkeypatch.setattr(loop, "load_run", stop)
    number = 0

    def fresh() -> Path:
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        monkeypatch.chdir(folder)
        return folder

    return fresh


def damaged(kind, seed, folder):
    """Write the damaged file of a kind and seed."""
    kind.damage(folder, Random(f"{kind.name} {seed}"))


def troubles(kind, seed, folder, capsys):
    """Return what came out that should not have, for one damaged file."""
    damaged(kind, seed, folder)
    outside = set(folder.parent.iterdir())
    found = []
    for words in kind.commands:
        try:
            code = cli.main(words.split())
        except BaseException as error:  # noqa: BLE001 - whatever gets here would reach a user as a traceback
            capsys.readouterr()
            found.append(
                f"{kind.name}, seed {seed}, {words}: {type(error).__name__}: {str(error)[:150]} at {where(error)}"
            )
            continue
        said = capsys.readouterr()
        if code not in (0, 1, 2) or (code and not said.err.strip()) or "Traceback" in said.err + said.out:
            found.append(f"{kind.name}, seed {seed}, {words}: exit code {code}, {said.err[:200]!r}")
        if any(not letter.isprintable() and letter not in "\n\t" for letter in said.err):
            found.append(f"{kind.name}, seed {seed}, {words}: commands the terminal: {said.err[:200]!r}")
        if code and len(said.err) > 20_000:
            found.append(f"{kind.name}, seed {seed}, {words}: a message of {len(said.err):,} letters")
    left = [str(path) for path in folder.rglob("*") if path.name.endswith(UNFINISHED) or path.name == "owned"]
    found += [f"{kind.name}, seed {seed}: left {name}" for name in left]
    if set(folder.parent.iterdir()) != outside:
        found.append(f"{kind.name}, seed {seed}: wrote beside its folder")
    return found


def where(error):
    """Return the last of our own lines in a traceback."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "woodshed" in path.parts:
            place = f"{path.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def try_all(kind, seeds, desk, capsys):
    found = []
    for seed in seeds:
        folder = desk()
        found += troubles(kind, seed, folder, capsys)
        shutil.rmtree(folder)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_sound_file_is_accepted_so_that_only_the_damage_is_refused(kind, sound, desk, capsys):  # noqa: ARG001
    desk()
    for words in kind.commands:
        code = cli.main(words.split())
        said = capsys.readouterr()
        accepted = code == 0 or "Everything was accepted" in said.err
        assert accepted or any(part in said.err for part in NOT_THERE), (words, said.err)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_answered_with_sentences(kind, desk, capsys):
    try_all(kind, range(QUICK), desk, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_thousand_damaged_files_are_answered_with_sentences(kind, desk, capsys):
    try_all(kind, range(QUICK, QUICK + THOROUGH), desk, capsys)
