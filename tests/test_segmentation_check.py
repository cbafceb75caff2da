"""What is wrong with a segmentation set is said before training, with counts, examples and the way out."""

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import made_segmentation as made
import numpy as np
import pytest
from made_detection import packed
from PIL import Image

from smog.errors import UsageError
from transfer.segmentation.classes import class_names
from transfer.segmentation.data import Pairs, open_pairs

needs_mmseg = pytest.mark.skipif(importlib.util.find_spec("mmseg") is None, reason="mmsegmentation is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),  # of mmcv's imports, as the next
    pytest.mark.filterwarnings("ignore:``MultiScaleDeformableAttention`` has been moved:ImportWarning"),
]
LABEL, IMAGE = "annotations/training/scene_{:03}.png", "images/training/scene_{:03}.jpg"


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    return made.write_ade20k(tmp_path / "set")


def opened(root: Path, split: str = "train", classes: int = 10) -> Pairs:
    return open_pairs("ade20k", root, split, str(made.class_file(root.parent, classes)))


def refused(root: Path, classes: int = 10) -> str:
    with pytest.raises(UsageError) as caught:
        opened(root, classes=classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    made.write_grey(path, how(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def test_all_is_told_at_once_by_kind(ade: Path) -> None:
    (ade / LABEL.format(0)).unlink()
    (ade / LABEL.format(1)).write_bytes((ade / LABEL.format(1)).read_bytes()[:-60])
    change(ade / LABEL.format(2), lambda labels: labels[:-1])
    change(ade / LABEL.format(3), lambda labels: np.where(labels, 200, labels))
    change(ade / LABEL.format(4), lambda labels: np.dstack([labels] * 3))
    (ade / IMAGE.format(5)).write_bytes(b"no image")
    message = refused(ade)
    assert message.startswith(f"{ade} train: ")
    for part in (
        "1 images without labels (images/training/scene_000.jpg: no annotations/training/scene_000.png)",
        "1 label images that can't be read (annotations/training/scene_001.png: ",
        "1 images of another size than their labels (images/training/scene_002.jpg: 64 x 48, its labels 64 x 47)",
        "1 label images with numbers other than 0 (not counted) to 10 and 255; ",
        "(annotations/training/scene_003.png: 200)",
        "1 label images that are colour pictures, not class numbers: ADE20K's full release colours them",
        "(annotations/training/scene_004.png: it is a picture in RGB)",
        "1 images that can't be read (images/training/scene_005.jpg: ",
    ):
        assert part in message


def test_the_same_is_told_of_a_zip(ade: Path, tmp_path: Path) -> None:
    change(ade / LABEL.format(2), lambda labels: labels[:-1])
    (ade / LABEL.format(1)).write_bytes(b"")
    archive = packed(ade, tmp_path / "set.zip")
    assert refused(archive) == refused(ade).replace(f"{ade} ", f"{archive} ")


def test_examples_are_three_and_a_count(ade: Path) -> None:
    for number in range(5):
        (ade / LABEL.format(number)).unlink()
    message = refused(ade)
    assert "5 images without labels" in message
    assert message.count("scene_00") == 6
    assert "and 2 more" in message


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["ade20k", "cityscapes", "voc12aug"])
def test_colour_pictures_are_the_classic_mistake(kind: str, mode: str, tmp_path: Path) -> None:
    root = getattr(made, f"write_{kind}")(tmp_path / "set")
    endings = {"ade20k": "annotations/*/*.png", "cityscapes": "gtFine/*/*/*_labelIds.png"}
    labels = list(root.glob(endings.get(kind, "VOCdevkit/VOC2012/SegmentationClass*/*.png")))
    for path in labels:
        image = Image.open(path).convert("RGB").convert(mode)
        image.save(path)
    with pytest.raises(UsageError, match=f"{made.COUNTS['train']} label images that are colour pictures") as caught:
        open_pairs(kind, root, "train", str(made.class_file(tmp_path)) if kind == "ade20k" else "")
    hint = {"ade20k": "ADEChallengeData2016", "cityscapes": "labelIds.png", "voc12aug": "palette"}[kind]
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda labels, path: Image.fromarray(labels > 0).save(path), "1 bit, so that their numbers are not certain"),
        (lambda labels, path: Image.fromarray(labels).convert("LA").save(path), "it has 2 channels, not one"),
        (lambda labels, path: Image.fromarray(labels).save(path, "jpeg"), "it is no PNG but JPEG"),
        (lambda labels, path: path.write_bytes(b""), "it is no image"),
        (lambda labels, path: path.write_text("version https://git-lfs"), "it is no image"),
    ],
)
def test_label_images_of_other_kinds_are_refused(ade: Path, save: Callable, message: str) -> None:
    path = ade / LABEL.format(3)
    save(made.drawn("train", 3)[1], path)
    assert message in refused(ade)


def test_labels_of_16_bits_are_read_where_they_fit(ade: Path) -> None:
    before = opened(ade)
    change(ade / LABEL.format(0), lambda labels: labels.astype(np.uint16))
    np.testing.assert_array_equal(opened(ade).counts, before.counts)
    np.testing.assert_array_equal(opened(ade).read(0)[1], before.read(0)[1])
    change(ade / LABEL.format(0), lambda labels: labels + np.uint16(256))
    message = refused(ade)
    assert "the largest label is " in message
    assert "scene_000.png: 256, " in message


def test_an_image_that_is_cut_off_is_found_behind_its_head(ade: Path) -> None:
    path = ade / "images/training/scene_001.jpg"
    path.write_bytes(path.read_bytes()[:300])
    assert "images/training/scene_001.jpg" in refused(ade)


# ---- classes ----


