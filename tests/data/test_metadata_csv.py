"""A table of songs: separators, quotes, odd names, and every mistake with its line."""

import pytest

from woodshed.data.metadata_csv import read_metadata_csv
from woodshed.errors import DataError


@pytest.fixture
def read(tmp_path):
    """Read a table that lies beside a.wav and b.wav; return what it says by file name."""
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()

    def read_table(content):
        path = tmp_path / "songs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {song.name: facts for song, facts in read_metadata_csv(path, None, ()).items()}

    return read_table


@pytest.fixture
def problems(read, tmp_path):
    def collect(content):
        with pytest.raises(DataError) as refusal:
            read(content)
        return [problem.replace(f"{tmp_path}/", "") for problem in refusal.value.problems]

    return collect


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_separators_and_line_breaks_of_every_program_are_read(read, separator, line_break):
    rows = (
        ("File Name", "Caption", "BPM", "key", "instrumental"),
        ("a.wav", "a waltz", "90", "", "Yes"),
        ("b.wav", "", "", "C major", ""),
    )
    text = line_break.join(separator.join(row) for row in rows)
    assert read("\ufeff" + text) == {
        "a.wav": {"caption": "a waltz", "bpm": "90", "is_instrumental": True},
        "b.wav": {"keyscale": "C major"},
    }


def test_quoted_cells_hold_anything(read):
    assert read('file,caption,lyrics\na.wav,"slow, ""warm""; soft","[Verse]\nla, la\n"\n\nb.wav,x,y\n') == {
        "a.wav": {"caption": 'slow, "warm"; soft', "lyrics": "[Verse]\nla, la"},
        "b.wav": {"caption": "x", "lyrics": "y"},
    }


@pytest.mark.parametrize("name", ["夜の歌 🎵.wav", 'it\'s "new".wav', "שיר.wav", "two\nlines.wav", "semi;colon,.wav"])
def test_odd_file_names_are_found(read, tmp_path, name):
    (tmp_path / name).touch()
    quoted = name.replace('"', '""')
    assert read(f'file,caption\n"{quoted}",x\n') == {name: {"caption": "x"}}


def test_long_lyrics_arrive_whole(read):
    lyrics = "la; la, " * 6_000
    assert read(f'file,lyrics\na.wav,"{lyrics}"\n')["a.wav"]["lyrics"] == lyrics.strip()


def test_unknown_double_and_missing_columns_are_refused(problems):
    said = problems("file,captoin,bpm,BPM,\na.wav,x,1,2,3\n")
    assert said[0].startswith(
        "songs.csv, line 1: there is no field for the column captoin. Did you mean caption? Columns are file, "
    )
    assert said[1].startswith("songs.csv, line 1: there is no field for the column without a name.")
    assert said[2] == "songs.csv, line 1: there are two columns for bpm."
    assert problems("caption\nx\n") == ["songs.csv, line 1: there is no column file, which names the song of each row."]
    assert "there is no column file" in problems("")[0]


def test_every_wrong_row_is_named_with_the_line_it_begins_in(problems):
    said = problems('file,bpm,lyrics\ngone.wav,fast,"one\ntwo"\na.wav,90\na.wav,90,\na.wav,91,\n,,x\nb.wav,1,"open\n')
    assert said == [
        "songs.csv, line 2: gone.wav does not exist. Give the folder that holds it with --audio-dir.",
        "songs.csv, line 2: bpm must be a number; got fast.",
        "songs.csv, line 4: it has 2 cells and the table 3 columns. Quote cells that hold ','.",
        "songs.csv, line 6: a.wav is already described in line 5.",
        "songs.csv, line 7: the cell of the column file is empty: it must name the song.",
        "songs.csv, line 8: the row cannot be read (unexpected end of data). "
        "Look for a quotation mark that is not closed.",
    ]


def test_what_is_no_text_is_refused_with_its_line(problems):
    assert problems(b"file,caption\na.wav,caf\xe9\n") == [
        "songs.csv, line 2: this is no UTF-8 text but another encoding. Save the file as UTF-8."
    ]
