"""Which songs are done is decided by what they are made of; names never collide and always fit."""

import os
import shutil

import pytest

from woodshed.data.encode import prepare
from woodshed.data.jobs import Job, Work, is_done, list_jobs
from woodshed.errors import DataError

FACTS = {"frames": 6, "prompt_tokens": 80, "lyric_tokens": 25}


@pytest.fixture
def work(music, settings_for, write_json):  # noqa: ARG001 - the songs must be there
    """Find the work, from files with their fields, what holds for all songs, and changes to the settings."""

    def build(songs: dict[str, dict[str, object]] | None = None, metadata=None, **changes: object) -> Work:
        if songs is not None:
            changes["dataset_json"] = write_json(songs, **(metadata or {}))
        return prepare(settings_for(**changes))

    return build


@pytest.fixture
def finish(write_sample):
    """Write a song's file as if it had been encoded; is_cut and seconds as told."""

    def write(work: Work, job: Job, seconds: float = 0.25, *, is_cut: bool = False) -> Job:
        job.seconds, job.is_cut, job.facts = seconds, is_cut, dict(FACTS)
        write_sample(job.name, metadata={"woodshed": work.record(job)})
        return Job(job.song, job.source, job.audio_digest, job.name)

    return write


def listed(work: Work) -> tuple[list[Job], list[DataError]]:
    looking = list_jobs(work)
    try:
        while True:
            next(looking)
    except StopIteration as end:
        return end.value


def first_job(work: Work) -> Job:
    return listed(work)[0][0]


def test_same_names_in_two_folders_and_same_songs_under_two_names_are_kept_apart(music, work):
    shutil.copy(music / "one" / "b.wav", music / "copy.wav")
    jobs, failures = listed(work())
    assert not failures
    assert len({job.name for job in jobs}) == 4
    assert [job.name.rsplit("-", 1)[0] for job in jobs] == ["a", "copy", "b", "b"]


def test_copies_of_a_song_are_counted(music, work):
    (music / "three").mkdir()
    shutil.copy(music / "a.wav", music / "three" / "a.wav")
    shutil.copy(music / "a.wav", music / "three" / "A.wav")
    names = [job.name for job in listed(work())[0] if job.song.path.stem.lower() == "a"]
    stem = names[0]
    assert [name.lower() for name in names] == [stem, f"{stem}-2", f"{stem}-3"], "also where capitals do not count"


def test_a_name_does_not_depend_on_the_folder(music, work, tmp_path):
    before = [job.name for job in listed(work())[0]]
    music.rename(tmp_path / "elsewhere")
    assert [job.name for job in listed(work(audio_dir=tmp_path / "elsewhere"))[0]] == before


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("夜の歌 Nr. 1", "夜の歌 Nr. 1"),
        ("what: is/this?".replace("/", "\\"), "what_ is_this_"),
        (" . ", "song"),
        ("ends with a dot.", "ends with a dot"),
        ("e\u0301tude", "\u00e9tude"),
        ("x" * 200, "x" * 80),
        ("夜" * 80, "夜" * 53),
    ],
)
def test_a_name_can_be_written_everywhere(work, tmp_path, stem, expected):
    path = tmp_path / "odd" / f"{stem}.wav"
    path.parent.mkdir()
    path.write_bytes(b"sound")
    job = first_job(work(audio_dir=path.parent))
    assert job.name == f"{expected}-{job.audio_digest[:8]}"
    (path.parent / f".{job.name}.latents.pt.writing").touch()  # the longest of its files


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_song_that_may_not_be_read_is_a_failure_and_the_others_go_on(music, work):
    (music / "a.wav").chmod(0)
    jobs, failures = listed(work())
    assert [job.song.path.name for job in jobs] == ["b.wav", "b.wav"]
    assert "a.wav cannot be read: Permission denied." in str(failures[0])


def test_a_song_that_vanishes_is_a_failure_and_the_others_go_on(music, work):
    found = work()
    (music / "a.wav").unlink()
    jobs, failures = listed(found)
    assert len(jobs) == 2
    assert "a.wav cannot be read: No such file" in str(failures[0])


def test_a_finished_song_is_done_and_its_facts_are_known_again(work, finish):
    found = work()
    job = finish(found, first_job(found), 0.2, is_cut=False)
    assert is_done(work(), job)
    assert (job.seconds, job.is_cut, job.facts) == (0.2, False, FACTS)


