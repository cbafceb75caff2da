"""The files of a data set, which lie in a folder or in a zip of it."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from smog.errors import UsageError

if TYPE_CHECKING:
    from transfer.coco_data import Annotated


class Files:
    """The files of a folder, or of its zip; names are the same in both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        if not root.is_dir():
            try:
                self._open()
            except (OSError, zipfile.BadZipFile) as error:
                raise UsageError(f"{root} is neither a folder nor a readable zip ({error})") from None

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of every file in a folder and those in it, by its name below that folder."""
        prefix = f"{folder}/"
        if self.root.is_dir():
            found = _walk(self.root / folder) if (self.root / folder).is_dir() else ()
        else:
            entries = self._open().infolist()
            found = ((entry.filename, entry.file_size) for entry in entries if not entry.is_dir())
            return {name[len(prefix) :]: size for name, size in found if name.startswith(prefix)}
        return dict(found)

    def read(self, name: str) -> bytes:
        """Return the content of a file; raises OSError or ValueError where it can't be had."""
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        try:
            return self._open().read(name)
        except (KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{error} in the zip") from None

    def decode(self, name: str) -> np.ndarray:
        """Return an image as people see it, uint8 RGB [h, w, 3]: turned where its EXIF says so, as detectron2 does."""
        content = np.frombuffer(self.read(name), np.uint8)
        try:
            image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
        except cv2.error as error:
            raise ValueError(" ".join(str(error).split())) from None
        if image is None:
            raise ValueError("it does not decode")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def pixels(self, image: Annotated) -> np.ndarray:
        """Return the pixels of an image, uint8 RGB [h, w, 3]."""
        return self.decode(image.file)

    def where(self, image: Annotated) -> str:
        """Return the path of an image, in its zip if it lies in one."""
        return f"{self.root}/{image.file}"

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != os.getpid():  # processes must not share a file position
            self._archive = os.getpid(), zipfile.ZipFile(self.root)
        return self._archive[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None}


def _walk(folder: Path, prefix: str = "") -> Iterable[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file():  # no link into nowhere
                yield f"{prefix}{entry.name}", entry.stat().st_size
