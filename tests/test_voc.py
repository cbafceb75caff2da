"""PASCAL VOC: boxes, difficult objects and splits as read by detectron2; AP as in its evaluation, and by hand."""

import warnings

import cv2
import numpy as np
import pytest

from smog.errors import UsageError
from transfer.coco_data import Annotated, Dataset
from transfer.made import Scenes
from transfer.voc import CLASSES, THRESHOLDS, fingerprint, open_voc, voc_ap

OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
)


def xml(*objects, width=50, height=40, head=""):
    """Annotations of objects (name, difficult, x1, y1, x2, y2), pixels counted from 1, the last one inclusive."""
    keys = ("name", "difficult", "x1", "y1", "x2", "y2")
    inner = "".join(OBJECT.format(**dict(zip(keys, one, strict=True))) for one in objects)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"{head}<annotation>{size}{inner}</annotation>"


def write(root, year, subset, annotations):
    folder = root / year
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main" / f"{subset}.txt").write_text("".join(f"{name}\n" for name in annotations))
    for name, text in annotations.items():
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), np.zeros((40, 50, 3), np.uint8))
    return folder


@pytest.fixture
def kit(tmp_path):
    """Both years, with one image in each list."""
    write(tmp_path, "VOC2007", "trainval", {"000005": xml(("dog", 0, 1, 1, 50, 40), ("cat", 1, 3, 4, 10, 12))})
    write(tmp_path, "VOC2007", "test", {"000001": xml(("person", 0, 5, 6, 7, 8))})
    write(tmp_path, "VOC2012", "trainval", {"2008_000008": xml(("horse", 0, 2, 2, 9, 9.5))})
    return tmp_path


def test_both_years_are_read_as_detectron2_reads_them(kit):
    train = open_voc(kit, "train")
    assert [image.file for image in train.images] == [
        "VOC2007/JPEGImages/000005.jpg",
        "VOC2012/JPEGImages/2008_000008.jpg",
    ]
    first, second = train.images
    assert first.boxes.tolist() == [[0, 0, 50, 40], [2, 3, 10, 12]]
    assert [CLASSES[label] for label in first.labels] == ["dog", "cat"]
    assert first.crowd.tolist() == [False, True]
    assert first.areas.tolist() == [2000, 72]
    assert second.boxes.tolist() == [[1, 1, 9, 9.5]]
    assert (train.notes, train.has_masks, train.read(1).shape) == ([], False, (40, 50, 3))
    assert open_voc(kit, "val").images[0].boxes.tolist() == [[4, 5, 7, 8]]


def test_voc_devkit_is_found_and_a_missing_year_is_noted(kit, tmp_path):
    devkit = tmp_path / "data" / "VOCdevkit"
    devkit.mkdir(parents=True)
    (kit / "VOC2012").rename(devkit / "VOC2012")
    train = open_voc(tmp_path / "data", "train")
    assert train.notes == ["train lacks trainval of VOC2007"]
    assert train.read(0).shape == (40, 50, 3)
    with pytest.raises(UsageError, match=r"expected VOC2007/ImageSets/Main/test\.txt"):
        open_voc(tmp_path / "data", "val")


def test_the_fingerprint_follows_the_annotations(kit):
    before = fingerprint(kit), open_voc(kit, "train").fingerprint, open_voc(kit, "val").fingerprint
    write(kit, "VOC2012", "trainval", {"2008_000008": xml(("horse", 0, 2, 2, 9, 9))})
    after = fingerprint(kit), open_voc(kit, "train").fingerprint, open_voc(kit, "val").fingerprint
    assert before[:2] != after[:2]
    assert before[2] == after[2]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>'
