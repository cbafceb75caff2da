"""What must hold of a COCO json before anything is trained on it. All that is wrong is collected and told at once.

Refused: what is no JSON of this form, ids that are not unique or unknown, images without a file, boxes that are not
four finite numbers or lie more than ``TOLERANCE`` outside the image, negative sizes, segmentations that are none.
Left out and noted: objects without extent, up to ``FLAT`` of them (COCO itself has some); more are refused.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

import numpy as np

from smog.errors import UsageError
from transfer.problems import EXAMPLES, Problems

TOLERANCE = 1.0  # pixels by which a box may stand out of its image; it is cut there
FLAT = 1e-3  # part of the annotations that may have no width, height or area
THIN = 0.01  # pixels: a narrower box is none, and rounding could close it at another size
SIDE = 100_000  # pixels of the largest image
_LIMIT = 1e6  # pixels: nothing of an image is there
_NUMBERS = {int, float}  # what JSON's numbers become; bool is none
_IDS = 2**53  # above, a JSON reader in another language loses digits


@dataclass
class Table:
    """A checked json in columns: m images, n objects in the order of their images."""

    classes: list[str]
    category_ids: list[int]
    ids: list[int]  # m
    files: list[str]  # m, below the folder of the split
    sizes: np.ndarray  # int64 [m, 2], height and width
    at: np.ndarray  # int64 [n], the image of an object, as a place in files; ascending
    boxes: np.ndarray  # float32 [n, 4], XYXY, cut to the image
    exact: np.ndarray  # float64 [n, 5], XYWH and area as written
    labels: np.ndarray  # int64 [n], places in classes
    crowd: np.ndarray  # bool [n]
    areas: np.ndarray  # float32 [n]
    segments: list[Any]  # n
    notes: list[str]


Rules = dict[str, tuple[Callable[[Any], bool], str]]
Entries = list[dict[str, Any]]


def parse(content: bytes, problems: Problems) -> dict[str, Entries]:
    """Return a json's content; raises UsageError where it is not JSON or lacks one of the three lists."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{problems.place} is not JSON ({error}); fetch or write it again") from None
    if not isinstance(data, dict):
        raise UsageError(f"{problems.place} holds a {type(data).__name__}, not an object of COCO's form")
    for name in ("images", "annotations", "categories"):
        if not isinstance(data.get(name), list):
            problems.add("lists missing", name)
        elif not data[name]:
            problems.add("lists empty", name)
    problems.stop()
    return data


def check(data: dict[str, Entries], sizes: dict[str, int], problems: Problems) -> Table:
    """Return the content in columns, of what could be understood; what could not goes to ``problems``.

    ``sizes``: the image files that are there. Raises UsageError where nothing is left. Linear in the content.
    """
    categories, images, annotations = _understood(data, sizes, problems)
    places = {entry["id"]: place for place, entry in enumerate(images)}
    labels = {entry["id"]: label for label, entry in enumerate(categories)}
    extents = np.array([(entry["height"], entry["width"]) for entry in images], np.int64)
    at = np.array([places[entry["image_id"]] for entry in annotations], np.int64)
    notes: list[str] = []
    fine, boxes, exact = _boxes(annotations, extents[at], problems, notes)
    annotations = list(compress(annotations, fine.tolist()))
    at, boxes, exact = at[fine], boxes[fine], exact[fine]
    crowd = np.array([bool(entry.get("iscrowd")) for entry in annotations], bool)
    if crowd.all() and not problems.kinds:
        problems.add("annotations, all of them crowd regions or without extent: nothing can be learnt", problems.place)
    label = np.array([labels[entry["category_id"]] for entry in annotations], np.int64)
    segments = _segments(annotations, extents[at].tolist(), problems)
    names, files = [entry["name"] for entry in categories], [entry["file_name"] for entry in images]
    notes += _idle(at, label, crowd, len(images), names)
    order = np.argsort(at, kind="stable")  # at the end: in the order of the file, objects are faster to reach
    at, boxes, exact, label, crowd = (column[order] for column in (at, boxes, exact, label, crowd))
    segments = [segments[place] for place in order.tolist()]
    areas = exact[:, 4].astype(np.float32)
    return Table(
        names, list(labels), list(places), files, extents, at, boxes, exact, label, crowd, areas, segments, notes
    )


