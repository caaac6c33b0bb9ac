"""`python -m miniature.install`: put trained checkpoints into the package, with their digests, and keep their log."""

import argparse
import json
import shutil
from pathlib import Path

from woodshed.toy.miniature import DIGESTS, WORLD, digests_of

RECORD = Path(__file__).parent / "record"


def main() -> None:
    """Replace what the package holds."""
    parser = argparse.ArgumentParser(prog="python -m miniature.install", description="Install the miniature.")
    parser.add_argument("folder", type=Path, help="what python -m miniature wrote")
    install(parser.parse_args().folder, WORLD, RECORD)


def install(folder: Path, world: Path, record: Path) -> None:
    """Copy checkpoints to a world, in place of what is there, and their log to a record."""
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(folder / "checkpoints", world)
    for path in world.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (world / DIGESTS.name).write_text(json.dumps(digests_of(world), indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "log.jsonl", record / "log.jsonl")


if __name__ == "__main__":
    main()