def test_nothing_is_done_without_its_file(work):
    found = work()
    assert not any(is_done(found, job) for job in listed(found)[0])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 43},
        {"model": "acestep-v15-sft"},
        {"model": "acestep-v15-xl-base"},
        {"precision": "bf16"},
        {"conditioning": "legacy"},
        {"custom_tag": "tag"},
        {"language": "en"},
        {"max_duration": 0.1},
    ],
)
def test_a_setting_that_changes_the_tensors_makes_a_song_undone(work, finish, change):
    found = work()
    job = finish(found, first_job(found))
    assert not is_done(work(**change), job)


@pytest.mark.parametrize(
    "change", [{"max_duration": 0}, {"max_duration": 0.25}, {"offload_encoder": True}, {"tag_position": "append"}]
)
def test_a_setting_that_changes_nothing_leaves_a_song_done(work, finish, change):
    found = work()
    job = finish(found, first_job(found))
    assert is_done(work(**change), job)


def test_a_cut_song_is_done_only_for_the_same_limit(work, finish):
    found = work(max_duration=0.1)
    job = finish(found, first_job(found), 0.1, is_cut=True)
    assert is_done(work(max_duration=0.1), job)
    for other in (0, 0.05, 0.2, 240):
        assert not is_done(work(max_duration=other), job)


@pytest.mark.parametrize(
    "change",
    [
        {"caption": "other"},
        {"lyrics": "la"},
        {"language": "ja"},
        {"bpm": 90},
        {"keyscale": "D minor"},
        {"timesignature": "3"},
        {"custom_tag": "t"},
    ],
)
def test_a_changed_word_makes_a_song_undone(work, finish, change):
    before = work({"a.wav": {}})
    job = finish(before, first_job(before))
    after = work({"a.wav": change})
    assert not is_done(after, Job(after.songs.songs[0], "caption", job.audio_digest, job.name))


def test_what_the_model_does_not_read_leaves_a_song_done(work, finish):
    before = work({"a.wav": {"lyrics": "x", "is_instrumental": True}})
    job = finish(before, first_job(before))
    after = work({"a.wav": {"lyrics": "y", "is_instrumental": True, "genre": "polka"}})
    assert is_done(after, Job(after.songs.songs[0], "caption", job.audio_digest, job.name))


def test_changed_sound_gets_another_name_and_even_the_same_name_would_not_be_done(
    music, work, finish, write_audio, tones
):
    found = work()
    job = finish(found, first_job(found))
    write_audio(music / "a.wav", tones(0.25, channels=1) * 0.9)
    changed = first_job(work())
    assert changed.name != job.name
    assert not is_done(work(), Job(changed.song, changed.source, changed.audio_digest, job.name))


@pytest.mark.parametrize("metadata", [{}, {"woodshed": 3}, {"woodshed": {}}, "words", None])
def test_a_file_of_another_tool_is_not_taken_for_done(work, write_sample, metadata):
    found = work()
    job = first_job(found)
    write_sample(job.name, metadata=metadata)
    assert not is_done(found, job)


def test_a_damaged_file_is_made_again(work, finish):
    found = work()
    job = finish(found, first_job(found))
    path = found.output / f"{job.name}.pt"
    path.write_bytes(path.read_bytes()[:-200])
    assert not is_done(found, job)


JSON_FACTS = {"custom_tag": "theirs", "tag_position": "append", "genre_ratio": 30}


def test_what_the_dataset_json_says_holds_until_the_user_says_otherwise(work):
    found = work({"a.wav": {}}, JSON_FACTS).wording
    assert (found.custom_tag, found.tag_position, found.genre_ratio) == ("theirs", "append", 30)
    plain = work({"a.wav": {}}).wording
    assert (plain.custom_tag, plain.tag_position, plain.genre_ratio) == ("", "prepend", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("custom_tag", "mine"), ("custom_tag", "")),
        *(("tag_position", "replace"), ("tag_position", "prepend")),
        *(("genre_ratio", 70), ("genre_ratio", 0)),
    ],
)
def test_the_users_word_wins_over_the_dataset_json_even_if_it_is_the_default(work, name, value):
    assert getattr(work({"a.wav": {}}, JSON_FACTS, **{name: value}).wording, name) == value


def test_tag_and_position_reach_the_prompt(work):
    found = work({"a.wav": {"caption": "a song"}}, JSON_FACTS)
    assert "# Caption\na song, theirs\n" in found.texts(first_job(found))[0]


def test_the_genre_ratio_reaches_the_songs(work):
    fields = {"caption": "c", "genre": "g"}
    songs = {"a.wav": fields, "one/b.wav": fields, "two/b.wav": fields}
    for ratio, expected in ((0, 0), (34, 1), (100, 3)):
        assert sum(job.source == "genre" for job in listed(work(songs, genre_ratio=ratio))[0]) == expected


def test_the_longest_length_is_in_samples(work):
    assert work(max_duration=0.1).longest == 4800
    assert work(max_duration=0).longest is None
