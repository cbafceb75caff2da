"""The named data sets: which images there are, their labels, and the fingerprint that goes into a run's identity."""

from __future__ import annotations

import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from smog.data import scenes
from smog.errors import UsageError
from smog.identity import digest
from smog.schema import Config, Data

SPLITS = ("train", "val")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_FOLDERS = {"train": ("train",), "val": ("val", "test", "validation")}


class Source(Protocol):
    """A list of labelled images."""

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 [n]."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    def read(self, index: int) -> np.ndarray:
        """Return image ``index`` as uint8 RGB [height, width, 3]; raises ValueError where it does not decode."""

    def name(self, index: int) -> str:
        """Return the path, or what stands for one, for messages."""


def open_source(data: Data, split: str) -> Source:
    """Open one split of the configured data set, reduced to the configured number of images."""
    wanted = data.train_images if split == "train" else data.val_images
    if data.name == "garments":
        return Garments(split, data.size, wanted or scenes.count(split))
    source = _files(_root(data), data, split)
    if len(set(source.labels.tolist())) < 2:
        raise UsageError(f"{data.root}: split {split!r} has one class only; the tasks need at least two")
    if wanted > len(source.labels):
        raise UsageError(f"data.{split}_images={wanted} is above the {len(source.labels)} images in {data.root}")
    return Subset(source, np.linspace(0, len(source.labels) - 1, wanted).round().astype(int)) if wanted else source


def fingerprint(data: Data) -> str:
    """Return 12 hex digits over the names and sizes of all files, or over the pictures that scenes are made of.

    A folder and a zip of it have the same fingerprint, and so the same runs.
    """
    if data.name == "garments":
        return digest(["garments", scenes.VERSION])
    root = _root(data)
    if _torchvision_files(root, data):
        return digest(["cifar10", "torchvision"])  # torchvision checks the sum of its files
    return digest([_listing(root, split)[1] for split in SPLITS])


def with_fingerprint(config: Config) -> Config:
    """Return the configuration with its data looked at; a fingerprint given by hand must agree."""
    found = fingerprint(config.data)
    if config.data.fingerprint not in ("", found):
        raise UsageError(
            f"data.fingerprint={config.data.fingerprint} but {config.data.root or config.data.name} has {found}: "
            "these are other images"
        )
    return replace(config, data=replace(config.data, fingerprint=found))


