"""The made scenes: the same pixels everywhere, exact boxes and masks, nothing about the class in ground or tint."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smog.data import scenes
from smog.errors import UsageError

GROUNDS = np.array(scenes.GROUNDS)
EACH = 120  # images of a class, for the statistics

sizes = st.one_of(st.integers(8, 70), st.tuples(st.integers(8, 70), st.integers(8, 70)))
counts = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda pair: (min(pair), max(pair)))
splits = st.sampled_from(["train", "val"])


def ground(image: np.ndarray) -> int:
    """Return the number of an image's most frequent color, which must be one of the grounds."""
    colors, often = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    here = (colors[often.argmax()] == GROUNDS).all(axis=1)
    assert here.sum() == 1
    return int(here.argmax())


@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**40), size=sizes, objects=counts, split=splits)
@settings(max_examples=150, deadline=None)
def test_boxes_are_tight_around_disjoint_masks(seed, index, size, objects, split):
    made = scenes.scene(seed, index, size, objects, split)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert (made.image.shape, made.image.dtype) == ((height, width, 3), np.uint8)
    assert (made.masks.shape, made.masks.dtype) == ((len(made.labels), height, width), bool)
    assert (made.boxes.shape, made.boxes.dtype) == ((len(made.labels), 4), np.float32)
    assert len(made.labels) <= objects[1]
    assert made.masks.sum(axis=0).max(initial=0) <= 1
    for mask, box in zip(made.masks, made.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_same_number_gives_the_same_pixels(split):
    first = scenes.scene(3, 11, (50, 60), split=split)
    scenes.scene(3, 12, 40, split=split)  # what was drawn between does not matter
    again = scenes.scene(3, 11, (50, 60), split=split)
    for name in ("image", "boxes", "masks", "labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_other_numbers_give_other_pixels():
    images = [
        scenes.draw(seed, index, 32, split) for seed in (0, 1) for index in range(200) for split in ("train", "val")
    ]
    assert len({image.tobytes() for image in images}) == len(images)


def test_an_image_beyond_the_last_picture_shows_a_garment_again_but_not_its_image():
    count = scenes.count("val")
    assert scenes.label(5, "val") == scenes.label(5 + count, "val")
    assert (scenes.draw(0, 5, 32, "val") != scenes.draw(0, 5 + count, 32, "val")).any()


@pytest.mark.parametrize(
    ("size", "golden"), [(32, "fd995e6cbe122e96"), (40, "54743180fb36f767"), (224, "f0269aa330d4c930")]
)
def test_pixels_never_change_unnoticed(size, golden):
    """If this fails, and the change is meant, raise scenes.VERSION: runs on these images get another identity."""
    images = [scenes.draw(0, index, size, split) for index in range(12) for split in ("train", "val")]
    assert hashlib.sha256(np.stack(images).tobytes()).hexdigest()[:16] == golden


def test_scenes_never_change_unnoticed():
    made = [scenes.scene(7, index, (96, 128)) for index in range(12)]
    content = b"".join(part.tobytes() for one in made for part in (one.image, one.boxes, one.masks, one.labels))
    assert hashlib.sha256(content).hexdigest()[:16] == "559c8f731d1145cd"


def test_draw_is_a_scene_of_one_labelled_object():
    for index in range(30):
        made = scenes.scene(2, index, 48, (1, 1), "val")
        np.testing.assert_array_equal(scenes.draw(2, index, 48, "val"), made.image)
        assert made.labels.tolist() == [scenes.label(index, "val")]


@pytest.mark.parametrize("size", [8, 32])
def test_every_image_shows_its_garment(size):
    assert all(len(scenes.scene(0, index, size, (1, 1)).labels) == 1 for index in range(300))


def test_the_mask_is_what_was_painted():
    for index in range(40):
        made = scenes.scene(0, index, 64, (1, 1))
        other = (made.image != GROUNDS[ground(made.image)]).any(axis=-1)
        assert not (made.masks[0] & ~other).sum() > 0.02 * made.masks[0].sum()  # cloth may have the ground's color
        grown = np.pad(made.masks[0], 2)
        near = np.any([np.roll(grown, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)], axis=0)[2:-2, 2:-2]
        assert (other & ~near).mean() < 0.01  # outside lie only the blended edge and straps too thin for a mask


def test_a_garment_that_is_left_out_is_not_painted():
    seen = [scenes.scene(1, index, 64, (8, 8)) for index in range(60)]
    assert min(len(made.labels) for made in seen) < 8
    for made in seen:
        pixels = made.image[~np.pad(made.masks.any(axis=0), 2)[2:-2, 2:-2]]
        plain = (pixels == GROUNDS[ground(pixels)]).all(axis=-1)
        assert plain.mean() > 0.7  # the rest is blended edges


def test_as_many_objects_as_asked_for():
    many = [len(scenes.scene(4, index, 256, (1, 4)).labels) for index in range(100)]
    assert set(many) == {1, 2, 3, 4}


@pytest.mark.parametrize(("split", "count"), [("train", 8000), ("val", 2000)])
def test_labels_are_balanced_in_every_prefix(split, count):
    assert scenes.count(split) == count
    labels = np.array([scenes.label(index, split) for index in range(count)])
    for end in (10, 500, count):
        assert (np.bincount(labels[:end], minlength=len(scenes.CLASSES)) == end // 10).all()


def test_no_picture_is_in_both_splits():
    known = scenes.pictures()
    assert not {p.tobytes() for p in known.train} & {p.tobytes() for p in known.test}


def test_the_background_does_not_identify_the_image_or_tell_its_class():
    """A handful of flat colors, as often in every class: chi-square of the table [class, ground] at p = .001."""
    from scipy.stats import chi2_contingency

    table = np.zeros((10, len(GROUNDS)))
    for index in range(10 * EACH):
        table[scenes.label(index, "train"), ground(scenes.draw(0, index, 24, "train"))] += 1
    assert len(GROUNDS) <= 8
    assert table.sum(axis=0).min() > EACH  # each ground is used, on far more than one image
    assert chi2_contingency(table).pvalue > 0.001


def test_the_tint_does_not_tell_the_class():
    """The hue, averaged over a class, is the same for all to within noise: one-way analysis of variance at p = .001."""
    import cv2
    from scipy.stats import f_oneway

    hues: list[list[float]] = [[] for _ in range(10)]
    for index in range(10 * EACH):
        made = scenes.scene(0, index, 32, (1, 1))
        color = made.image[made.masks[0]].mean(axis=0)
        hue = cv2.cvtColor(color.astype(np.uint8)[None, None], cv2.COLOR_RGB2HSV_FULL)[0, 0, 0]
        hues[made.labels[0]].append(float(hue))
    assert f_oneway(*hues).pvalue > 0.001


def test_the_file_needs_no_pickle_and_its_licence_lies_beside_it():
    with np.load(scenes.FILE, allow_pickle=False) as file:
        assert {name: file[name].dtype for name in file.files} == dict.fromkeys(
            ("train", "train_labels", "test", "test_labels"), np.dtype(np.uint8)
        )
        assert file["train"].shape[1:] == file["test"].shape[1:] == (28, 28)
    assert "2017 Zalando SE" in (scenes.FILE.parent / "LICENSE").read_text()
    digest = hashlib.sha256(scenes.FILE.read_bytes()).hexdigest()
    assert digest in (scenes.FILE.parent / "README.md").read_text()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: scenes.draw(0, 0, 32, "test"), "train"),
        (lambda: scenes.draw(0, 0, 4, "train"), "8 pixels"),
        (lambda: scenes.draw(-1, 0, 32, "train"), "negative"),
        (lambda: scenes.scene(0, 0, 32, (3, 2)), "3 to 2"),
    ],
)
def test_wrong_use_is_named(call, word):
    with pytest.raises(UsageError, match=word):
        call()
