"""From a path as somebody wrote it to the audio file that it means here."""

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from woodshed.errors import DataError


class AudioFiles:
    """Finds the audio that metadata mean: where they say, else by its name in the audio folder.

    Args:
        beside: the folder of the metadata.
        audio_dir: where else to look.
        in_folder: the audio files in there.
    """

    def __init__(self, beside: Path, audio_dir: Path | None, in_folder: tuple[Path, ...]) -> None:
        self._roots = (beside, Path(), *([audio_dir] if audio_dir else []))
        self._by_name: dict[str, list[Path]] = {}
        for file in in_folder:
            self._by_name.setdefault(_one_spelling(file.name), []).append(file)

    def find(self, written: str) -> Path:
        """Return the file that a written path means; of several with its name, the one in the same folders.

        Raises:
            DataError: when there is none, or more than one.
        """
        if not written:
            raise DataError("audio_path is missing: it must name the audio file.")
        pure = PureWindowsPath(written) if "\\" in written else PurePosixPath(written)
        for candidate in [root / written for root in self._roots] + [self._roots[0] / pure.name]:
            if _is_file(candidate):
                return candidate
        matches = self._by_name.get(_one_spelling(pure.name), [])
        if not matches:
            raise DataError(f"{written[:300]} does not exist. Give the folder that holds it with --audio-dir.")
        likeness = [_common_tail(pure.parts, match.parts) for match in matches]
        if likeness.count(max(likeness)) > 1:
            raise DataError(f"{written} does not exist, and {len(matches)} files below --audio-dir have its name.")
        return matches[likeness.index(max(likeness))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than any file can have
        return False


def _one_spelling(name: str) -> str:
    """Return a name in one Unicode form: macOS takes letters and accents apart, JSON files seldom do."""
    return unicodedata.normalize("NFC", name)


def _common_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many of the last parts two paths share."""
    count = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if _one_spelling(mine) != _one_spelling(theirs):
            break
        count += 1
    return count
