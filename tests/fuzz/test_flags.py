"""Words that nobody expected, behind every command: hypothesis looks for those that end in a traceback."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from woodshed import cli
from woodshed.settings.schema import TrainSettings

FLAGS = sorted(
    {
        flag
        for name in cli.COMMANDS
        for action in cli.build_parser(cli.COMMANDS[name], show_all=True)._actions
        for flag in action.option_strings
    }
)
# Commands that would do real work with their defaults, or wait for somebody.
COMMANDS = [name for name in cli.COMMANDS if name not in ("demo", "doctor")]
ODD = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "",
            " ",
            "-",
            "--",
            "=",
            "../../x",
            "NUL",
            "9" * 5000,
            "1e999",
            "nan",
            "-inf",
            "\ud800",
            "\x00",
            "@x",
            "a,b",
            "0x10",
        ]
    ),
)
WORD = st.one_of(ODD, st.sampled_from(FLAGS), st.tuples(st.sampled_from(FLAGS), ODD).map("=".join))
LINE = st.tuples(st.one_of(st.sampled_from(COMMANDS), ODD), st.lists(WORD, max_size=6))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of its own: nothing may be written into it."""
    folder = tmp_path_factory.mktemp("flags")
    before, config = Path.cwd(), os.environ.get("WOODSHED_CONFIG_DIR")
    os.chdir(folder)
    os.environ["WOODSHED_CONFIG_DIR"] = str(folder / "config")
    yield folder
    os.chdir(before)
    os.environ.pop("WOODSHED_CONFIG_DIR")
    if config is not None:
        os.environ["WOODSHED_CONFIG_DIR"] = config


def is_answered(line, place):
    command, words = line
    words = [word for word in (command, *words) if "\x00" not in word or command in COMMANDS]
    if not [word for word in words if word != "--plain"]:
        return  # the wizard
    code = cli.main([*words[:1], "--plain", *words[1:]] if words[0] in COMMANDS else words)
    assert code in (0, 1, 2)
    presets = "presets" in words and "save" in words  # the one command that writes with so little
    assert presets or not [path for path in place.rglob("*") if path.is_file() and "config" not in path.parts]


@given(line=LINE)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_words_are_answered_with_sentences(line, place):
    is_answered(line, place)


@pytest.mark.slow
@given(line=LINE)
@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_many_words_are_answered_with_sentences(line, place):
    target(float(len({word.split("=")[0] for word in line[1]} & set(FLAGS))))  # towards lines that get further
    is_answered(line, place)


@given(name=st.sampled_from(sorted(TrainSettings.model_fields)), value=ODD)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_value_of_any_setting_is_taken_or_refused_in_words(name, value, place):
    flag = f"--{name.replace('_', '-')}"
    known = {"checkpoint_dir": "nowhere", "model": "m", "dataset_dir": "d", "output_dir": "o"}
    words = [f"--{key.replace('_', '-')}={word}" for key, word in known.items() if key != name]
    assert cli.main(["train", *words, f"{flag}={value}", "--plain"]) in (1, 2)
    assert not list(place.glob("o*"))
