"""Detection data in COCO's layout: read once, checked before training, all that is wrong in one report."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from smog.errors import RunError, UsageError
from smog.identity import digest
from transfer.coco_check import Table, check, parse
from transfer.files import Files
from transfer.problems import Problems
from transfer.share import drawn

YEARS = ("2017", "")  # of folders and json files, the first that is there
SAMPLE = 500  # images that are decoded at opening, spread evenly: all of a small set, seconds of a large one


@dataclass(frozen=True)
class Annotated:
    """One image and its objects."""

    id: int
    file: str  # its path below the root, with /
    height: int
    width: int
    boxes: np.ndarray  # float32 [n, 4], XYXY in pixels, cut to the image
    labels: np.ndarray  # int64 [n], from 0, in the order of the classes
    crowd: np.ndarray  # bool [n]: a region of many, neither a target nor a mistake
    areas: np.ndarray  # float32 [n], pixels of the mask
    segments: list[Any]  # n COCO segmentations: polygons (lists of floats) or RLE; None where the set has none
    exact: np.ndarray | None = None  # float64 [n, 5], XYWH and area as written; None where boxes and areas are exact


class Source(Protocol):
    """Where the pixels of a data set come from."""

    def pixels(self, image: Annotated) -> np.ndarray:
        """Return uint8 RGB [h, w, 3]; raises ValueError or OSError where the image can't be read."""

    def where(self, image: Annotated) -> str:
        """Return the path, or what stands for one, for messages."""


@dataclass(frozen=True)
class Dataset:
    """One split: its classes, its images, and where their pixels come from."""

    name: str
    classes: list[str]
    category_ids: list[int]  # of the json, in the order of the classes
    images: list[Annotated]
    fingerprint: str  # 12 hex digits over all annotations and the names and sizes of the image files
    source: Source
    notes: list[str] = field(default_factory=list)  # worth a line, and no error

    def read(self, index: int) -> np.ndarray:
        """Return image number ``index``, uint8 RGB [h, w, 3].

        Raises RunError (kind "data") where it does not decode, or has another size than the annotations say.
        """
        image = self.images[index]
        try:
            pixels = self.source.pixels(image)
        except (ValueError, OSError) as error:
            where = self.source.where(image)
            raise RunError(f"{where}: image can't be read ({error}); mend it or take it out", kind="data") from None
        if pixels.shape[:2] != (image.height, image.width):
            raise RunError(f"{self.source.where(image)}: {_sizes(pixels, image.height, image.width)}", kind="data")
        return pixels

    def coco(self) -> dict[str, Any]:
        """Return the ground truth as a COCO dict; annotations are numbered from 1, as the evaluation needs it."""
        images = [{"id": image.id, "height": image.height, "width": image.width} for image in self.images]
        with uncollected():
            objects = [entry for image in self.images for entry in self._objects(image)]
        for number, entry in enumerate(objects, 1):
            entry["id"] = number
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "annotations": objects, "categories": categories}

    @property
    def has_masks(self) -> bool:
        """Say whether the objects have segmentations: all of them or none."""
        return any(segment is not None for image in self.images for segment in image.segments)

    def _objects(self, image: Annotated) -> Iterator[dict[str, Any]]:
        exact = image.exact
        if exact is None:
            exact = np.column_stack([image.boxes, image.areas]).astype(np.float64)
            exact[:, 2:4] -= exact[:, :2]
        columns = (exact.tolist(), image.labels.tolist(), image.crowd.tolist(), image.segments)
        for (*box, area), label, crowd, segment in zip(*columns, strict=True):
            entry = {"image_id": image.id, "category_id": self.category_ids[label], "bbox": box, "area": area}
            yield {**entry, "iscrowd": int(crowd)} | ({} if segment is None else {"segmentation": segment})


def open_coco(root: Path, split: str) -> Dataset:
    """Open ``train`` or ``val`` of a folder, or its zip: train2017/ and annotations/instances_train2017.json, with or
    without the year.

    Raises UsageError with all that is wrong: see transfer/coco_check.py. Linear in the json.
    """
    files = Files(root)
    folder, sizes = _folder(files, split)
    name, content = _json(files, split)
    problems = Problems(f"{root}/{name}")
    with uncollected():
        table = check(parse(content, problems), sizes, problems)
    _sample(files, folder, table, problems)
    problems.stop()
    title, key = root.resolve().name.removesuffix(".zip"), _key(content, sizes)
    notes = table.notes + _unlisted(table, sizes, folder)
    return Dataset(title, table.classes, table.category_ids, _images(table, folder), key, files, notes)