def _understood(
    data: dict[str, Entries], sizes: dict[str, int], problems: Problems
) -> tuple[Entries, Entries, Entries]:
    """Return the categories by their ids, the images, and the annotations of both, each well-formed."""
    categories = sorted(_entries(data, "categories", _CATEGORY, problems), key=lambda entry: entry["id"])
    _once([entry["name"] for entry in categories], "names of categories", problems)
    images = _entries(data, "images", _IMAGE, problems)
    for entry in images:
        if entry["file_name"] not in sizes:
            problems.add("images without a file", entry["file_name"])
    annotations = _entries(data, "annotations", _ANNOTATION, problems)
    annotations = _known(annotations, "image_id", {entry["id"] for entry in images}, problems)
    annotations = _known(annotations, "category_id", {entry["id"] for entry in categories}, problems)
    if not annotations:
        problems.stop()
    return categories, images, annotations


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _IDS


def _side(value: Any) -> bool:
    return type(value) is int and 0 < value <= SIDE


def _text(value: Any) -> bool:
    return type(value) is str and bool(value.strip()) and value.isprintable()


def _number(value: Any) -> bool:
    return type(value) in _NUMBERS and -(_LIMIT**2) < value < _LIMIT**2  # NaN and infinity fail as well


def _box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and _finite(value)


def _finite(values: list[Any]) -> bool:
    """Say whether all are numbers within the limit. NaN hides from min and max, not from the sum."""
    if not _NUMBERS.issuperset(map(type, values)) or min(values) <= -_LIMIT or max(values) >= _LIMIT:
        return False
    return -_LIMIT * len(values) < sum(values) < _LIMIT * len(values)


def _segmentation(value: Any) -> bool:
    if type(value) is dict:
        return type(value.get("size")) is list and type(value.get("counts")) in (str, list)
    return value is None or (type(value) is list and all(map(_polygon, value)))


def _polygon(points: Any) -> bool:
    return type(points) is list and len(points) >= 6 and len(points) % 2 == 0 and _finite(points)


_ID = (_whole, "a whole number")
_CATEGORY: Rules = {"id": _ID, "name": (_text, "a text")}
_IMAGE: Rules = {
    "id": _ID,
    "file_name": (_text, "a text"),
    "height": (_side, f"a whole number from 1 to {SIDE}"),
    "width": (_side, f"a whole number from 1 to {SIDE}"),
}
_ANNOTATION: Rules = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "bbox": (_box, "four finite numbers"),
    "area": (lambda value: value is None or _number(value), "a finite number"),
    "iscrowd": (lambda value: value in (None, 0, 1), "0 or 1"),
    "segmentation": (_segmentation, "polygons of three points or more, or an RLE"),
}


def _entries(data: dict[str, Entries], name: str, rules: Rules, problems: Problems) -> Entries:
    """Return the entries of a list that are objects and keep the rules of their keys."""
    entries = [entry for entry in data[name] if type(entry) is dict]
    if len(entries) < len(data[name]):
        for place, entry in enumerate(data[name]):
            if type(entry) is not dict:
                problems.add(f"{name} that are no objects", f"number {place}: {reprlib.repr(entry)}")
    fine = np.ones(len(entries), bool)
    for key, (good, text) in rules.items():  # key by key, which is the faster order
        verdicts = np.fromiter(map(good, [entry.get(key) for entry in entries]), bool, len(entries))
        for place in np.flatnonzero(~verdicts).tolist():
            entry, kind = entries[place], f"{name} whose {key} is not {text}"
            which = f"id {entry['id']}" if _whole(entry.get("id")) else f"number {place}"
            problems.add(kind, f"{which}: {reprlib.repr(entry.get(key))}")
        fine &= verdicts
    kept = entries if fine.all() else list(compress(entries, fine.tolist()))
    _once([entry["id"] for entry in kept], f"ids of {name}", problems)
    return kept


def _once(values: list[Any], what: str, problems: Problems) -> None:
    if len(seen := set(values)) == len(values):
        return
    for value in values:
        if value in seen:
            seen.remove(value)
        else:
            problems.add(f"{what} that are not unique", str(value))


def _known(annotations: Entries, key: str, known: set[int], problems: Problems) -> Entries:
    for entry in [entry for entry in annotations if entry[key] not in known]:
        problems.add(f"annotations with an unknown {key}", f"id {entry['id']}: {entry[key]}")
    return [entry for entry in annotations if entry[key] in known]


