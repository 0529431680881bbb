"""The folder of the images: which file in it a name in the results means, and that no name leads out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pycap.data import DataError
from pycap.data.layout import contents, is_image_name


def endings(name: str) -> list[str]:
    """What a name in the results may be called below the folder: the name itself, then without its first folders, the longest
    first. An absolute path's begin below `/`, and those of a path with `..` behind the last of them."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    while ".." in parts:
        del parts[: parts.index("..") + 1]
    return ["/".join(parts[first:]) for first in range(len(parts))]


class ImageFolder:
    """The images below one folder. Of several files that a name may mean, it is that with the longest ending of the name."""

    def __init__(self, folder: str | Path) -> None:
        """DataError where there is no such folder."""
        self.given = Path(folder)
        if not self.given.is_dir():
            beside = f"; {self.given.parent} holds: {contents(self.given.parent)}" if self.given.parent.is_dir() else ""
            what = "is a file, not a folder" if self.given.exists() else "no such folder"
            unpacked = ", unpacked where they were in an archive or a store" if self.given.exists() else ""
            raise DataError(f"{folder}: {what}; give --images the folder of the captioned images{unpacked}{beside}")
        self.root = os.path.realpath(folder)
        self._inside = os.path.join(self.root, "")
        self._places: dict[str, list[tuple[str, frozenset[str]]]] = {}
        self._listings: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> str | None:
        """The path below the folder of the image that a row of the results calls `name`; None where there is none.

        Each folder is listed once (half a million questions to a network disk would take minutes) and held until `forget`.
        """
        head, _, tail = name.rpartition("/")
        if not is_image_name(tail):
            return None
        if head not in self._places:
            folders = [*endings(head), ""]
            found = [(f"{folder}/" if folder else "", self._names(folder)) for folder in folders]
            self._places[head] = [place for place in found if place[1]]
        return next((f"{folder}{tail}" for folder, names in self._places[head] if tail in names), None)

    def forget(self) -> None:
        """Give the listings' memory back."""
        self._places.clear()
        self._listings.clear()

    def path(self, relative: str) -> str | None:
        """The path of an image file below the folder, links followed; None where it is gone, no image's, or leads out."""
        real = os.path.realpath(os.path.join(self.root, relative))
        inside = real.startswith(self._inside) and is_image_name(os.path.basename(relative))
        return real if inside and os.path.isfile(real) else None

    def full(self, relative: str) -> str:
        """The absolute path of what lies below the folder."""
        return os.path.join(self.root, relative)

    def below(self, path: str) -> str | None:
        """A file's path below the folder, of its absolute path; None where it is elsewhere."""
        return path.removeprefix(self._inside) if path.startswith(self._inside) else None

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            self._listings[folder] = frozenset(self._list(folder))
        return self._listings[folder]

    def _list(self, folder: str) -> Iterator[str]:
        path = os.path.join(self.root, folder)
        if not os.path.isdir(path) or not os.path.join(os.path.realpath(path), "").startswith(self._inside):
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if self.path(os.path.join(folder, entry.name)):
                        yield entry.name
                elif not entry.is_dir():
                    yield entry.name
