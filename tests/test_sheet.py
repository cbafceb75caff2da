"""The pictures: where boxes and masks are, at which size, in which order."""

import cv2
import numpy as np
import pytest

from transfer.coco_data import Dataset
from transfer.made import open_made
from transfer.panels import COLORS, scale
from transfer.sheet import BEST, _panel, _predictions, _truths, write_sheet


def detections(dataset, score):
    return [
        {
            "image_id": image.id,
            "category_id": dataset.category_ids[label],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": score,
            "segmentation": segment,
        }
        for image in dataset.images
        for box, label, segment in zip(image.boxes, image.labels, image.segments, strict=True)
    ]


@pytest.fixture(scope="module")
def made():
    return open_made("val", images=6, size=64)


@pytest.mark.parametrize("size", [64, 128, 300])
def test_a_row_an_image_truth_and_prediction_side_by_side(tmp_path, size):
    dataset = open_made("val", images=4, size=size)
    write_sheet(tmp_path / "sheet.png", dataset, detections(dataset, 0.9), count=3)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    side = round(size * scale(size, size))
    assert 400 <= side <= 640
    assert sheet.shape == (3 * (20 + side + 8), 2 * side + 8, 3)


def test_large_images_are_scaled_down_and_small_ones_up():
    assert scale(480, 640) == 1
    assert scale(1280, 960) == 0.5
    assert scale(64, 64) == 7


def test_only_images_with_objects_are_shown(tmp_path, made):
    images = list(made.images)
    images[0] = type(images[0])(**{**vars(images[0]), "crowd": np.ones(len(images[0].labels), bool)})
    write_sheet(tmp_path / "one.png", Dataset(**{**vars(made), "images": images}), [], count=1)
    write_sheet(tmp_path / "two.png", Dataset(**{**vars(made), "images": images[1:]}), [], count=1)
    one, two = (cv2.imread(str(tmp_path / name)) for name in ("one.png", "two.png"))
    np.testing.assert_array_equal(one, two)


def test_sure_predictions_are_drawn_thick_else_the_best_thin(made):
    image = made.images[0]
    found = detections(made, 0.9)[:2]
    unsure = [{**found[0], "score": 0.1 + place / 100} for place in range(9)]
    both = _predictions(made, image, [*unsure, *found])
    assert [one.line for one in both] == [2, 2]
    assert all("0.90" in one.text for one in both)
    best = _predictions(made, image, unsure)
    assert [one.text.split()[-1] for one in best] == ["0.18", "0.17", "0.16", "0.15", "0.14"]
    assert [one.line for one in best] == [1] * BEST
    assert _predictions(made, image, []) == []


def test_boxes_and_tints_are_where_the_objects_are(made):
    image = made.images[1]
    black = np.zeros((64, 64, 3), np.uint8)
    shown = _truths(made, image)
    factor = scale(64, 64)
    drawn = _panel(black, shown, "truth")[20:]
    inside = np.zeros(drawn.shape[:2], bool)
    for box in np.rint(image.boxes * factor).astype(int):
        inside[box[1] - 20 : box[3] + 20, max(0, box[0] - 2) : box[2] + 90] = True  # and the names
    assert not drawn[~inside].any()
    for one in shown:  # a mask is the mixture of its tint alone, over black
        tint = np.uint8(0.35 * np.array(COLORS[one.label % len(COLORS)]))
        pixels = drawn[cv2.resize(one.mask, drawn.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0]
        assert (abs(pixels.astype(int) - tint) <= 1).all(axis=1).mean() > 0.5
