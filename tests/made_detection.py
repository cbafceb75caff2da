"""Made scenes on disk in COCO's and in VOC's layout, as a folder or its zip."""

import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from smog.data import scenes
from transfer.voc import CLASSES as VOC

SIZE, COUNTS = 48, {"train": 10, "val": 4}
IDS = [7 * label + 3 for label in range(len(scenes.CLASSES))][::-1]  # of categories: neither from 1 nor in order


def picture(split: str, number: int) -> tuple[np.ndarray, np.ndarray, scenes.Scene]:
    """A made scene on a larger ground, so that images lie or stand: pixels, masks, and the scene."""
    scene = scenes.scene(0, number, SIZE, (2, 4), split)
    more = [(0, 8), (0, 0)] if number % 2 else [(0, 0), (0, 16)]
    return np.pad(scene.image, [*more, (0, 0)]), np.pad(scene.masks, [(0, 0), *more]), scene


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines around a mask's pixels, which OpenCV's contours go through the middles of."""
    parts, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [(part.ravel() + 0.5).tolist() for part in parts if len(part) > 2]


def runs(mask: np.ndarray) -> dict:
    """The lengths of runs down the columns, the first of zeros, as COCO's crowds have them."""
    flat = mask.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=-1))
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def annotated(split: str) -> tuple[dict, dict[str, np.ndarray]]:
    """A json in COCO's form and its images: objects by turns as polygons and as RLE, the first a crowd."""
    images, objects, pixels = [], [], {}
    for number in range(COUNTS[split]):
        image, masks, scene = picture(split, number)
        name = f"{number}.{'png' if number % 2 else 'jpg'}"
        pixels[name] = image
        images.append({"id": 100 + number, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for box, mask, label in zip(scene.boxes.tolist(), masks, scene.labels.tolist(), strict=True):
            parts = polygons(mask) if len(objects) % 2 else []
            objects.append({
                "id": len(objects) + 1, "image_id": 100 + number, "category_id": IDS[label],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "area": int(mask.sum()),
                "iscrowd": int(not objects), "segmentation": parts or runs(mask),
            })  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in zip(IDS, scenes.CLASSES, strict=True)]
    return {"images": images, "annotations": objects, "categories": categories}, pixels


def write_coco(root: Path) -> Path:
    for split in COUNTS:
        content, pixels = annotated(split)
        (root / f"{split}2017").mkdir(parents=True)
        for name, image in pixels.items():
            cv2.imwrite(str(root / f"{split}2017" / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path) -> Path:
    """Garments under VOC's names, in VOCdevkit/; every third object is difficult."""
    for year, subset, split, numbers in (
        ("VOC2007", "trainval", "train", range(4)),
        ("VOC2012", "trainval", "train", range(4, 10)),
        ("VOC2007", "test", "val", range(4)),
    ):
        folder = root / "VOCdevkit" / year
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        names = [f"{split}_{number:06}" for number in numbers]
        (folder / "ImageSets" / "Main" / f"{subset}.txt").write_text("\n".join(names) + "\n")
        for name, number in zip(names, numbers, strict=True):
            image, _, scene = picture(split, number)
            cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            (folder / "Annotations" / f"{name}.xml").write_bytes(xml(image, scene))
    return root


def xml(image: np.ndarray, scene: scenes.Scene) -> bytes:
    tree = ElementTree.Element("annotation")
    size = ElementTree.SubElement(tree, "size")
    for name, value in zip(("height", "width", "depth"), image.shape, strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    for number, (box, label) in enumerate(zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True)):
        entry = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(entry, "name").text = VOC[label]
        ElementTree.SubElement(entry, "difficult").text = str(int(number % 3 == 2))
        sides = ElementTree.SubElement(entry, "bndbox")
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), np.add(box, (1, 1, 0, 0)), strict=True):
            ElementTree.SubElement(sides, name).text = f"{value:g}"
    return ElementTree.tostring(tree)


def packed(root: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*.*")):
            file.write(path, path.relative_to(root))
    return archive
