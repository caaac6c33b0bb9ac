"""`python -m miniature.install`: put trained checkpoints into the package, with their digests."""

import argparse
import json
import shutil
from pathlib import Path

from woodshed.toy.miniature import DIGESTS, WORLD, digests_of


def main() -> None:
    """Replace what the package holds."""
    parser = argparse.ArgumentParser(prog="python -m miniature.install", description="Install the miniature.")
    parser.add_argument("root", type=Path, help="the checkpoints that python -m miniature wrote")
    root = parser.parse_args().root
    shutil.rmtree(WORLD, ignore_errors=True)
    shutil.copytree(root, WORLD)
    for path in WORLD.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    DIGESTS.write_text(json.dumps(digests_of(WORLD), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
