"""Digests tell contents apart; those of weights need not read everything."""

import hashlib
import os

import pytest

from woodshed.data.ahead import AbandonedError
from woodshed.data.digests import CHUNK, SAMPLE, SAMPLES, digest, file_digest, weights_digest


def test_the_digest_tells_where_one_text_ends():
    assert digest("a", "bc") != digest("ab", "c")
    assert digest("a", "bc") == digest("a", "bc")


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_files_digest_is_its_sha256(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reading_ends_when_nobody_wants_it(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(AbandonedError):
        file_digest(tmp_path / "file", lambda: True)


@pytest.mark.parametrize("place", [0, SAMPLE, 100_000, -1])
def test_every_byte_of_small_weights_counts(tmp_path, place):
    path = tmp_path / "weights"
    content = bytearray(os.urandom(200_000))
    path.write_bytes(content)
    before = weights_digest([path])
    content[place] ^= 1
    path.write_bytes(content)
    assert weights_digest([path]) != before


def test_large_weights_are_known_by_pieces_the_first_and_the_last_byte_among_them(tmp_path):
    path = tmp_path / "weights"
    size = 4 * SAMPLES * SAMPLE

    def write(**changes):
        with path.open("wb") as file:
            file.truncate(size)
            for place in changes.values():
                file.seek(place)
                file.write(b"x")
        return weights_digest([path])

    nothing = write()
    assert len({nothing, write(at=0), write(at=size - 1), write(at=4 * SAMPLE), write(at=5)}) == 5
    assert write(at=2 * SAMPLE) == nothing, "between two pieces"


def test_names_sizes_and_order_of_weights_count(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    one, other = tmp_path / "a", tmp_path / "b"
    assert len({weights_digest(files) for files in ([one], [other], [one, other], [other, one], [])}) == 5
