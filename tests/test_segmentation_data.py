"""Layouts on disk, folder or zip, and the made set: pixels, labels, counts, identity, fractions."""

import importlib.util
import pickle
import shutil
from pathlib import Path

import made_segmentation as made
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_detection import packed
from PIL import Image

from smog.data import scenes
from smog.errors import RunError, UsageError
from transfer.files import Files
from transfer.made import OBJECTS
from transfer.problems import Problems
from transfer.segmentation.check import check
from transfer.segmentation.classes import CITYSCAPES, IGNORE, VOC, class_names, coding, distinct, palette
from transfer.segmentation.data import (
    Labelled,
    Pair,
    Pairs,
    check_pair,
    fingerprint,
    fraction,
    open_pairs,
    unlearnable,
)
from transfer.segmentation.layouts import Listed, listing
from transfer.segmentation.made import open_made

needs_mmseg = pytest.mark.skipif(importlib.util.find_spec("mmseg") is None, reason="mmsegmentation is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),  # of mmcv's imports, as the next
    pytest.mark.filterwarnings("ignore:``MultiScaleDeformableAttention`` has been moved:ImportWarning"),
]
WRITERS = {"ade20k": made.write_ade20k, "cityscapes": made.write_cityscapes, "voc12aug": made.write_voc12aug}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    made.class_file(folder)
    return {kind: write(folder / kind) for kind, write in WRITERS.items()}


def opened(roots: dict[str, Path], kind: str, split: str) -> Pairs:
    return open_pairs(kind, roots[kind], split, classes_of(roots, kind))


def classes_of(roots: dict[str, Path], kind: str) -> str:
    return str(roots[kind].parent / "classes10.txt") if kind == "ade20k" else ""


def expected(kind: str, split: str, number: int) -> np.ndarray:
    """Labels as they must be read, from the scene and not from the file."""
    labels = made.drawn(split, number)[1].astype(int)
    if kind == "voc12aug":
        labels[0] = IGNORE
        return labels
    names = scenes.CLASSES if kind == "ade20k" else [*list(CITYSCAPES.values())[:9], "bicycle"]
    index = list(scenes.CLASSES if kind == "ade20k" else CITYSCAPES.values())
    return np.array([IGNORE, *(index.index(name) for name in names)])[labels]


@needs_mmseg
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", WRITERS)
def test_labels_are_those_of_the_scenes(roots: dict[str, Path], kind: str, split: str) -> None:
    pairs = pickle.loads(pickle.dumps(opened(roots, kind, split)))
    assert len(pairs.images) == made.COUNTS[split]
    truths = []
    for index, pair in enumerate(pairs.images):
        number = int(pair.id.split("_")[1])
        image, labels = pairs.read(index)
        truth = expected(kind, split, number)
        np.testing.assert_array_equal(labels, truth)
        drawn = made.drawn(split, number)[0]
        assert image.shape == drawn.shape == (pair.height, pair.width, 3)
        assert np.abs(image.astype(int) - drawn).mean() < (16 if pair.file.endswith("jpg") else 1e-9)
        assert (labels.dtype, image.dtype) == (np.uint8, np.uint8)
        truths.append(truth.ravel())
    numbers = np.bincount(np.concatenate(truths), minlength=256)
    np.testing.assert_array_equal(pairs.pixels_of, numbers[: len(pairs.classes)])
    assert pairs.ignored == numbers[IGNORE]
    assert len(pairs.palette) == len(pairs.classes)


@needs_mmseg
@pytest.mark.parametrize("kind", WRITERS)
def test_a_zip_is_the_folder(roots: dict[str, Path], kind: str, tmp_path: Path) -> None:
    archive = packed(roots[kind], tmp_path / f"{kind}.zip")
    folder, zipped = opened(roots, kind, "train"), open_pairs(kind, archive, "train", classes_of(roots, kind))
    for name in ("name", "classes", "palette", "images", "fingerprint", "notes"):
        assert getattr(folder, name) == getattr(zipped, name)
    np.testing.assert_array_equal(folder.counts, zipped.counts)
    for one, other in zip(folder.read(1), pickle.loads(pickle.dumps(zipped)).read(1), strict=True):
        np.testing.assert_array_equal(one, other)
    key = fingerprint(kind, archive, classes_of(roots, kind))
    assert key == fingerprint(kind, roots[kind], classes_of(roots, kind))


