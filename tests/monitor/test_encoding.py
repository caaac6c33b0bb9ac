"""Preprocessing as people see it."""

import re

import pytest

from woodshed.console import Terminal
from woodshed.data.events import Finished, Found, Looked, Notice, SongDone, SongFailed
from woodshed.monitor import encoding
from woodshed.monitor.encoding import watch_encoding

SECONDS_A_SONG = {"audio": 2.0, "text": 0.1, "conditions": 20.0}


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when a test says so."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(encoding.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def work_on(clock, tmp_path):
    """The events of preprocessing: loading takes a minute, every song of 60 s as long as its step says."""

    def events(songs=5, unchanged=0, failed=0):
        yield Found(songs + unchanged + failed, unchanged, "cuda:0", "bfloat16")
        yield from (SongFailed(f"song {number} is broken.") for number in range(failed))
        for step, seconds in SECONDS_A_SONG.items():
            clock.now += 60
            for number in range(1, songs + 1):
                clock.now += seconds
                yield SongDone(step, f"song {number}", number, songs, 60.0)
        yield Finished(tmp_path / "tensors", songs, unchanged, failed, 60.0 * songs, 123.0)

    return events


@pytest.fixture
def plain(capsys):
    def call(events):
        code = watch_encoding(events, Terminal())
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call


def test_a_clean_run_counts_its_songs_and_exits_with_zero(plain, work_on, tmp_path):
    code, lines, errors = plain(work_on())
    assert (code, errors) == (0, [])
    assert lines[0] == "5 songs: 5 to encode; cuda:0, bfloat16."
    assert lines[-2:] == [
        "5 songs encoded (5 min 00 s of music) in 2 min 03 s.",
        f"The dataset is in {tmp_path / 'tensors'}",
    ]


def test_unchanged_and_failed_songs_are_counted_and_a_failure_exits_with_one(plain, work_on):
    code, lines, errors = plain(work_on(unchanged=3, failed=2))
    assert code == 1
    assert errors == ["song 0 is broken.", "song 1 is broken."]
    assert lines[0] == "10 songs: 7 to encode, 3 unchanged; cuda:0, bfloat16."
    assert lines[-2].endswith("in 2 min 03 s, 3 unchanged, 2 failed.")


def test_notices_are_said(plain):
    assert plain([Notice("2 files are left out: [a].")])[1] == ["2 files are left out: [a]."]


def test_each_step_tells_its_progress_speed_and_time_left(plain, work_on):
    _, lines, _ = plain(work_on())
    shown = [line for line in lines if re.search(r"\d/5", line)]
    assert len(shown) == 15
    assert shown[2] == "audio to latents 3/5  song 3  30 s of music a second  4 s left"
    assert shown[7] == "text to states 3/5  song 3  10.00 songs/s  0.2 s left"
    assert shown[11] == "states to conditions 2/5  song 2  20.0 s/song  1 min 00 s left"


def test_the_first_song_of_a_step_promises_nothing(plain, work_on):
    _, lines, _ = plain(work_on())
    assert [line for line in lines if " 1/5 " in line] == [
        "audio to latents 1/5  song 1",
        "text to states 1/5  song 1",
        "states to conditions 1/5  song 1",
    ]


@pytest.mark.parametrize(("songs", "lines"), [(100, 100), (101, 100), (2000, 100), (12_345, 100)])
def test_many_songs_do_not_fill_a_log(plain, work_on, songs, lines):
    shown = [line for line in plain(work_on(songs))[1] if line.startswith("audio to latents")]
    assert len(shown) == lines
    assert f"{songs}/{songs}" in shown[-1]


def test_the_live_block_fits_and_goes_when_all_is_done(screen_of, work_on):
    screen = screen_of(60)
    view = encoding._EncodingView(screen.terminal)
    blocks = []
    for event in work_on():
        view.show(event)
        if isinstance(event, SongDone) and event.done == 4:
            view._block._live.refresh()
            _, *block = screen.lines()
            blocks.append(block)
    assert [len(block) for block in blocks] == [3, 3, 3]  # nothing of an earlier step is left
    for title, status, block in zip(
        ("audio to latents", "text to states", "states to conditions"),
        ("30 s of music a second  2 s left", "10.00 songs/s  0.1 s left", "20.0 s/song  20 s left"),
        blocks,
        strict=True,
    ):
        assert block[0].startswith(f"{title} ━")
        assert block[0].endswith("━ 4/5")
        assert len(block[0]) == 60
        assert block[1:] == [status, "song 4"]
    assert any(line.startswith("The dataset is in") for line in screen.lines())
    assert not [line for line in screen.lines() if "━" in line]


def test_the_block_goes_when_preprocessing_breaks(screen_of, work_on):
    screen = screen_of(60)

    def broken():
        for event in work_on():
            yield event
            if isinstance(event, SongDone) and event.done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_encoding(broken(), screen.terminal)
    assert not [line for line in screen.lines() if "━" in line]


def test_reading_many_songs_shows_its_progress_and_reading_a_few_does_not(plain, clock):
    def reading(seconds):
        for number in range(1, 11):
            clock.now += seconds
            yield Looked(number, 10, number * 10_000_000, 100_000_000)

    assert plain(reading(0.1))[1] == []
    lines = plain(reading(3))[1]
    assert lines[0] == "reading songs 3/10  5 MB/s  14 s left"
    assert len(lines) == 4


def test_the_end_says_how_long_the_device_waited_and_what_it_took(plain, tmp_path):
    end = Finished(tmp_path, 2, 0, 0, 60.0, 3.0, waited=0.034, peaks={"audio": 3 * 2**29, "text": 2**30})
    assert plain([end])[1][1:] == [
        "The device waited 3 % of the time for songs, the disk and the processor.",
        "Most of its memory that was taken: audio to latents 1.50 GiB, text to states 1.00 GiB.",
        f"The dataset is in {tmp_path}",
    ]


def test_a_part_says_which_one_it_is_and_what_comes_next(plain, tmp_path):
    lines = plain([Found(3, 0, "cpu", "float32", "2/4"), Finished(tmp_path, 3, 0, 0, 1.0, 3.0, shard="2/4")])[1]
    assert lines[0] == "3 songs in part 2/4: 3 to encode; cpu, float32."
    assert lines[-2:] == [
        f"Part 2/4 is in {tmp_path}",
        "When all parts are there: woodshed dataset merge, with the folders that they are in.",
    ]


def test_no_name_of_a_song_commands_the_terminal(plain):
    nasty = "a\x1b[2Jb\nc\u202ed"
    shown = "a?[2Jb?c?d"
    _, lines, errors = plain([SongFailed(f"{nasty} is bad."), Notice(nasty), SongDone("audio", nasty, 1, 1, 2.0)])
    assert errors == [f"{shown} is bad."]
    assert lines == [shown, f"audio to latents 1/1  {shown}"]
