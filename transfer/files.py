"""The files of a data set, which lie in a folder or in a zip of it."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from smog.errors import UsageError

TURNED = range(5, 9)  # EXIF orientations that swap height and width
_DEPTH = slice(24, 26)  # of a PNG: bits a sample, and what a sample is (0 for grey)


class Named(Protocol):
    """An image of a data set, by the name of its file."""

    @property
    def file(self) -> str:
        """Its path below the root, with /."""


class ColorError(ValueError):
    """A picture in colours where an image of class numbers was expected."""


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
        with self._opened(name) as file:
            return file.read()

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

    def extent(self, name: str) -> tuple[int, int]:
        """Return height and width that ``decode`` gives, from the head of the file alone; raises as ``read``."""
        with self._opened(name) as file, _as_value_error(), Image.open(file) as image:
            width, height = image.size
            # asked only where it stands in the head: Pillow decodes a PNG to look for it at the end
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in TURNED
        return (width, height) if turned else (height, width)

    def numbers(self, name: str) -> np.ndarray:
        """Return the numbers in a PNG of labels, uint8 or uint16 [h, w]: grey levels, or the indices of a palette.

        Raises ColorError for a picture in RGB, ValueError or OSError for what is no such PNG or can't be read. Pillow,
        since OpenCV gives the colours of a palette, and the upper part of a file that is cut.
        """
        with self._opened(name) as file, _as_value_error(), Image.open(file) as image:
            if image.format != "PNG":
                raise ValueError(f"it is no PNG but {image.format}")
            if image.mode in ("RGB", "RGBA"):
                raise ColorError(f"it is a picture in {image.mode}")
            file.seek(0)
            bits, kind = file.read(_DEPTH.stop)[_DEPTH]
            file.seek(0)
            if kind == 0 and bits < 8:  # readers differ on what such a level is: the number, or a part of 255
                raise ValueError(
                    f"its grey levels have {bits} bit, so that their numbers are not certain: write 8 bits"
                )
            numbers = np.asarray(image)
        if numbers.ndim != 2:
            raise ValueError(f"it has {numbers.shape[-1]} channels, not one")
        return numbers if numbers.dtype == np.uint8 else numbers.astype(np.uint16)

    def pixels(self, image: Named) -> np.ndarray:
        """Return the pixels of an image, uint8 RGB [h, w, 3]."""
        return self.decode(image.file)

    def where(self, image: Named) -> str:
        """Return the path of an image, in its zip if it lies in one."""
        return f"{self.root}/{image.file}"

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file to read it; what is wrong with a zip is a ValueError."""
        if self.root.is_dir():
            with (self.root / name).open("rb") as file:
                yield file
            return
        try:
            with self._open().open(name) as entry:
                yield entry
        except (KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{error} in the zip") from None

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != os.getpid():  # processes must not share a file position
            self._archive = os.getpid(), zipfile.ZipFile(self.root)
        return self._archive[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None}


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Turn what Pillow raises over a broken image into a ValueError."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError("it is no image") from None
    except (SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _walk(folder: Path, prefix: str = "") -> Iterable[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file():  # no link into nowhere
                yield f"{prefix}{entry.name}", entry.stat().st_size