@pytest.mark.parametrize(("kind", "home"), [("ade20k", "ADEChallengeData2016"), ("cityscapes", "cityscapes")])
def test_a_set_may_lie_in_a_folder_of_its_name(roots: dict[str, Path], kind: str, home: str, tmp_path: Path) -> None:
    shutil.copytree(roots[kind], tmp_path / home)
    classes = classes_of(roots, kind)
    assert fingerprint(kind, tmp_path, classes) == fingerprint(kind, roots[kind], classes)


def test_fingerprints_tell_sets_and_classes_apart(roots: dict[str, Path], tmp_path: Path) -> None:
    """By name and size alone: a set of unreadable files has one."""
    root = shutil.copytree(roots["ade20k"], tmp_path / "set")
    keys = [fingerprint("ade20k", root), fingerprint("ade20k", root, str(made.class_file(tmp_path)))]
    label = root / "annotations/validation/scene_000.png"
    label.write_bytes(bytes(len(label.read_bytes())))
    assert fingerprint("ade20k", root) == keys[0]
    label.write_bytes(b"short")
    keys.append(fingerprint("ade20k", root))
    label.rename(label.with_name("scene_009.png"))
    (root / "images/validation/scene_000.jpg").rename(root / "images/validation/scene_009.jpg")
    keys.append(fingerprint("ade20k", root))
    assert len(set(keys)) == 4


@pytest.mark.parametrize("lines", [False, True])
def test_the_list_of_others_is_read_too(roots: dict[str, Path], lines: bool, tmp_path: Path) -> None:
    """trainaug.txt, of names or of the paths of both files, goes before train.txt and aug.txt."""
    root = shutil.copytree(roots["voc12aug"], tmp_path / "kit") / "VOCdevkit" / "VOC2012"
    names = ["2007_000004", "2007_000001"]
    if lines:
        names = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names]
    (root / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(names))
    pairs = listing("voc12aug", Files(root), "train", Problems("here")).pairs
    assert [pair.id for pair in pairs] == ["2007_000001", "2007_000004"]
    assert [pair.labels.partition("/")[0] for pair in pairs] == ["SegmentationClass", "SegmentationClassAug"]


@pytest.mark.parametrize(("split", "ending"), [("train", "labelIds.png"), ("val", "labelTrainIds.png")])
def test_train_ids_go_before_label_ids(roots: dict[str, Path], split: str, ending: str) -> None:
    pairs = listing("cityscapes", Files(roots["cityscapes"]), split, Problems("here")).pairs
    assert {pair.labels.rpartition("_")[2] for pair in pairs} == {ending}
    assert {pair.id.partition("/")[0] for pair in pairs} == {"aachen", "bonn"}


@needs_mmseg
def test_classes_and_colours_are_those_of_mmsegmentation() -> None:
    from mmseg.datasets import ADE20KDataset, CityscapesDataset, PascalVOCDataset

    import transfer.bodies.mmseg  # noqa: F401 (before mmseg)

    sets = {"ade20k": ADE20KDataset, "cityscapes": CityscapesDataset, "voc12aug": PascalVOCDataset}
    for kind, dataset in sets.items():
        assert class_names(kind) == list(dataset.METAINFO["classes"])
        assert palette(kind) == [tuple(color) for color in dataset.METAINFO["palette"]]
    assert class_names("voc12aug") == list(VOC)


