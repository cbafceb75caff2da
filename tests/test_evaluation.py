"""The evaluation: pycocotools' figures to the last digit, on random detections with crowds, ties and gaps."""

import contextlib
import copy
import io

import numpy as np
import pytest
from faster_coco_eval.core import mask

from transfer.coco_data import Annotated, Dataset
from transfer.evaluation import FIGURES, coco_ap
from transfer.made import open_made

COCO_ORDER = [f"{prefix}_{name}" for prefix in ("box", "mask") for name in FIGURES]


def with_crowds(dataset, every=7):
    """Every ``every``-th object becomes a crowd region."""
    images, seen = [], 0
    for image in dataset.images:
        crowd = np.array([(seen + place) % every == 0 for place in range(len(image.labels))], bool)
        seen += len(crowd)
        images.append(Annotated(**{**vars(image), "crowd": crowd}))
    return Dataset(**{**vars(dataset), "images": images})


def random_detections(dataset, random, rate=0.8):
    """Shifted truths, of which some get another class, a tied score, or come twice, and some boxes anywhere."""
    found = []
    for image in dataset.images:
        for box, label, segment in zip(image.boxes, image.labels, image.segments, strict=True):
            for _ in range(int(random.integers(0, 4))):
                moved = np.roll(mask.decode(segment), random.integers(-3, 4, 2), (0, 1))
                x1, y1, x2, y2 = (box + random.normal(0, 3, 4)).tolist()
                chosen = label if random.random() < rate else random.integers(len(dataset.classes))
                found.append(
                    {
                        "image_id": image.id,
                        "category_id": dataset.category_ids[int(chosen)],
                        "bbox": [x1, y1, max(1.0, x2 - x1), max(1.0, y2 - y1)],
                        "score": round(float(random.random()), 2),
                        "segmentation": mask.encode(np.asfortranarray(moved)),
                    }
                )
    return found


def pycocotools_figures(dataset, detections, kind):
    """The twelve figures and the AP of each class by the original."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset.coco())
        truth.createIndex()
        found = copy.deepcopy(detections)
        if kind == "segm":
            for entry in found:
                del entry["bbox"]  # as detectron2: the area is that of the mask
        run = COCOeval(truth, truth.loadRes(found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, -1]
    return run.stats, {number: precision[:, :, place] for place, number in enumerate(run.params.catIds)}


@pytest.fixture(scope="module")
def scenes():
    return with_crowds(open_made("val", images=60, size=160))


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools(scenes, seed):
    found = random_detections(scenes, np.random.default_rng(seed))
    before = copy.deepcopy(found)
    scores = coco_ap(scenes, found, masks=True)
    assert found == before
    assert 5 < scores.metrics["box_ap"] < 95
    assert 5 < scores.metrics["mask_ap"] < 95
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        stats, by_class = pycocotools_figures(scenes, found, kind)
        for name, value in zip(FIGURES, stats, strict=True):
            assert scores.metrics.get(f"{prefix}_{name}", -100) == pytest.approx(100 * value, abs=1e-9), name
        for name, number in zip(scenes.classes, scenes.category_ids, strict=True):
            expected = by_class[number][by_class[number] > -1].mean()
            assert scores.per_class[name][f"{prefix}_ap"] == pytest.approx(100 * expected, abs=1e-9)


def test_perfect_detections_give_100_and_what_does_not_exist_is_left_out():
    dataset = open_made("val", images=12, size=48)
    found = [
        {
            "image_id": image.id,
            "category_id": dataset.category_ids[label],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": 1.0,
            "segmentation": segment,
        }
        for image in dataset.images
        for box, label, segment in zip(image.boxes, image.labels, image.segments, strict=True)
    ]
    scores = coco_ap(dataset, found, masks=True)
    assert scores.metrics["box_ap"] == scores.metrics["mask_ap75"] == pytest.approx(100)
    assert "box_ap_large" not in scores.metrics
    assert "mask_ar_large" not in scores.metrics
    seen = {dataset.classes[label] for image in dataset.images for label in image.labels}
    assert set(scores.per_class) == seen
    boxes = coco_ap(dataset, found, masks=False)
    assert all(name.startswith("box_") for name in boxes.metrics)
    assert boxes.metrics == {name: value for name, value in scores.metrics.items() if name.startswith("box_")}


def test_no_detections_give_zeros(scenes):
    scores = coco_ap(scenes, [], masks=True)
    assert set(scores.metrics) <= set(COCO_ORDER)
    assert {"box_ap", "box_ap_small", "mask_ar100", "mask_ap_medium"} <= set(scores.metrics)
    assert set(scores.metrics.values()) == {0.0}
    assert all(set(figures.values()) == {0.0} for figures in scores.per_class.values())


def test_detections_on_unknown_images_are_refused(scenes):
    with pytest.raises(ValueError, match=r"lacks.*9999"):
        coco_ap(scenes, [{"image_id": 9999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}], masks=False)


def test_category_ids_need_no_order():
    dataset = open_made("val", images=20, size=96)
    turned = Dataset(**{**vars(dataset), "category_ids": dataset.category_ids[::-1]})
    found = random_detections(dataset, np.random.default_rng(3))
    other = [{**entry, "category_id": 11 - entry["category_id"]} for entry in found]
    assert coco_ap(turned, other, masks=False).per_class == coco_ap(dataset, found, masks=False).per_class
