"""The images of a split as the trainer and the tasks read them: kept decoded when small, bad ones never dropped."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np

from smog.data.sources import Source, open_source
from smog.errors import RunError
from smog.identity import digest
from smog.schema import Config
from smog.store import write_atomically


class Images:
    """The images of a source. ``images[index]`` is uint8 RGB [height, width, 3]; ``bad`` counts by path.

    An image that does not decode raises RunError, or is replaced by the next one that does (``replace``).
    """

    def __init__(self, source: Source, on_bad_image: str) -> None:
        self.source, self.on_bad_image = source, on_bad_image
        self.labels, self.classes = source.labels, source.classes
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        for step in range(len(self)):
            image = self._decoded((index + step) % len(self))
            if image is not None:
                return image
        raise RunError(f"no image of {self.source.name(0)} and the {len(self) - 1} after it decodes", kind="data")

    def _decoded(self, index: int) -> np.ndarray | None:
        try:
            return self.source.read(index)
        except (ValueError, OSError) as error:
            name = self.source.name(index)
            if self.on_bad_image == "fatal":
                raise RunError(
                    f"{name}: image can't be read ({error}); mend it, or take data.on_bad_image=replace",
                    kind="data",
                ) from None
            self.bad[name] = str(error)
            return None


class Kept(Images):
    """The same images, decoded once into one memory-mapped file that processes share.

    ``offsets`` int64 [n + 1] into ``pixels``, ``shapes`` int32 [n, 2] (height, width).
    """

    def __init__(self, source: Source, path: Path) -> None:
        super().__init__(source, "fatal")
        self.path = path
        with np.load(path.with_suffix(".npz")) as index:
            self.offsets, self.shapes = index["offsets"], index["shapes"]
            self.bad = dict(zip(index["bad"].tolist(), index["why"].tolist(), strict=True))
        self._map()

    def _map(self) -> None:
        self.pixels = np.memmap(self.path, dtype=np.uint8, mode="r").view(np.ndarray)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "pixels": None}  # a worker maps the file itself instead of getting a copy

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._map()

    def __getitem__(self, index: int) -> np.ndarray:
        flat = self.pixels[self.offsets[index] : self.offsets[index + 1]]
        return flat.reshape(*self.shapes[index], 3)


def open_images(config: Config, split: str) -> Images:
    """Open a split; where its decoded images take at most ``runtime.keep_images`` megabytes, keep them in the store."""
    images = Images(open_source(config.data, split), config.data.on_bad_image)
    limit = config.runtime.keep_images * 2**20
    if not limit or not config.data.fingerprint or _estimate(images) > limit:
        return images
    data = config.data
    # the part of the configuration that says which pixels these are
    key = digest([data.name, data.fingerprint, data.size, len(images), data.on_bad_image, split])
    path = Path(config.runtime.store) / "cache" / f"{data.name}-{split}-{key}.pixels"
    if not path.with_suffix(".npz").exists():
        _keep(images, path)
    return Kept(images.source, path)


def _estimate(images: Images) -> float:
    """Guess the decoded size in bytes from a few images."""
    some = np.linspace(0, len(images) - 1, 8).astype(int)
    return float(np.mean([images[int(index)].size for index in some])) * len(images)


def _keep(images: Images, path: Path) -> None:
    offsets, shapes = [0], []

    def write(file: IO[bytes]) -> None:
        for index in range(len(images)):
            image = images[index]
            file.write(np.ascontiguousarray(image).data)
            offsets.append(offsets[-1] + image.size)
            shapes.append(image.shape[:2])

    write_atomically(path, write)
    index: dict[str, Any] = {
        "offsets": np.array(offsets, dtype=np.int64),
        "shapes": np.array(shapes, dtype=np.int32),
        "bad": np.array(list(images.bad), dtype=np.str_),
        "why": np.array(list(images.bad.values()), dtype=np.str_),
    }
    write_atomically(path.with_suffix(".npz"), lambda file: np.savez(file, **index))