@needs_mmseg
def test_ade20k_labels_are_those_that_mmsegmentation_loads(tmp_path: Path) -> None:
    from mmseg.datasets.transforms import LoadAnnotations

    import transfer.bodies.mmseg  # noqa: F401 (before mmseg)

    numbers = np.random.default_rng(0).integers(0, 152, (40, 30)).astype(np.uint8)
    numbers[numbers == 151] = 255
    for write in (made.write_grey, made.write_palette):
        write(tmp_path / "x.png", numbers)
        results = {"seg_map_path": str(tmp_path / "x.png"), "reduce_zero_label": True, "seg_fields": []}
        theirs = LoadAnnotations().transform(results)["gt_seg_map"]
        ours = Labelled(Files(tmp_path), "ade20k", 150).labels(Pair("x", "x.jpg", "x.png", 40, 30))
        np.testing.assert_array_equal(ours, theirs)
        assert set(ours.ravel().tolist()) == {*range(150), IGNORE}


@given(
    numbers=arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 300)),
    classes=st.integers(1, 254),
    form=st.sampled_from(["grey", "palette", "16 bits"]),
)
def test_every_number_is_a_class_or_not_counted_or_refused(tmp_path_factory, numbers, classes, form) -> None:
    folder = tmp_path_factory.mktemp("one")
    if form != "16 bits":
        numbers = numbers.astype(np.uint8)
    (made.write_palette if form == "palette" else made.write_grey)(folder / "x.png", numbers)
    made.write_image(folder / "x.jpg", np.zeros((*numbers.shape, 3), np.uint8))
    problems, pair = Problems("here"), Listed("x", "x.jpg", "x.png")
    found = check("ade20k", Files(folder), [pair], classes, True, problems)
    outside = set(numbers.ravel().tolist()) - {*range(classes + 1), 255}
    assert bool(problems.kinds) == bool(outside)
    if outside:
        return
    labels = Labelled(Files(folder), "ade20k", classes).labels(Pair(*pair, *numbers.shape))
    for number, label in zip(numbers.ravel().tolist(), labels.ravel().tolist(), strict=True):
        assert label == (number - 1 if 1 <= number <= classes else IGNORE)
    want = np.bincount(np.minimum(labels.ravel(), classes), minlength=classes + 1)
    np.testing.assert_array_equal(found.counts[0], want)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_few_bits_gives_indices(tmp_path: Path, bits: int) -> None:
    numbers = (np.arange(35).reshape(5, 7) % 2**bits).astype(np.uint8)
    made.write_palette(tmp_path / "x.png", numbers, bits)
    np.testing.assert_array_equal(Files(tmp_path).numbers("x.png"), numbers)


