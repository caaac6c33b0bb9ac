"""A day in small: ten thousand steps with samples, validation and saving, and nothing grows that should not."""

import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("enduring.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_handles_and_files_stay_as_they_are(tmp_path, world, checkpoint_root):
    said = world.script(PROGRAM, checkpoint_root, tmp_path, 10_000, minutes=50)
    assert (said["steps"], said["leftovers"]) == (10_000, [])
    warm, late = said["looks"][5:10], said["looks"][-5:]
    for what, share, more in (("memory", 1.05, 0), ("handles", 1, 2), ("threads", 1, 0)):  # a file may just be open
        assert max(look[what] for look in late) <= share * max(look[what] for look in warm) + more, what
    assert {look["checkpoints"] for look in late} == {2}
    new_files = late[-1]["files"] - late[0]["files"]
    assert new_files <= 8, "beside samples nothing is added"
    first, last = said["looks"][0], said["looks"][-1]
    assert last["journal"] / last["step"] == pytest.approx(first["journal"] / first["step"], rel=0.1)
