"""COCO's layout: what is read is what was written, and whatever is wrong is one UsageError that lists it."""

import copy
import json
import pickle
import zipfile

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smog.errors import RunError, UsageError
from transfer.coco_check import Problems, _runs, check, parse
from transfer.coco_data import check_pair, fingerprint, fraction, open_coco
from transfer.evaluation import coco_ap

SQUARE = [[4.0, 6.0, 14.0, 6.0, 14.0, 16.0]]


def content():
    """Two images of 40 x 30 with objects, one without; categories 3 and 17."""
    own = copy.deepcopy(SQUARE)  # one test breaks what it gets
    return {
        "images": [{"id": 10 * n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in (3, 1, 2)],
        "annotations": [
            {"id": 5, "image_id": 10, "category_id": 17, "bbox": [4, 6, 10.5, 10], "area": 51.25, "segmentation": own},
            {"id": 6, "image_id": 30, "category_id": 3, "bbox": [0, 0, 40, 30], "area": 900, "segmentation": own},
            {
                "id": 7, "image_id": 10, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 1,
                "segmentation": {"size": [30, 40], "counts": [31, 9, 1160]},
            },
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "dog"}],
    }  # fmt: skip


def write(root, data, split="train", year="2017"):
    folder = root / f"{split}{year}"
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        image = np.full((30, 40, 3), (number, 0, 200), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
    (root / "annotations").mkdir(exist_ok=True)
    text = data if isinstance(data, str) else json.dumps(data)
    (root / "annotations" / f"instances_{split}{year}.json").write_text(text)
    return root


def refused(data):
    """The message over a json whose images are all there."""
    with pytest.raises(UsageError) as caught:
        read(data)
    return str(caught.value)


def read(data):
    """A json whose images are all there, in columns."""
    problems = Problems("x.json")
    table = check(parse(json.dumps(data).encode(), problems), {f"{n}.png": 9 for n in (1, 2, 3)}, problems)
    problems.stop()
    return table


def changed(where, place, **values):
    data = content()
    data[where][place].update(values)
    return data


@pytest.mark.parametrize("year", ["2017", ""])
def test_a_folder_and_its_zip_are_read_as_written(tmp_path, year):
    root = write(tmp_path / "set", content(), year=year)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root))
    folder, packed = open_coco(root, "train"), open_coco(tmp_path / "set.zip", "train")
    assert folder.fingerprint == packed.fingerprint
    for found in (folder, pickle.loads(pickle.dumps(packed))):
        assert (found.name, found.classes, found.category_ids) == ("set", ["dog", "cat"], [3, 17])
        assert [image.id for image in found.images] == [30, 10, 20]
        first = found.images[1]
        assert first.boxes.tolist() == [[4, 6, 14.5, 16], [1, 1, 10, 10]]
        assert (first.labels.tolist(), first.crowd.tolist(), first.areas.tolist()) == (
            [1, 0],
            [False, True],
            [51.25, 81],
        )
        assert first.segments[0] == SQUARE
        assert (first.boxes.dtype, first.labels.dtype, first.crowd.dtype) == (np.float32, np.int64, bool)
        assert found.read(1)[0, 0].tolist() == [1, 0, 200]
        assert len(found.images[2].boxes) == 0
        assert found.has_masks
        assert any("1 images have no objects" in note for note in found.notes)


def test_the_truth_for_the_evaluation_is_the_json(tmp_path):
    data = content()
    data["annotations"][0]["bbox"] = [4.1, 6.7, 10.3, 10.9]
    truth = open_coco(write(tmp_path, data), "train").coco()
    given = {(entry["image_id"], entry["category_id"]): entry for entry in data["annotations"]}
    for number, entry in enumerate(truth["annotations"], 1):
        original = given[entry["image_id"], entry["category_id"]]
        assert entry["id"] == number
        assert (entry["bbox"], entry["area"]) == (original["bbox"], original["area"])
        assert entry["iscrowd"] == original.get("iscrowd", 0)
        assert entry["segmentation"] == original["segmentation"]


def test_small_corners_out_of_the_image_are_cut(tmp_path):
    data = changed("annotations", 1, bbox=[-0.5, 0, 41, 30])
    found = open_coco(write(tmp_path, data), "train").images[0]
    assert found.boxes.tolist() == [[0, 0, 40, 30]]
    assert found.exact.tolist() == [[-0.5, 0, 41, 30, 900]]