def test_sizes_are_compared_after_exif_has_turned_the_image(roots: dict[str, Path], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("x.jpg", "x.png"):
        Image.new("RGB", (30, 20)).save(tmp_path / name, exif=exif)
        assert Files(tmp_path).extent(name) == Files(tmp_path).decode(name).shape[:2] == (30, 20)


def test_cityscapes_knows_every_number_up_to_33() -> None:
    ids = coding("cityscapes", 19, "x_gtFine_labelIds.png")
    assert np.flatnonzero(ids.known).tolist() == [*range(34), 255]
    assert [ids.table[number] for number in (7, 11, 26, 33)] == [0, 2, 13, 18]
    assert np.flatnonzero(ids.table != IGNORE).tolist() == list(CITYSCAPES)
    trained = coding("cityscapes", 19, "x_gtFine_labelTrainIds.png")
    assert np.flatnonzero(trained.known).tolist() == [*range(19), 255]


def test_colours_of_a_class_file_are_distinct() -> None:
    assert len(set(distinct(254))) == 254
    assert distinct(3) == distinct(9)[:3]


# ---- the made set ----


@pytest.mark.parametrize("split", ["train", "val"])
def test_made_labels_are_the_visible_masks(split: str) -> None:
    pairs = pickle.loads(pickle.dumps(open_made(split, images=8, size=48, seed=3)))
    total = np.zeros(11, int)
    for index in range(8):
        scene = scenes.scene(3, index, 48, OBJECTS, split)
        image, labels = pairs.read(index)
        np.testing.assert_array_equal(image, scene.image)
        np.testing.assert_array_equal(labels > 0, scene.masks.any(axis=0))
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            assert {pairs.classes[found] for found in labels[mask]} == {scenes.CLASSES[label]}
        total += np.bincount(labels.ravel(), minlength=11)
    np.testing.assert_array_equal(pairs.pixels_of, total)
    assert (pairs.ignored, len(set(pairs.palette))) == (0, 11)


def test_made_sets_are_told_apart_and_bad_ones_refused() -> None:
    made_of = [("train", 4, 32, 0), ("val", 4, 32, 0), ("train", 5, 32, 0), ("train", 4, 40, 0), ("train", 4, 32, 1)]
    assert len({open_made(*one).fingerprint for one in made_of}) == 5
    assert open_made(*made_of[0]).fingerprint == open_made(*made_of[0]).fingerprint
    for bad in (("test", 4, 32), ("val", 0, 32), ("val", 1, 4)):
        with pytest.raises(UsageError):
            open_made(*bad)


# ---- splits and parts of them ----


def test_smaller_fractions_lie_within_larger_ones() -> None:
    whole = open_made("train", images=40, size=16)
    parts = {share: fraction(whole, share, 1) for share in (0.01, 0.1, 0.5, 1.0)}
    assert [len(part.images) for part in parts.values()] == [1, 4, 20, 40]
    ids = [{image.id for image in part.images} for part in parts.values()]
    assert ids[0] < ids[1] < ids[2] < ids[3]
    assert len({part.fingerprint for part in parts.values()}) == 4
    half = parts[0.5]
    labels = np.concatenate([half.read(index)[1].ravel() for index in range(20)])
    np.testing.assert_array_equal(half.pixels_of, np.bincount(labels, minlength=11))
    assert "20 of 40 images (fraction 0.5, seed 1)" in half.notes
    assert any(note.startswith("classes without a pixel in the fraction 0.01") for note in parts[0.01].notes)
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            fraction(whole, share, 0)


def test_splits_of_other_classes_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    train = opened(roots, "ade20k", "train")
    check_pair(train, opened(roots, "ade20k", "val"))
    with pytest.raises(UsageError, match="1 classes of val alone \\('background'\\)"):
        check_pair(train, open_made("val", 1, 16))


def test_a_class_that_only_val_has_is_told() -> None:
    train, val = open_made("train", 1, 32), open_made("val", 30, 32)
    (note,) = unlearnable(train, val)
    assert note.startswith("classes with pixels in val and none in train: ")
    assert unlearnable(val, train) == []


def test_a_set_that_changes_ends_the_run_with_its_path(roots: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(roots["ade20k"], tmp_path / "set")
    pairs = open_pairs("ade20k", root, "train", str(made.class_file(tmp_path)))
    made.write_grey(root / pairs.images[0].labels, np.ones((5, 6), np.uint8))
    (root / pairs.images[1].labels).write_bytes(b"")
    (root / pairs.images[2].file).unlink()
    made.write_grey(root / pairs.images[3].labels, np.full((64, 48), 300, np.uint16))
    for index, message in enumerate(("labels 6 x 5, not", "it is no image", "No such file", "a label of 300")):
        with pytest.raises(RunError, match=message) as caught:
            pairs.read(index)
        assert caught.value.kind == "data"
        assert str(root / pairs.images[index].file) in str(caught.value)


# ---- real photographs ----


def test_camvid(camvid_zip: Path, tmp_path: Path) -> None:
    names = tmp_path / "camvid.txt"
    names.write_text("sky\nbuilding\npole\nroad\npavement\ntree\nsign\nfence\ncar\npedestrian\nbicyclist\n")
    pairs = {split: open_pairs("ade20k", camvid_zip, split, str(names)) for split in ("train", "val")}
    assert [len(split.images) for split in pairs.values()] == [367, 233]
    for split in pairs.values():
        assert split.notes == []
        assert split.counts.sum() == len(split.images) * 360 * 480
        assert (split.pixels_of > 70_000).all()
    check_pair(*pairs.values())