def _boxes(
    annotations: Entries, extents: np.ndarray, problems: Problems, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what has an extent, bool [n]; boxes as float32 [n, 4] XYXY cut to the image; and as they are written.

    ``extents``: int64 [n, 2], height and width of each annotation's image.
    """
    exact = np.empty((len(annotations), 5))
    numbers = chain.from_iterable(entry["bbox"] for entry in annotations)  # three times as fast as from lists
    exact[:, :4] = np.fromiter(numbers, np.float64, 4 * len(annotations)).reshape(-1, 4)
    areas = [entry.get("area") for entry in annotations]
    exact[:, 4] = np.array([np.nan if area is None else area for area in areas], np.float64)
    if missing := int(np.isnan(exact[:, 4]).sum()):
        notes.append(f"{missing} annotations have no area: that of the box is taken")
        exact[:, 4] = np.where(np.isnan(exact[:, 4]), exact[:, 2] * exact[:, 3], exact[:, 4])
    limits = np.tile(extents[:, ::-1], 2)
    corners = np.concatenate([exact[:, :2], exact[:, :2] + exact[:, 2:4]], axis=1)
    outside = ((corners < -TOLERANCE) | (corners > limits + TOLERANCE)).any(axis=1)
    negative = (exact[:, 2:] < 0).any(axis=1)
    boxes = np.clip(corners, 0, limits).astype(np.float32)
    flat = ~(negative | outside) & ((boxes[:, 2:] - boxes[:, :2] < THIN).any(axis=1) | (exact[:, 4] <= 0))
    _tell(annotations, negative, "annotations of negative width, height or area", problems)
    _tell(annotations, outside & ~negative, f"boxes more than {TOLERANCE:g} pixel outside of their image", problems)
    if flat.sum() > FLAT * len(flat):
        _tell(annotations, flat, "annotations without width, height or area", problems)
    elif flat.any():
        notes.append(f"{flat.sum()} annotations without width, height or area are left out")
    return ~flat, boxes, exact


def _tell(annotations: Entries, which: Any, kind: str, problems: Problems) -> None:
    for place in np.flatnonzero(which).tolist():
        entry = annotations[place]
        problems.add(kind, f"id {entry['id']}: bbox {entry['bbox']}, area {entry.get('area')}")


def _segments(annotations: Entries, extents: list[list[int]], problems: Problems) -> list[Any]:
    """Return the segmentation of every annotation, or None for each in a set of boxes alone."""
    segments = [entry.get("segmentation") or None for entry in annotations]
    lacking = segments.count(None)
    for entry, segment, extent in zip(annotations, segments, extents, strict=True):
        if segment is None and lacking < len(segments):
            problems.add("annotations without a segmentation, where others have one", f"id {entry['id']}")
        elif type(segment) is dict and not (segment["size"] == extent and _runs(segment["counts"], *extent)):
            problems.add("RLE masks that do not fill their image", f"id {entry['id']}: size {segment['size']}")
    return segments


def _runs(counts: str | list[Any], height: int, width: int) -> bool:
    """Say whether run lengths are whole, not negative, and cover the image: decoders in C trust them."""
    if isinstance(counts, list):
        return all(map(_whole, counts)) and sum(counts) == height * width
    if not counts.isascii():
        return False
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(ends) or ends[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        return False
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # more than 35 bits: no image has so many pixels
        return False
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts) - ((codes[ends] & 16 != 0) << 5 * lengths)
    for first in (1, 2):  # from the fourth on, a run is written as the difference to the one before the last
        runs[first::2] = np.cumsum(runs[first::2])
    return bool((runs >= 0).all() and runs.sum() == height * width)


def _idle(at: np.ndarray, label: np.ndarray, crowd: np.ndarray, images: int, classes: list[str]) -> list[str]:
    """Return notes on images without objects, on crowd-only ones and on classes without objects."""
    every, real = len(np.unique(at)), len(np.unique(at[~crowd]))
    seen = set(label.tolist())
    unseen = [name for number, name in enumerate(classes) if number not in seen]
    notes = []
    if every < images:
        notes.append(f"{images - every} images have no objects: training leaves them out")
    if real < every:
        notes.append(f"{every - real} images have crowd regions alone: training leaves them out")
    if unseen:
        notes.append(f"classes without an object: {', '.join(unseen[:EXAMPLES])} ({len(unseen)} of {len(classes)})")
    return notes