@dataclass(frozen=True)
class Garments:
    """The embedded set: garment ``index`` is drawn anew from its index at every call."""

    split: str
    size: int
    count: int
    classes: Sequence[str] = scenes.CLASSES

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 [n]."""
        return np.array([scenes.label(index, self.split) for index in range(self.count)])

    def read(self, index: int) -> np.ndarray:
        """Draw the image."""
        return scenes.draw(0, index, self.size, self.split)

    def name(self, index: int) -> str:
        """Name the image."""
        return f"garments/{self.split}/{index}"


class Files:
    """Images in a folder or a zip, one folder a class."""

    def __init__(self, root: Path, split: str) -> None:
        names, _ = _listing(root, split)
        self.root, self.names = root, names
        self.classes = sorted({name.split("/")[1] for name in _listing(root, "train")[0]})
        number = {name: i for i, name in enumerate(self.classes)}  # of train, so that a label means one class in both
        strange = sorted({name.split("/")[1] for name in names} - number.keys())
        if strange:
            raise UsageError(f"{root}: split {split!r} has the class {strange[0]!r}, which train lacks")
        self.labels = np.array([number[name.split("/")[1]] for name in names], dtype=np.int64)
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def read(self, index: int) -> np.ndarray:
        """Read and decode the image."""
        try:
            content = np.frombuffer(self._bytes(index), dtype=np.uint8)
            image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
        except (cv2.error, zipfile.BadZipFile, zlib.error, KeyError) as error:
            raise ValueError(" ".join(str(error).split())) from None
        if image is None:
            raise ValueError(f"{self.name(index)} does not decode")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def name(self, index: int) -> str:
        """Return the path of the image, in its zip if it lies in one."""
        return f"{self.root}/{self.names[index]}"

    def _bytes(self, index: int) -> bytes:
        if self.root.is_dir():
            return (self.root / self.names[index]).read_bytes()
        if self._archive is None or self._archive[0] != os.getpid():  # processes must not share a file position
            self._archive = os.getpid(), zipfile.ZipFile(self.root)
        return self._archive[1].read(self.names[index])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None}


class Cifar:
    """CIFAR-10 in the files that torchvision knows."""

    def __init__(self, root: Path, split: str, download: bool) -> None:
        from torchvision.datasets import CIFAR10

        try:
            files = CIFAR10(str(root), train=split == "train", download=download)
        except (RuntimeError, OSError) as error:
            raise UsageError(f"{root}: CIFAR-10 can't be had there: {' '.join(str(error).split())}") from None
        self.images, self.classes = files.data, files.classes
        self.labels = np.array(files.targets, dtype=np.int64)
        self.root = root

    def read(self, index: int) -> np.ndarray:
        """Return the image."""
        return self.images[index]

    def name(self, index: int) -> str:
        """Name the image."""
        return f"{self.root}/cifar-10-batches-py#{index}"


class Subset:
    """Some images of a source, in the order given."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.labels, self.classes = source.labels[indices], source.classes

    def read(self, index: int) -> np.ndarray:
        """Read the image."""
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Name the image."""
        return self.source.name(int(self.indices[index]))


def _files(root: Path, data: Data, split: str) -> Source:
    return Cifar(root, split, data.download) if _torchvision_files(root, data) else Files(root, split)


def _torchvision_files(root: Path, data: Data) -> bool:
    return data.name == "cifar10" and (data.download or (root / "cifar-10-batches-py").is_dir())


def _root(data: Data) -> Path:
    if not data.root:
        raise UsageError(f"data={data.name} needs data.root=DIR, the folder or zip that holds the images")
    root = Path(data.root)
    if not root.exists() and not data.download:
        hint = "; data.download=true fetches it" if data.name == "cifar10" else ""
        raise UsageError(f"data.root={data.root} does not exist{hint}")
    return root


@functools.lru_cache(maxsize=8)
def _listing(root: Path, split: str) -> tuple[list[str], str]:
    """Return the names of all images of a split, ``FOLDER/CLASS/...``, sorted, and a digest over names and sizes."""
    sizes = dict(_sizes_in_folder(root, split) if root.is_dir() else _sizes_in_zip(root, split))
    names = sorted(name for name in sizes if name.lower().endswith(SUFFIXES) and name.count("/") >= 2)
    if not names:
        folder = " or ".join(f"{name}/" for name in _FOLDERS[split])
        raise UsageError(f"{root} holds no images of the split {split!r}: expected {folder}CLASS/*.jpg")
    hashed = hashlib.sha256()
    for name in names:
        hashed.update(f"{name.split('/', 1)[1]}\0{sizes[name]}\n".encode())
    return names, hashed.hexdigest()


def _sizes_in_folder(root: Path, split: str) -> Iterable[tuple[str, int]]:
    for folder in _FOLDERS[split]:
        if (root / folder).is_dir():
            return _walk(root / folder, folder)
    return []


def _walk(folder: Path, prefix: str) -> Iterable[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}/{entry.name}")
            else:
                yield f"{prefix}/{entry.name}", entry.stat().st_size


def _sizes_in_zip(root: Path, split: str) -> Iterable[tuple[str, int]]:
    try:
        with zipfile.ZipFile(root) as archive:
            entries = [(entry.filename, entry.file_size) for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"data.root={root} is neither a folder nor a readable zip ({error})") from None
    for folder in _FOLDERS[split]:
        if found := [entry for entry in entries if entry[0].startswith(f"{folder}/")]:
            return found
    return []
