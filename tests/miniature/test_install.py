"""Installed checkpoints replace those that were there, and their digests are true."""

import json

from miniature.install import install
from woodshed.toy.miniature import digests_of


def test_a_world_is_replaced_and_its_log_kept(tmp_path):
    made, world, record = (tmp_path / name for name in ("made", "world", "record"))
    (made / "checkpoints" / "vae").mkdir(parents=True)
    (made / "checkpoints" / "vae" / "config.json").write_text("{}", encoding="utf-8")
    (made / "log.jsonl").write_text("a line", encoding="utf-8")
    world.mkdir()
    (world / "old.safetensors").touch()
    record.mkdir()
    install(made, world, record)
    assert {path.name for path in world.iterdir()} == {"vae", "digests.json"}
    digests = json.loads((world / "digests.json").read_text(encoding="utf-8"))
    assert digests == digests_of(world)
    assert list(digests) == ["vae/config.json"]
    assert (record / "log.jsonl").read_text(encoding="utf-8") == "a line"
