"""Made scenes on disk in the layouts of ADE20K, Cityscapes and VOC12aug: small images that lie or stand, in turns."""

from pathlib import Path

import cv2
import numpy as np
from made_detection import picture
from PIL import Image

from smog.data import scenes

COUNTS = {"train": 6, "val": 4}
# of the ground and the ten garments; the ground is not counted in ADE20K's and Cityscapes' coding, VOC's class 0
CITY_IDS = np.array([0, 7, 8, 11, 12, 13, 17, 19, 20, 21, 33], np.uint8)
CITY_TRAIN_IDS = np.array([255, 0, 1, 2, 3, 4, 5, 6, 7, 8, 18], np.uint8)
VOC_PALETTE = np.random.default_rng(0).permutation(256).astype(np.uint8)  # colours that give no index away


def drawn(split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, and 0 on the ground, 1 to 10 on the garments."""
    image, masks, scene = picture(split, number)
    labels = np.zeros(image.shape[:2], np.uint8)
    for mask, label in zip(masks, scene.labels.tolist(), strict=True):
        labels[mask] = label + 1
    return image, labels


def class_file(folder: Path, count: int = len(scenes.CLASSES)) -> Path:
    """The names of the garments, one a line: label 1 is the first."""
    path = folder / f"classes{count}.txt"
    path.write_text("\n".join([*scenes.CLASSES, *"abcdef"][:count]) + "\n\n")
    return path


def write_ade20k(root: Path) -> Path:
    for split, folder in (("train", "training"), ("val", "validation")):
        for number in range(COUNTS[split]):
            image, labels = drawn(split, number)
            write_image(root / "images" / folder / f"scene_{number:03}.jpg", image)
            write_grey(root / "annotations" / folder / f"scene_{number:03}.png", labels)
    return root


def write_cityscapes(root: Path) -> Path:
    """Two cities a split; train has labelIds alone, val trainIds too."""
    for split, count in COUNTS.items():
        for number in range(count):
            image, labels = drawn(split, number)
            city = "aachen" if number % 2 else "bonn"
            name = f"{city}/{city}_{number:06}_000019"
            write_image(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", image)
            write_grey(root / "gtFine" / split / f"{name}_gtFine_labelIds.png", CITY_IDS[labels])
            if split == "val":
                write_grey(root / "gtFine" / split / f"{name}_gtFine_labelTrainIds.png", CITY_TRAIN_IDS[labels])
            write_grey(root / "gtFine" / split / f"{name}_gtFine_instanceIds.png", labels.astype(np.uint16) * 1000)
    return root


def write_voc12aug(root: Path) -> Path:
    """In VOCdevkit/VOC2012: val and the first half of train are VOC's own, the rest is added."""
    home = root / "VOCdevkit" / "VOC2012"
    lists: dict[str, list[str]] = {"train": [], "aug": [], "val": []}
    for split, count in COUNTS.items():
        for number in range(count):
            image, labels = drawn(split, number)
            labels[0] = 255  # a border
            name, added = f"{2007 + (split == 'val')}_{number:06}", split == "train" and number >= count // 2
            lists["aug" if added else split].append(name)
            write_image(home / "JPEGImages" / f"{name}.jpg", image)
            write_palette(home / "SegmentationClassAug" / f"{name}.png", labels if added else np.zeros_like(labels))
            if not added:
                write_palette(home / "SegmentationClass" / f"{name}.png", labels)
    for name, names in lists.items():
        path = home / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
    return root


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_grey(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), labels)


def write_palette(path: Path, labels: np.ndarray, bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette(np.repeat(VOC_PALETTE, 3).tolist())
    assert image.mode == "P"
    image.save(path, bits=bits)