MISTAKES = {
    "1 ids of images that are not unique (10)": changed("images", 0, id=10),
    "1 ids of annotations that are not unique (5)": changed("annotations", 1, id=5),
    "1 ids of categories that are not unique (3)": changed("categories", 0, id=3),
    "1 names of categories that are not unique (cat)": changed("categories", 1, name="cat"),
    "1 images without a file (9.png)": changed("images", 0, file_name="9.png"),
    "1 images without a file (../1.png)": changed("images", 0, file_name="../1.png"),
    "1 annotations with an unknown image_id (id 5: 99)": changed("annotations", 0, image_id=99),
    "1 annotations with an unknown category_id (id 5: 4)": changed("annotations", 0, category_id=4),
    "1 boxes more than 1 pixel outside of their image (id 5:": changed("annotations", 0, bbox=[31, 1, 10.1, 9]),
    "1 annotations of negative width, height or area (id 5:": changed("annotations", 0, bbox=[9, 9, -2, 3]),
    "1 annotations without width, height or area (id 5:": changed("annotations", 0, bbox=[9, 9, 0, 3]),
    "bbox is not four finite numbers (id 5: [nan,": changed("annotations", 0, bbox=[float("nan"), 1, 2, 3]),
    "bbox is not four finite numbers (id 5: ['1',": changed("annotations", 0, bbox=["1", 1, 2, 3]),
    "bbox is not four finite numbers (id 5: [1, 2])": changed("annotations", 0, bbox=[1, 2]),
    "area is not a finite number (id 5: inf)": changed("annotations", 0, area=float("inf")),
    "image_id is not a whole number (id 5: '10')": changed("annotations", 0, image_id="10"),
    "height is not a whole number from 1 to 100000 (id 30: 0)": changed("images", 0, height=0),
    "images whose id is not a whole number (number 0: True)": changed("images", 0, id=True),
    "iscrowd is not 0 or 1 (id 5: 2)": changed("annotations", 0, iscrowd=2),
    "polygons of three points or more": changed("annotations", 0, segmentation=[[1, 2, 3, 4]]),
    "1 annotations without a segmentation, where others have one (id 5)": changed("annotations", 0, segmentation=[]),
    "1 RLE masks that do not fill their image (id 7": changed(
        "annotations", 2, segmentation={"size": [30, 40], "counts": [31, 9]}
    ),
    "1 lists empty (annotations)": {**content(), "annotations": []},
    "1 lists missing (images)": {**content(), "images": {}},
    "1 annotations that are no objects (number 0: 7)": {**content(), "annotations": [7, *content()["annotations"]]},
    "holds a list": [content()],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_each_mistake_is_named(message):
    assert message in refused(MISTAKES[message])


def test_all_mistakes_are_told_at_once_with_counts():
    data = content()
    data["images"][1]["width"] = "40"
    data["annotations"] = [{**data["annotations"][1], "id": n, "bbox": [0, 0, 50, 5]} for n in range(8)]
    data["annotations"][7]["category_id"] = 99
    message = refused(data)
    assert "1 images whose width" in message
    assert "1 annotations with an unknown category_id (id 7: 99)" in message
    assert "7 boxes more than 1 pixel outside" in message
    assert "and 4 more" in message


def test_crowds_alone_teach_nothing():
    data = content()
    for entry in data["annotations"]:
        entry["iscrowd"] = 1
    assert "crowd" in refused(data)


def test_a_few_objects_without_extent_are_left_out_and_noted(tmp_path):
    data = content()
    data["annotations"] += [{**data["annotations"][0], "id": 100 + n} for n in range(2000)]
    data["annotations"][50]["bbox"] = [3, 4, 5, 0]
    found = open_coco(write(tmp_path, data), "train")
    assert sum(len(image.boxes) for image in found.images) == 2002
    assert "1 annotations without width, height or area are left out" in found.notes


def test_no_area_is_that_of_the_box_and_no_masks_are_none(tmp_path):
    data = content()
    for entry in data["annotations"]:
        entry.pop("area")
        entry["segmentation"] = []
    found = open_coco(write(tmp_path, data), "train")
    assert not found.has_masks
    assert found.images[1].areas.tolist() == [105, 81]
    assert any("3 annotations have no area" in note for note in found.notes)


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"images": [', "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match=r"instances_train2017\.json is not JSON"):
        open_coco(write(tmp_path, text), "train")


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"no zip")
    for root, message in ((tmp_path / "none", "neither a folder"), (tmp_path / "file", "neither a folder")):
        with pytest.raises(UsageError, match=message):
            open_coco(root, "train")
    root = write(tmp_path / "set", content())
    with pytest.raises(UsageError, match="no images of val: expected val2017/ or val/"):
        open_coco(root, "val")
    (root / "annotations" / "instances_train2017.json").unlink()
    with pytest.raises(UsageError, match=r"expected annotations/instances_train2017\.json or instances_train\.json"):
        open_coco(root, "train")


def test_a_json_of_other_images_is_refused_at_opening(tmp_path):
    root = write(tmp_path, changed("images", 0, height=31))
    (root / "train2017" / "2.png").write_bytes(b"no picture")
    with pytest.raises(UsageError) as caught:
        open_coco(root, "train")
    assert "1 images of another size than the json's (3.png: the file has 40 x 30" in str(caught.value)
    assert "1 images that can't be read (train2017/2.png" in str(caught.value)


def test_an_image_that_changes_later_is_named_at_reading(tmp_path):
    found = open_coco(write(tmp_path, content()), "train")
    (tmp_path / "train2017" / "3.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "train2017" / "1.png"), np.zeros((9, 9, 3), np.uint8))
    for index, message in ((0, r"3\.png: image can't be read"), (1, r"1\.png: the file has 9 x 9 pixels")):
        with pytest.raises(RunError, match=message) as caught:
            found.read(index)
        assert caught.value.kind == "data"


def test_the_fingerprint_follows_annotations_and_files(tmp_path):
    roots = {"one": content(), "same": content(), "other": changed("annotations", 0, area=50)}
    keys = {}
    for name, data in roots.items():
        root = write(write(tmp_path / name, data), content(), "val")
        keys[name] = open_coco(root, "train").fingerprint, fingerprint(root)
    assert keys["one"] == keys["same"]
    assert not set(keys["one"]) & set(keys["other"])
    (tmp_path / "same" / "train2017" / "1.png").write_bytes(b"x")
    assert fingerprint(tmp_path / "same") != keys["same"][1]


def test_two_splits_with_other_categories_are_refused(tmp_path):
    root = write(write(tmp_path, content()), changed("categories", 0, name="cow"), "val")
    train, val = open_coco(root, "train"), open_coco(root, "val")
    check_pair(train, train)
    with pytest.raises(UsageError, match=r"of train alone \(17 'cat'\); 1 categories of val alone \(17 'cow'\)"):
        check_pair(train, val)


def test_fractions_are_nested_and_have_identities_of_their_own(bccd_zip):
    whole = open_coco(bccd_zip, "train")
    parts = {share: fraction(whole, share, 1) for share in (0.01, 0.1, 0.5, 1.0)}
    ids = [{image.id for image in part.images} for part in parts.values()]
    assert [len(some) for some in ids] == [3, 29, 146, 292]
    assert ids[0] < ids[1] < ids[2] < ids[3]
    assert {image.id for image in fraction(whole, 0.1, 2).images} != ids[1]
    assert len({part.fingerprint for part in parts.values()}) == 4
    assert fraction(whole, 0.1, 1).fingerprint == parts[0.1].fingerprint
    for share in (0, -1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="a fraction is above 0"):
            fraction(whole, share, 0)


def test_real_photos_and_the_real_json_in_pycocotools(bccd_zip):
    """The truth given as detections is perfect, and the truth that we hand over is what pycocotools reads."""
    val = open_coco(bccd_zip, "val")
    assert (len(val.images), val.classes) == (72, ["RBC", "WBC", "Platelets"])
    assert val.read(5).shape == (480, 640, 3)
    truth = val.coco()["annotations"]
    found = [{key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for entry in truth]
    assert coco_ap(val, found, masks=False).metrics["box_ap"] > 99.9
    with zipfile.ZipFile(bccd_zip) as archive:
        given = json.loads(archive.read("annotations/instances_val2017.json"))["annotations"]

    def key(entry):
        return entry["image_id"], entry["bbox"], entry["area"], entry["category_id"]

    assert sorted(map(key, truth)) == sorted(map(key, given))


@given(masks=st.lists(st.booleans(), min_size=1, max_size=60), cut=st.integers(0, 5))
def test_run_lengths_are_read_as_the_encoder_writes_them(masks, cut):
    rle = mask.encode(np.asfortranarray(np.array(masks, np.uint8)[:, None]))
    text = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
    assert _runs(text, len(masks), 1)
    assert not _runs(text, len(masks) + 1, 1)
    if cut:
        assert not _runs(text[:-1], len(masks), 1)


@given(text=st.text(max_size=12), size=st.integers(1, 9))
def test_run_lengths_of_any_text_are_judged(text, size):
    if _runs(text, size, size):  # then the decoder in C may have it
        assert mask.decode({"size": [size, size], "counts": text}).shape == (size, size)


LEAVES = [st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just(10**400)]
ODD = st.recursive(
    st.one_of(*LEAVES, st.sampled_from([0, 10, 30])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(node, path=()):
    """Every place in a json, as the keys that lead there."""
    yield path
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(inner, (*path, key))


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_json_broken_anywhere_is_read_or_refused(data):
    broken = {"top": content()}
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([place for place in places(broken) if place]))
        node = broken
        for key in path:
            node = node[key]
        if data.draw(st.booleans()):
            node[last] = data.draw(ODD)
        elif path:
            del node[last]
    try:
        table = read(broken["top"])
    except UsageError:  # and no other
        return
    assert np.isfinite(table.boxes).all()
    assert (table.boxes[:, 2:] > table.boxes[:, :2]).all()
    assert len(table.segments) == len(table.labels) == len(table.at)


def test_the_content_is_not_changed():
    data = content()
    before = copy.deepcopy(data)
    problems = Problems("x.json")
    check(data, {f"{n}.png": 9 for n in (1, 2, 3)}, problems)
    assert data == before
