"""The made set: images, boxes and masks of the scenes, ids from 1, an identity of its own."""

import pickle

import numpy as np
import pytest
from faster_coco_eval.core import mask

from smog.data import scenes
from smog.errors import UsageError
from transfer.coco_data import fraction
from transfer.made import OBJECTS, open_made


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_are_those_of_the_image_that_is_read(split):
    made = pickle.loads(pickle.dumps(open_made(split, images=20, size=64, seed=3)))
    assert [image.id for image in made.images] == list(range(1, 21))
    assert made.has_masks
    for index, image in enumerate(made.images):
        scene = scenes.scene(3, index, 64, OBJECTS, split)
        np.testing.assert_array_equal(made.read(index), scene.image)
        np.testing.assert_array_equal(image.boxes, scene.boxes)
        assert [made.classes[label] for label in image.labels] == [scenes.CLASSES[label] for label in scene.labels]
        masks = np.stack([mask.decode(segment) for segment in image.segments])
        np.testing.assert_array_equal(masks, scene.masks)
        np.testing.assert_array_equal(image.areas, masks.sum(axis=(1, 2)))
        assert not image.crowd.any()


def test_the_truth_is_a_coco_dict_with_whole_boxes():
    truth = open_made("val", images=10, size=64).coco()
    for entry in truth["annotations"]:
        x, y, width, height = entry["bbox"]
        inside = np.zeros((64, 64), bool)
        inside[int(y) : int(y + height), int(x) : int(x + width)] = True
        pixels = mask.decode(entry["segmentation"]).astype(bool)
        assert not pixels[~inside].any()
        assert entry["area"] == pixels.sum()
        assert 1 <= entry["category_id"] <= 10


def test_images_are_told_apart_by_the_fingerprint():
    same = [open_made("train", images=5, size=32).fingerprint for _ in range(2)]
    other = [
        open_made("val", images=5, size=32),
        open_made("train", images=6, size=32),
        open_made("train", images=5, size=40),
        open_made("train", images=5, size=32, seed=1),
        fraction(open_made("train", images=5, size=32), 0.5, 0),
    ]
    assert same[0] == same[1]
    assert len({same[0], *(made.fingerprint for made in other)}) == 6


def test_what_can_not_be_made_is_refused():
    with pytest.raises(UsageError, match="split 'test'"):
        open_made("test")
    with pytest.raises(UsageError, match="at least one image"):
        open_made("val", images=-1)
    with pytest.raises(UsageError, match="at least 8 pixels"):
        open_made("val", images=1, size=4)
