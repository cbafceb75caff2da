"""Where the sets keep their images and labels: ADE20K, Cityscapes, and VOC2012 with the labels that SBD added.

``ade20k``: images/{training,validation}/X.jpg, annotations/{training,validation}/X.png.
``cityscapes``: leftImg8bit/{train,val}/CITY/X_leftImg8bit.png, gtFine/{train,val}/CITY/X_gtFine_labelTrainIds.png, or
X_gtFine_labelIds.png where there are no trainIds.
``voc12aug``: JPEGImages/X.jpg of the lists ImageSets/Segmentation/trainaug.txt (or train.txt and aug.txt) and val.txt,
SegmentationClass/X.png, or SegmentationClassAug/X.png where VOC has none. As in mmsegmentation's configs, which take
VOC's own labels for train.txt and val.txt and the added ones for aug.txt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from smog.errors import UsageError, nearest
from transfer.files import Files
from transfer.problems import Problems, some

HOMES = {
    "ade20k": ("", "ADEChallengeData2016/"),
    "cityscapes": ("", "cityscapes/"),
    "voc12aug": ("", "VOCdevkit/VOC2012/", "VOC2012/"),
}  # folders below the root in which a set may lie
IMAGES = {"ade20k": "images", "cityscapes": "leftImg8bit", "voc12aug": "JPEGImages"}
SPLITS = {"train": "training", "val": "validation"}  # as ADE20K calls them
ENDINGS = ("jpg", "jpeg", "png")
LISTS = "ImageSets/Segmentation"
TRAIN = (("trainaug.txt",), ("train.txt", "aug.txt"))  # lists: the first that are all there
_IMAGE, _LABELS = "_leftImg8bit.png", ("_gtFine_labelIds.png", "_gtFine_labelTrainIds.png")  # the last that is there


class Listed(NamedTuple):
    """An image and its labels: a name, and the paths of two files."""

    id: str
    file: str
    labels: str


@dataclass(frozen=True)
class Listing:
    """What a split holds."""

    pairs: list[Listed]  # in the order of their names
    key: list[list[object]]  # names and sizes in bytes, the same wherever the set lies
    notes: list[str]


@dataclass
class _Halves:
    """Paths of images and of labels by their names, and the sizes in bytes of these files."""

    wanted: str  # where the labels of an image are looked for, with {} for its name
    images: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def listing(kind: str, files: Files, split: str, problems: Problems) -> Listing:
    """Return the pairs of ``train`` or ``val``; images without labels go to ``problems``.

    Raises UsageError for an unknown kind or split, and where no pair is there.
    """
    if kind not in HOMES:
        raise UsageError(f"there is no layout {kind!r}{nearest(kind, HOMES)}")
    if split not in SPLITS:
        raise UsageError(f"a segmentation set has the splits train and val, not {split!r}")
    home = _home(kind, files)
    read = {"ade20k": _ade20k, "cityscapes": _cityscapes, "voc12aug": _voc12aug}[kind]
    halves = read(files, home, split, problems)
    for name in sorted(halves.images.keys() - halves.labels):
        problems.add("images without labels", f"{halves.images[name]}: no {halves.wanted.format(name)}")
    names = sorted(halves.images.keys() & halves.labels)
    if not names:
        problems.stop()
    pairs = [Listed(name, halves.images[name], halves.labels[name]) for name in names]
    key = [[path.removeprefix(home), halves.sizes[path]] for pair in pairs for path in pair[1:]]
    extra = sorted(halves.labels[name] for name in halves.labels.keys() - halves.images)
    notes = [f"{len(extra)} label images without an image are not used: {some(extra)}"] if extra else []
    return Listing(pairs, key, notes)


def _home(kind: str, files: Files) -> str:
    """Return the folder in which the set lies, with / at its end, or nothing for the root."""
    for home in HOMES[kind]:
        if files.sizes(f"{home}{IMAGES[kind]}"):
            return home
    tried = ", ".join(f"{home}{IMAGES[kind]}/" for home in HOMES[kind])
    raise UsageError(f"{files.root} holds no images in {kind}'s layout: looked into {tried}")


def _ade20k(files: Files, home: str, split: str, problems: Problems) -> _Halves:
    images, labels = (f"{home}{part}/{SPLITS[split]}" for part in ("images", "annotations"))
    halves = _Halves(f"{labels}/{{}}.png")
    for name, size in _visible(files.sizes(images)):
        stem, _, ending = name.rpartition(".")
        if ending.lower() in ENDINGS:
            if stem in halves.images:
                problems.add("images of one name", f"{halves.images[stem]} and {images}/{name}")
            halves.images[stem] = f"{images}/{name}"
            halves.sizes[f"{images}/{name}"] = size
    _there(halves, files, images)
    for name, size in _visible(files.sizes(labels)):
        if name.endswith(".png"):
            halves.labels[name[:-4]] = f"{labels}/{name}"
            halves.sizes[f"{labels}/{name}"] = size
    return halves


def _cityscapes(files: Files, home: str, split: str, _: Problems) -> _Halves:
    images, labels = f"{home}leftImg8bit/{split}", f"{home}gtFine/{split}"
    halves = _Halves(f"{labels}/{{}}{_LABELS[1]} or {_LABELS[0]}")
    for name, size in _visible(files.sizes(images)):
        if name.endswith(_IMAGE):
            halves.images[name.removesuffix(_IMAGE)] = f"{images}/{name}"
            halves.sizes[f"{images}/{name}"] = size
    _there(halves, files, images)
    found = dict(_visible(files.sizes(labels)))
    for ending in _LABELS:
        for name in found:
            if name.endswith(ending):
                halves.labels[name.removesuffix(ending)] = f"{labels}/{name}"
                halves.sizes[f"{labels}/{name}"] = found[name]
    return halves


def _voc12aug(files: Files, home: str, split: str, problems: Problems) -> _Halves:
    folders = [f"{home}{part}" for part in ("SegmentationClass", "SegmentationClassAug")]
    halves = _Halves(" or ".join(f"{folder}/{{}}.png" for folder in folders))
    images = files.sizes(f"{home}JPEGImages")
    known = [(folder, files.sizes(folder)) for folder in folders]
    for name in _listed(files, home, split, problems):
        if f"{name}.jpg" not in images:
            problems.add("images that are listed and not there", f"{home}JPEGImages/{name}.jpg")
            continue
        halves.images[name] = f"{home}JPEGImages/{name}.jpg"
        halves.sizes[halves.images[name]] = images[f"{name}.jpg"]
        for folder, sizes in known:
            if f"{name}.png" in sizes:
                halves.labels[name] = f"{folder}/{name}.png"
                halves.sizes[halves.labels[name]] = sizes[f"{name}.png"]
                break
    return halves


def _listed(files: Files, home: str, split: str, problems: Problems) -> Iterable[str]:
    """Yield the names in the lists of a split, each once; other tools write lines of two paths, image and labels."""
    folder, seen = f"{home}{LISTS}", set()
    there = files.sizes(folder)
    wanted = TRAIN if split == "train" else (("val.txt",),)
    lists = next((names for names in wanted if there.keys() >= set(names)), None)
    if lists is None:
        expected = ", or ".join(" and ".join(names) for names in wanted)
        raise UsageError(f"{files.root} has no list of {split}: expected {expected} in {folder}/")
    for path in (f"{folder}/{name}" for name in lists):
        try:
            lines = files.read(path).decode().splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"{files.root}/{path} can't be read ({error})") from None
        for name in (line.split()[0].rpartition("/")[2].removesuffix(".jpg") for line in lines if line.strip()):
            if name in seen:
                problems.add("names that are listed twice", f"{path}: {name}")
            else:
                yield name
            seen.add(name)
    if not seen:
        raise UsageError(f"{files.root} has an empty split {split}: no name in {' and '.join(lists)} of {folder}/")


def _visible(sizes: dict[str, int]) -> Iterable[tuple[str, int]]:
    """Yield what is no hidden file, such as the ._X.jpg that macOS adds."""
    return ((name, size) for name, size in sizes.items() if not name.rpartition("/")[2].startswith("."))


def _there(halves: _Halves, files: Files, folder: str) -> None:
    if not halves.images:
        raise UsageError(f"{files.root} has an empty split: no images in {folder}/")
