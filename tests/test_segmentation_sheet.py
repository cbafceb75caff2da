"""The pictures: three panels a row, classes in their colours, what is not counted told apart, one legend."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from transfer.panels import scale
from transfer.segmentation import sheet
from transfer.segmentation.made import open_made
from transfer.segmentation.sheet import MOST, own_iou, write_sheet

COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


@pytest.fixture(scope="module")
def made():
    return open_made("val", images=4, size=64)


def truths(dataset):
    return {index: dataset.read(index)[1] for index in range(len(dataset.images))}


def read(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def table(count=3):
    found = np.zeros((256, 3), np.uint8)
    found[:count] = COLORS
    return found


@pytest.mark.parametrize("size", [64, 300, 700])
def test_a_row_an_image_with_image_truth_and_prediction(tmp_path, size):
    dataset = open_made("val", images=3, size=size)
    write_sheet(tmp_path / "sheet.png", dataset, truths(dataset), count=2)
    side = round(size * scale(size, size))
    found = read(tmp_path / "sheet.png")
    assert found.shape[1:] == (3 * side + 16, 3)
    rows, legend = divmod(found.shape[0], 20 + side + 8)
    assert rows == 2
    assert legend % 20 == 8  # lines of names, and the gap below them
    _, truth, prediction = (found[20 : 20 + side, start : start + side] for start in range(0, 3 * side, side + 8))
    np.testing.assert_array_equal(truth, prediction)


def test_the_rows_are_the_first_predicted_images_in_order(tmp_path, made):
    every = truths(made)
    write_sheet(tmp_path / "one.png", made, {3: every[3], 1: every[1]})
    write_sheet(tmp_path / "two.png", made, {1: every[1], 2: every[2], 3: every[3]}, count=1)
    one, two = read(tmp_path / "one.png"), read(tmp_path / "two.png")
    height = 20 + 448 + 8
    np.testing.assert_array_equal(one[:height], two[:height])
    image = cv2.resize(made.read(3)[0], (448, 448), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(one[height + 20 : height + 468, :448], image)


def test_images_of_several_sizes_stand_in_one_sheet(tmp_path, made):
    class Cut:
        def pixels(self, pair):
            return made.source.pixels(pair)[: pair.height, : pair.width]

        def labels(self, pair):
            return made.source.labels(pair)[: pair.height, : pair.width]

        def where(self, pair):
            return pair.file

    images = [replace(made.images[0], height=40), replace(made.images[1], width=30), made.images[2]]
    dataset = replace(made, images=images, source=Cut())
    write_sheet(tmp_path / "sheet.png", dataset, truths(dataset))
    assert read(tmp_path / "sheet.png").shape[1] == 3 * 448 + 16


def test_classes_are_tints_of_the_grey_image_and_meet_in_full_colour():
    labels = np.zeros((400, 400), np.uint8)
    labels[:, 200:] = 1
    pixels = np.full((400, 400, 3), (10, 200, 30), np.uint8)
    drawn = sheet._tinted(pixels, labels, table())
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[0, 0]
    np.testing.assert_allclose(drawn[50, 50], 0.4 * grey, atol=1)
    np.testing.assert_allclose(drawn[50, 250], 0.4 * grey + 0.6 * COLORS[1], atol=1)
    np.testing.assert_array_equal(drawn[:, 199:201], np.broadcast_to(COLORS[:2], (400, 2, 3)))


def test_a_line_of_one_pixel_keeps_its_own_colour():
    labels = np.zeros((400, 400), np.uint8)
    labels[:, 7] = 2
    drawn = sheet._tinted(np.full((400, 400, 3), 90, np.uint8), labels, table())
    np.testing.assert_array_equal(drawn[:, 7], np.broadcast_to(COLORS[2], (400, 3)))


def test_what_is_not_counted_is_grey_and_hatched():
    labels = np.ones((400, 400), np.uint8)
    labels[100:300, 100:300] = 255
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    hidden = sheet._tinted(pixels, labels, table())[100:300, 100:300]
    assert (hidden == hidden[..., :1]).all()
    lines = (hidden[..., 0] == 220).mean()
    assert 0.2 < lines < 0.3  # two pixels of eight
    assert hidden[..., 0][hidden[..., 0] != 220].max() <= 170


@pytest.mark.parametrize("seed", range(3))
def test_the_iou_of_an_image_is_that_of_scikit_learn_over_the_classes_in_it(seed):
    random = np.random.default_rng(seed)
    truth = random.choice([0, 1, 2, 5, 255], (30, 40), p=[0.4, 0.3, 0.1, 0.1, 0.1]).astype(np.uint8)
    predicted = np.where(random.random((30, 40)) < 0.6, truth % 255, 3).astype(np.uint8)  # 3 is not in the image
    counted = truth != 255
    wanted = jaccard_score(truth[counted], predicted[counted], labels=[0, 1, 2, 5], average="macro")
    assert own_iou(truth, predicted) == pytest.approx(100 * wanted, abs=1e-9)


def test_an_image_without_a_counted_pixel_has_no_iou(tmp_path, made):
    empty = np.full((64, 64), 255, np.uint8)
    assert own_iou(empty, np.zeros((64, 64), np.uint8)) is None

    class Hidden:
        def pixels(self, pair):
            return made.source.pixels(pair)

        def labels(self, pair):
            return empty

        def where(self, pair):
            return pair.file

    write_sheet(tmp_path / "sheet.png", replace(made, source=Hidden()), {0: np.zeros((64, 64), np.uint8)})
    assert read(tmp_path / "sheet.png").shape[0] == 20 + 448 + 8 + 20 + 8


def swatches(legend):
    """The colours at the places of swatches, line by line."""
    found = []
    for top in range(0, len(legend) - 1, 20):
        strip = legend[top + 10]
        starts = [x for x in range(strip.shape[0] - 14) if (legend[top + 3 : top + 17, x : x + 14] == strip[x]).all()]
        found += [tuple(strip[x].tolist()) for x in starts if strip[x].tolist() != [255, 255, 255]]
    return list(dict.fromkeys(found))


def test_the_legend_has_the_seen_classes_in_their_order(made):
    seen = np.zeros(256, np.int64)
    seen[[4, 1, 9]] = 10, 30, 20
    assert swatches(sheet._legend(made, seen, 1360)) == [made.palette[label] for label in (1, 4, 9)]


def test_a_long_legend_wraps_and_names_those_of_the_most_pixels(made, monkeypatch):
    written = []
    original = cv2.putText
    monkeypatch.setattr(
        cv2, "putText", lambda canvas, text, *more: (written.append(text), original(canvas, text, *more))
    )
    names = [f"class number {label} of a long name" for label in range(150)]
    many = replace(made, classes=names, palette=[(label, 90, 200) for label in range(150)])
    seen = np.zeros(256, np.int64)
    seen[:150] = np.arange(150) + 1
    seen[255] = 5
    legend = sheet._legend(many, seen, 640)
    assert legend.shape[1] == 640
    assert legend.shape[0] > 5 * 20
    shown = [f"class number {label} of a long name"[:26] + ".." for label in range(150 - MOST, 150)]
    assert written == [*shown, "not counted", f"and {150 - MOST} more"]
    assert (legend[:, -1] == 255).all()
