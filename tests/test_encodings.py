"""Consoles with an old code page: every command says what it has to say, in signs that the console has."""

import io
from contextlib import redirect_stderr, redirect_stdout

import pytest

from woodshed import cli

ENCODINGS = ("cp1252", "ascii", "cp437")


def run(words, encoding):
    """Run a command on a console of an old code page; return its exit code and what it wrote, as bytes."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(words)
    return code, out.buffer.getvalue() + err.buffer.getvalue()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of its own, and no user settings."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_the_help_of_every_command_can_be_shown_anywhere(command, encoding):
    code, said = run([command, "--help-all"] if command else ["--help"], encoding)
    assert code == 0
    assert b"usage: woodshed" in said
    assert said.isascii()
    assert b"\\u" not in said


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("models",), 0, b"acestep-v15-base"),
        (("models", "--json"), 0, b"acestep-v15-base"),
        (("presets", "list"), 0, b"vram_8gb"),
        (("presets", "save", "mine", "--log-dir", "\u97f3\u00fc"), 0, b"log_dir = \\u97f3"),
        (("presets", "show", "\u97f3"), 1, b"There is no preset called \\u97f3."),
        (("train", "--model", "\u97f3", "--dataset-dir", "n\u97f3", "--output-dir", "out"), 1, b"\\u97f3"),
        (("train", "--\u97f3", "1"), 2, b"There is no flag --\\u97f3."),
        (("\U0001f3b5",), 2, b"There is no command \\U0001f3b5."),
        (("inspect", "\u97f3"), 1, b"\\u97f3"),
        (("dataset", "\u97f3"), 1, b"\\u97f3"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, tuple) else "",
)
def test_a_letter_that_the_console_lacks_is_written_as_an_escape(checkpoint_root, words, code, part, encoding):
    if words[0] in ("models", "train"):
        words = (*words, "--checkpoint-dir", str(checkpoint_root))
    found, said = run(list(words), encoding)
    assert (found, part in said) == (code, True), said.decode("ascii", "replace")


def test_what_the_code_page_has_is_written_as_it_is():
    assert "There is no command n\u00fc.".encode("cp1252") in run(["n\u00fc"], "cp1252")[1]
