"""Songs that were read once and stay: on the card where there is room, else in RAM."""

import torch

from woodshed.data.dataset import Sample


class KeptSongs:
    """Songs by their place in the dataset.

    Memory of a card is lent: where it runs out, the songs give way.

    Args:
        device: where they stay; None for nowhere.
        instead: where they stay once the device has no more room for them.
    """

    def __init__(self, device: torch.device | None, instead: torch.device | None = None) -> None:
        # One value, replaced as a whole: songs are added in one thread and given back in another.
        self._place: tuple[torch.device | None, dict[int, Sample]] = (device, {})
        self._instead = instead
        self._said: list[str] = []

    def get(self, index: int) -> Sample | None:
        """Return a song that is here."""
        return self._place[1].get(index)

    def add(self, index: int, song: Sample) -> Sample:
        """Keep a song; return it as it is kept."""
        device, songs = self._place
        if device is None:
            return song
        try:
            songs[index] = song.to(device)
        except torch.OutOfMemoryError:
            self.give_back()
            return song
        return songs[index]

    def give_back(self) -> bool:
        """Free a card's memory from now on; return whether there was any to free."""
        device, songs = self._place
        if device is None or device == self._instead:
            return False
        self._place = (self._instead, {})
        then = "read from the disk each time" if self._instead is None else "kept in RAM"
        self._said.append(
            f"{device} has no more room for songs: {len(songs)} that were kept there give way to the training, and all "
            f"are {then} from here on."
        )
        return True

    def notices(self) -> list[str]:
        """Return what was not said yet: that songs had to give way."""
        said, self._said = self._said, []
        return said