BROKEN = {
    "it has a DOCTYPE": xml(("dog", 0, 1, 1, 5, 5), head=BOMB),
    "'dgo' is no class of VOC; nearest: dog": xml(("dgo", 0, 1, 1, 5, 5)),
    "box outside of the image": xml(("dog", 0, 1, 1, 60, 5)),
    "without extent": xml(("dog", 0, 9, 1, 8, 5)),
    "bndbox/xmin is nan": xml(("dog", 0, "nan", 1, 8, 5)),
    "could not convert string": xml(("dog", 0, "one", 1, 8, 5)),
    "no bndbox/ymax": xml(("dog", 0, 1, 1, 8, "")),
    "no element found": "",
    "size/width is 1e+300": xml(("dog", 0, 1, 1, 8, 8), width="1e300"),
    "has no objects in the split val": xml(),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_annotations_are_refused_with_their_place(kit, message):
    write(kit, "VOC2007", "test", {"000007": BROKEN[message]})
    with pytest.raises(UsageError) as caught:
        open_voc(kit, "val")
    assert message in str(caught.value)
    assert "000007.xml" in str(caught.value) or "no objects" in message


def test_images_and_annotations_that_are_missing_are_listed(kit):
    write(kit, "VOC2007", "test", {f"00000{n}": xml(("dog", 0, 1, 1, 5, 5)) for n in range(6)})
    for n in range(4):
        (kit / f"VOC2007/JPEGImages/00000{n}.jpg").unlink()
    (kit / "VOC2007/Annotations/000005.xml").unlink()
    with pytest.raises(
        UsageError, match=r"4 images without a file \(.* and 1 more\); 1 annotations that can't be read"
    ):
        open_voc(kit, "val")


def set_of(*images, difficult=()):
    """A set of images with the given boxes of class 0; ``difficult`` are pairs (image, object)."""
    annotated = []
    for number, boxes in enumerate(images):
        flags = np.array([(number, place) in difficult for place in range(len(boxes))], bool)
        array = np.array(boxes, np.float32).reshape(-1, 4)
        numbers = np.zeros(len(boxes), np.int64)
        annotated.append(
            Annotated(number + 1, "", 100, 100, array, numbers, flags, np.ones(len(boxes)), [None] * len(boxes))
        )
    return Dataset("voc", list(CLASSES), list(range(1, 21)), annotated, "", Scenes("val", 100, 0))


def found(image, box, score):
    x1, y1, x2, y2 = box
    return {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def test_ap_by_hand():
    """Two objects, three detections: right, a second time the same one (wrong), then the other one with an overlap of
    .6. Precision 1 up to a recall of .5 and 2/3 from there to 1, so at .5 the eleven points are six of 1, five of 2/3.
    Above .6, a recall of .5 is all: six points of 1."""
    truth = set_of([[0, 0, 10, 10]], [[20, 20, 30, 30]])
    found_ = [found(1, (0, 0, 10, 10), 0.9), found(1, (0, 0, 10, 9), 0.8), found(2, (20, 20, 30, 26), 0.7)]
    low, high = (6 + 5 * 2 / 3) / 11, 6 / 11
    scores = voc_ap(truth, found_)
    assert scores.metrics["box_ap50"] == pytest.approx(100 * low)
    assert scores.metrics["box_ap75"] == pytest.approx(100 * high)
    # .50 and .55 are below .6; at .60 the overlap is not above
    assert scores.metrics["box_ap"] == pytest.approx(100 * (2 * low + 8 * high) / 10)
    assert scores.per_class == {"aeroplane": {"box_ap": pytest.approx(scores.metrics["box_ap"])}}


def test_difficult_objects_count_neither_way():
    truth = set_of([[0, 0, 10, 10], [50, 50, 60, 60]], difficult={(0, 1)})
    hits = [found(1, (50, 50, 60, 60), 0.9), found(1, (50, 50, 60, 60), 0.8), found(1, (0, 0, 10, 10), 0.7)]
    assert voc_ap(truth, hits).metrics["box_ap"] == pytest.approx(100)


def test_a_detection_is_matched_to_its_best_object_alone():
    """The second detection overlaps both objects enough, and most the first, which is taken: it is wrong."""
    truth = set_of([[0, 0, 10, 10], [0, 2, 10, 12]])
    hits = [found(1, (0, 0, 10, 10), 0.9), found(1, (0, 0.5, 10, 10.5), 0.8)]
    assert voc_ap(truth, hits).metrics["box_ap50"] == pytest.approx(100 * 6 / 11)


def test_no_detections_are_zero_and_empty_classes_are_left_out():
    scores = voc_ap(set_of([[0, 0, 10, 10]], []), [])
    assert scores.metrics == {"box_ap": 0.0, "box_ap50": 0.0, "box_ap75": 0.0}
    assert list(scores.per_class) == ["aeroplane"]


def random_case(random, root, images=25):
    """A VOC2007 test list of random objects of two classes, and detections near them with unequal scores."""
    annotations, detections = {}, []
    for number in range(images):
        objects = []
        for _ in range(int(random.integers(0, 6))):
            x1, y1 = random.integers(1, 25, 2).tolist()
            x2, y2 = x1 + int(random.integers(4, 22)), y1 + int(random.integers(4, 14))
            name = CLASSES[int(random.integers(2))]
            objects.append((name, int(random.random() < 0.2), x1, y1, x2, y2))
            for _ in range(int(random.integers(0, 3))):
                near = np.array([x1 - 1, y1 - 1, x2, y2]) + random.normal(0, 1.2, 4)
                label = int(random.integers(2)) if random.random() < 0.3 else CLASSES.index(name)
                detections.append((number, label, near, float(random.random())))
        annotations[f"{number:06d}"] = xml(*objects)
    write(root, "VOC2007", "test", annotations)
    return [
        {**found(number + 1, box.tolist(), score), "category_id": label + 1} for number, label, box, score in detections
    ]


def d2_evaluation():
    """detectron2's module, or a skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from detectron2.evaluation import pascal_voc_evaluation
        except ImportError as error:
            pytest.skip(f"detectron2 is not installed ({error})")
    return pascal_voc_evaluation


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_detectron2(tmp_path, seed):
    oracle = d2_evaluation()
    detections = random_case(np.random.default_rng(seed), tmp_path)
    scores = voc_ap(open_voc(tmp_path, "val"), detections)
    expected = []
    for label in (0, 1):
        lines = []
        for entry in detections:
            if entry["category_id"] == label + 1:
                x, y, width, height = entry["bbox"]
                box = [x + 1, y + 1, x + width, y + height]  # as its evaluator writes them, without the rounding
                lines.append(f"{entry['image_id'] - 1:06d} {entry['score']!r} " + " ".join(map(repr, box)))
        (tmp_path / f"{CLASSES[label]}.txt").write_text("\n".join(lines))
        places = (
            str(tmp_path / "{}.txt"),
            str(tmp_path / "VOC2007/Annotations/{}.xml"),
            str(tmp_path / "VOC2007/ImageSets/Main/test.txt"),
        )
        expected.append([100 * oracle.voc_eval(*places, CLASSES[label], least, True)[2] for least in THRESHOLDS])
    table = np.array(expected)
    assert 5 < table.mean() < 95
    assert scores.metrics["box_ap"] == pytest.approx(table.mean(), abs=1e-9)
    assert scores.metrics["box_ap50"] == pytest.approx(table[:, 0].mean(), abs=1e-9)
    assert scores.metrics["box_ap75"] == pytest.approx(table[:, 5].mean(), abs=1e-9)
    for name, row in zip(CLASSES, table, strict=False):
        assert scores.per_class[name]["box_ap"] == pytest.approx(row.mean(), abs=1e-9)