def fingerprint(root: Path) -> str:
    """Return 12 hex digits over the annotations of both splits and the names and sizes of their images, unchecked."""
    files = Files(root)
    return digest([_key(_json(files, split)[1], _folder(files, split)[1]) for split in ("train", "val")])


def _key(content: bytes, sizes: dict[str, int]) -> str:
    return digest([hashlib.sha256(content).hexdigest(), sorted(sizes.items())])


def check_pair(train: Dataset, val: Dataset) -> None:
    """Refuse two splits with different categories: a label would mean one class in training and another after."""
    pairs = [set(zip(split.category_ids, split.classes, strict=True)) for split in (train, val)]
    if pairs[0] == pairs[1]:
        return
    problems = Problems(f"{train.name}: train and val")
    for (one, other), name in zip((pairs, pairs[::-1]), ("train", "val"), strict=True):
        for number, text in sorted(one - other):
            problems.add(f"categories of {name} alone", f"{number} {text!r}")
    problems.stop()


def fraction(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Return a random share of the images, 0 < share <= 1, in their order; the smaller shares of a seed lie within
    its larger ones. Raises UsageError for another share, or one that leaves nothing to learn from."""
    chosen = drawn(len(dataset.images), share, seed)
    if share == 1:
        return dataset
    images = [dataset.images[index] for index in chosen]
    if not any((~image.crowd).any() for image in images):
        count = len(images)
        raise UsageError(f"{dataset.name}: none of the {count} images of the fraction {share} has an object; take more")
    key = digest([dataset.fingerprint, [image.id for image in images]])
    note = f"{len(images)} of {len(dataset.images)} images (fraction {share}, seed {seed})"
    return replace(dataset, images=images, fingerprint=key, notes=[*dataset.notes, note])


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector off while millions of objects are made, none of them garbage: it would look through
    all of them over and over, a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _folder(files: Files, split: str) -> tuple[str, dict[str, int]]:
    """Return the folder of a split's images and the sizes of what lies in it."""
    if split not in ("train", "val"):
        raise UsageError(f"a COCO set has the splits train and val, not {split!r}")
    for folder in (f"{split}{year}" for year in YEARS):
        if sizes := files.sizes(folder):
            return folder, sizes
    raise UsageError(f"{files.root} holds no images of {split}: expected {split}2017/ or {split}/ with files in it")


def _json(files: Files, split: str) -> tuple[str, bytes]:
    """Return the name of a split's json and its content."""
    names = [f"instances_{split}{year}.json" for year in YEARS]
    there = files.sizes("annotations")
    for name in names:
        if name in there:
            try:
                return f"annotations/{name}", files.read(f"annotations/{name}")
            except (OSError, ValueError) as error:
                raise UsageError(f"{files.root}/annotations/{name} can't be read ({error})") from None
    raise UsageError(f"{files.root} has no annotations of {split}: expected annotations/{' or '.join(names)}")


def _sample(files: Files, folder: str, table: Table, problems: Problems) -> None:
    """Decode some images, so that a json of other images is found before training and not in the middle of it."""
    for place in np.linspace(0, len(table.files) - 1, min(SAMPLE, len(table.files))).astype(int):
        name, (height, width) = table.files[place], table.sizes[place].tolist()
        try:
            pixels = files.decode(f"{folder}/{name}")
        except (ValueError, OSError) as error:
            problems.add("images that can't be read", f"{folder}/{name}: {error}")
            continue
        if pixels.shape[:2] != (height, width):
            problems.add("images of another size than the json's", f"{name}: {_sizes(pixels, height, width)}")


def _sizes(pixels: np.ndarray, height: int, width: int) -> str:
    return f"the file has {pixels.shape[1]} x {pixels.shape[0]} pixels, the annotations say {width} x {height}"


def _images(table: Table, folder: str) -> list[Annotated]:
    """Give every image its objects: slices of the columns, which lie in the order of the images."""
    ends = np.searchsorted(table.at, np.arange(len(table.files) + 1)).tolist()
    images = []
    for place, (height, width) in enumerate(table.sizes.tolist()):
        own = slice(ends[place], ends[place + 1])
        name, boxes, labels, crowd = (
            f"{folder}/{table.files[place]}",
            table.boxes[own],
            table.labels[own],
            table.crowd[own],
        )
        rest = table.areas[own], table.segments[own], table.exact[own]
        images.append(Annotated(table.ids[place], name, height, width, boxes, labels, crowd, *rest))
    return images


def _unlisted(table: Table, sizes: dict[str, int], folder: str) -> list[str]:
    extra = len(sizes.keys() - set(table.files))
    return [f"{extra} files of {folder}/ are not in the json and are not used"] if extra else []