def test_a_class_file_that_is_too_short_names_the_largest_label(ade: Path) -> None:
    message = refused(ade, classes=4)
    top = max(int(made.drawn("train", number)[1].max()) for number in range(6))
    assert f"the class file has 4 names, the largest label is {top}" in message
    assert "numbers other than 0 (not counted) to 4 and 255" in message


def test_a_class_file_that_is_too_long_is_a_note(ade: Path) -> None:
    (note,) = [note for note in opened(ade, classes=13).notes if "classes without a pixel in train" in note]
    assert note.endswith("of 13)")
    assert opened(ade, classes=13).pixels_of[10:].tolist() == [0, 0, 0]


@needs_mmseg
def test_another_set_without_its_class_file_is_told(ade: Path, tmp_path: Path) -> None:
    """Its labels are all within ADE20K's 150, so nothing is wrong; but nothing is right either."""
    notes = open_pairs("ade20k", ade, "train").notes
    assert any("ADE20K's to 150: if this is another set, name its classes by --classes FILE" in note for note in notes)
    assert not any("--classes" in note for note in opened(ade).notes)
    change(ade / LABEL.format(0), lambda labels: np.where(labels, 170, labels))
    with pytest.raises(UsageError, match="the largest here is 170: --classes FILE names the classes of another set"):
        open_pairs("ade20k", ade, "train")


def test_255_in_ade20k_is_not_counted_and_told(ade: Path) -> None:
    before = opened(ade)
    change(ade / LABEL.format(0), lambda labels: np.where(labels == 0, 255, labels))
    after = opened(ade)
    np.testing.assert_array_equal(after.counts, before.counts)
    assert [note for note in after.notes if note not in before.notes] == [
        "1 label images of train hold 255, which is not counted, nor is 0: where a set counts its classes from 0, "
        "add 1 to its numbers"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"cat\ndog\ncat\n", "names a class twice: 'cat'"),
        (b"cat\n\ndog\n", "a name and nothing else in each line: mend line 2"),
        (b"Idx\tName\n1\twall\n", "mend line 1, line 2"),
        (b"cat\xff\n", "can't be read as text"),
        ("\n".join(map(str, range(255))).encode(), "names 255 classes; labels of 8 bits hold up to 254"),
    ],
)
def test_class_files_are_checked(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        class_names("ade20k", str(path))


def test_class_files_of_other_editors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffcat \r\nBär\r\n\r\n".encode())
    assert class_names("ade20k", str(path)) == ["cat", "Bär"]
    with pytest.raises(UsageError, match=r"none\.txt can't be read"):
        class_names("ade20k", str(tmp_path / "none.txt"))
    for kind in ("cityscapes", "voc12aug"):
        with pytest.raises(UsageError, match=f"the classes of {kind} are fixed"):
            class_names(kind, str(path))


# ---- splits ----


def test_what_is_not_there_is_named(ade: Path, tmp_path: Path) -> None:
    for kind, root, split, message in (
        ("ade20k", tmp_path / "none", "train", "neither a folder nor a readable zip"),
        ("ade20k", tmp_path, "train", "looked into images/, ADEChallengeData2016/images/"),
        ("cityscapes", ade, "train", "looked into leftImg8bit/, cityscapes/leftImg8bit/"),
        ("voc12aug", ade, "train", "looked into JPEGImages/, VOCdevkit/VOC2012/JPEGImages/"),
        ("ade20k", ade, "test", "splits train and val, not 'test'"),
        ("ade", ade, "train", "no layout 'ade'; nearest: ade20k"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            open_pairs(kind, root, split)
    shutil.rmtree(ade / "images" / "training")
    assert "an empty split: no images in images/training/" in refused(ade)


def test_voc_lists_must_be_there_and_name_what_is_there(tmp_path: Path) -> None:
    root = made.write_voc12aug(tmp_path / "kit")
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text("2008_000000\n2008_000000\n2009_000009\n")
    with pytest.raises(UsageError) as caught:
        open_pairs("voc12aug", root, "val")
    assert "1 names that are listed twice (VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt: 2008_000000)" in str(
        caught.value
    )
    assert "1 images that are listed and not there (VOCdevkit/VOC2012/JPEGImages/2009_000009.jpg)" in str(caught.value)
    (lists / "val.txt").write_text("\n")
    with pytest.raises(UsageError, match=r"empty split val: no name in val\.txt"):
        open_pairs("voc12aug", root, "val")
    (lists / "aug.txt").unlink()
    with pytest.raises(UsageError, match=r"expected trainaug\.txt, or train\.txt and aug\.txt in "):
        open_pairs("voc12aug", root, "train")


def test_images_of_one_name_are_refused(ade: Path) -> None:
    made.write_image(ade / "images/training/scene_002.png", made.drawn("train", 2)[0])
    assert "1 images of one name (" in refused(ade)


def test_what_is_beside_the_images_is_left_alone(ade: Path) -> None:
    """Labels without an image are a note; hidden files and texts are nothing."""
    before = opened(ade)
    made.write_grey(ade / LABEL.format(77), np.ones((4, 4), np.uint8))
    (ade / "images/training/._scene_000.jpg").write_bytes(b"x")
    (ade / "images/training/readme.txt").write_bytes(b"x")
    after = opened(ade)
    assert (after.images, after.fingerprint) == (before.images, before.fingerprint)
    assert [note for note in after.notes if note not in before.notes] == [
        "1 label images without an image are not used: annotations/training/scene_077.png"
    ]


def test_images_where_nothing_is_counted(ade: Path) -> None:
    change(ade / LABEL.format(0), np.zeros_like)
    assert "1 images of train have no labelled pixel" in opened(ade).notes
    for number in range(made.COUNTS["train"]):
        change(ade / LABEL.format(number), np.zeros_like)
    assert "no labelled pixel in the split train: there is nothing to learn" in refused(ade)
