"""Data sets on disk through the command: COCO's and VOC's layouts train and score, real photos too, and what is wrong
with data or checkpoint is said in one line before anything is written."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import made_checkpoints
import numpy as np
import pytest
import torch
from made_detection import COUNTS, packed, picture, write_coco, write_voc

from smog.data import scenes
from smog.tasks import settings
from transfer import coco_data
from transfer.coco import main
from transfer.coco_data import open_coco
from transfer.loader import Batches
from transfer.voc import CLASSES as VOC

TINY = (
    "sizes=[48]", "test_size=48", "largest=80", "anchor=8", "channels=8", "batch=4", "images=8", "regions=16",
    "proposals=20", "warmup=0", "precise_bn=4", "precision=fp32", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "garments")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "kit")


def command(data: str, store: Path, *more: str) -> list[str]:
    """Arguments of a fine-tuning of seconds; later ones hold."""
    start = ["--ckpt", "random", "--model", "resnet10_tiny", "--engine", "torchvision", "--data", data, "--json"]
    return [*start, "--store", str(store), *more, "--set", *TINY]


def result(capsys, *arguments: str) -> dict:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def science(found: dict) -> dict:
    return {key: value for key, value in found.items() if key not in ("cost", "created", "provenance")}


# ---- what is right ----


def test_a_folder_and_its_zip_train_and_score_alike(coco: Path, tmp_path: Path, capsys) -> None:
    found = result(capsys, *command(f"coco:{coco}", tmp_path / "one"))
    archive = packed(coco, tmp_path / "garments.zip")
    assert science(result(capsys, *command(str(archive), tmp_path / "other"))) == science(found)
    assert {"box_ap", "mask_ap", "box_ap50", "mask_ap75"} <= found["metrics"].keys()
    assert (found["inputs"]["train"], found["inputs"]["val"]) == (10, 4)
    assert found["inputs"]["classes"] == list(scenes.CLASSES)[::-1]
    assert found["settings"]["fingerprint"] == found["inputs"]["data"]


def test_masks_are_those_that_were_drawn(coco: Path) -> None:
    """At their own size, from polygons and from RLE, in images that lie and stand."""
    chosen = settings("coco", ["engine=torchvision", "data=coco", f"root={coco}", *TINY, "flip=0.0"])
    batches, square = Batches(open_coco(coco, "train"), chosen), np.ones((3, 3), np.uint8)
    for number in range(COUNTS["train"]):
        image, masks, scene = picture("train", number)
        sample, first = batches.sample(number, 0), int(number == 0)  # without the crowd
        names = [batches.dataset.classes[label] for label in sample.labels]
        assert names == [scenes.CLASSES[label] for label in scene.labels[first:]]
        assert sample.image.shape[1:] == image.shape[:2]
        assert np.allclose(sample.boxes, scene.boxes[first:])
        for ours, drawn in zip(sample.masks.numpy(), masks[first:].astype(np.uint8), strict=True):
            assert (cv2.erode(drawn, square) <= ours).all()
            assert (cv2.dilate(drawn, square) >= ours).all()


def test_voc_is_scored_by_its_own_rules(voc: Path, tmp_path: Path, capsys) -> None:
    more = ("--arch", "c4", "--schedule", "voc_24k")
    found = result(capsys, *command(f"voc:{voc}", tmp_path / "one", *more))
    assert found["metrics"].keys() == {"box_ap", "box_ap50", "box_ap75"}
    assert {name: found["settings"][name] for name in ("head", "masks", "name", "data")} == {
        "head": "c4", "masks": False, "name": "24k", "data": "voc",
    }  # fmt: skip
    assert (found["inputs"]["train"], found["inputs"]["val"], found["inputs"]["notes"]) == (10, 4, [])
    assert found["inputs"]["classes"] == list(VOC)
    archive = packed(voc, tmp_path / "kit.zip")
    assert science(result(capsys, *command(f"voc:{archive}", tmp_path / "other", *more))) == science(found)


def test_real_photos(bccd_zip: Path, tmp_path: Path, capsys) -> None:
    found = result(capsys, *command(str(bccd_zip), tmp_path, "--fraction", "0.1"), "proposals=5")
    assert {"box_ap", "box_ap50", "mask_ap", "mask_ap50"} <= found["metrics"].keys()
    assert (found["inputs"]["train"], found["inputs"]["val"]) == (29, 72)
    assert found["inputs"]["notes"] == ["29 of 292 images (fraction 0.1, seed 0)"]
    assert found["per_class"].keys() == {"RBC", "WBC", "Platelets"}


# ---- what is allowed, and noted ----


def edited(root: Path, change: Callable[[dict], None], split: str = "train") -> None:
    path = root / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def own(coco: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(coco, tmp_path / "garments"))


def test_images_of_crowds_alone_or_of_nothing_are_noted(own: Path, tmp_path: Path, capsys) -> None:
    def change(content: dict) -> None:
        for entry in content["annotations"]:
            entry["iscrowd"] = int(entry["image_id"] == 101)
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 102]

    edited(own, change)
    edited(own, change, "val")
    (own / "train2017" / "more.png").write_bytes(b"")
    notes = result(capsys, *command(str(own), tmp_path / "store"))["inputs"]["notes"]
    for note in (
        "1 images have no objects: training leaves them out",
        "1 images have crowd regions alone: training leaves them out",
        "1 files of train2017/ are not in the json and are not used",
    ):
        assert note in notes


def test_boxes_alone_make_a_faster_rcnn(own: Path, tmp_path: Path, capsys) -> None:
    for split in COUNTS:
        edited(own, lambda content: [entry.pop("segmentation") for entry in content["annotations"]], split)
    found = result(capsys, *command(str(own), tmp_path / "store"), "masks=false")
    assert "box_ap" in found["metrics"]
    assert "mask_ap" not in found["metrics"]


# ---- what is wrong ----


def refused(capsys, arguments: list[str], store: Path) -> str:
    """The one line of a refusal, which leaves no store."""
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, store.exists()) == ("", False)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def no_images(root: Path) -> None:
    for number in (2, 4, 6, 8):
        (root / "train2017" / f"{number}.jpg").unlink()


def unknown_ids(root: Path) -> None:
    def change(content: dict) -> None:
        content["annotations"][3]["image_id"] = 999
        content["annotations"][4]["category_id"] = 0

    edited(root, change)


def ids_out_of_range(root: Path) -> None:
    edited(root, lambda content: content["annotations"][3].update(category_id=-1, image_id=2**60))


def flat_boxes(root: Path) -> None:
    edited(root, lambda content: [entry.update(bbox=[5, 5, 0, 9]) for entry in content["annotations"][1:6]])


def thin_boxes(root: Path) -> None:
    edited(root, lambda content: [entry.update(bbox=[30, 5, 2e-6, 9]) for entry in content["annotations"][1:]])


def no_area(root: Path) -> None:
    edited(root, lambda content: content["annotations"][2].update(area=0))


def no_annotations(root: Path) -> None:
    edited(root, lambda content: content.update(annotations=[]))


def no_annotations_to_evaluate(root: Path) -> None:
    edited(root, lambda content: content.update(annotations=[]), "val")


def other_images(root: Path) -> None:
    for path in (root / "train2017").iterdir():
        cv2.imwrite(str(path), np.zeros((30, 50, 3), np.uint8))


def no_json(root: Path) -> None:
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')


def half_a_json(root: Path) -> None:
    edited(root, lambda content: content.pop("categories"))


def no_picture(root: Path) -> None:
    (root / "val2017" / "1.png").write_bytes(b"\x89PNG\r\n")


def outside(root: Path) -> None:
    edited(root, lambda content: content["annotations"][2].update(bbox=[5, 5, 90, 9]))


def crowds_alone(root: Path) -> None:
    edited(root, lambda content: [entry.update(iscrowd=1) for entry in content["annotations"]])


def other_categories(root: Path) -> None:
    edited(root, lambda content: content["categories"][2].update(name="cape"), "val")


def no_masks(root: Path) -> None:
    edited(root, lambda content: [entry.pop("segmentation") for entry in content["annotations"]], "val")


def no_split(root: Path) -> None:
    shutil.rmtree(root / "val2017")


MISTAKES = {
    no_images: ["instances_train2017.json", "4 images without a file (2.jpg, 4.jpg, 6.jpg and 1 more)"],
    unknown_ids: ["1 annotations with an unknown image_id (id 4: 999)", "an unknown category_id (id 5: 0)"],
    ids_out_of_range: ["whose category_id is not a whole number (id 4: -1)", f"(id 4: {2**60})"],
    flat_boxes: ["5 annotations without width, height or area (id 2: bbox [5, 5, 0, 9]", "and 2 more)"],
    thin_boxes: ["annotations without width, height or area (id 2: bbox [30, 5, 2e-06, 9]"],
    no_area: ["1 annotations without width, height or area (id 3"],
    no_annotations: ["instances_train2017.json: 1 lists empty (annotations)"],
    no_annotations_to_evaluate: ["instances_val2017.json: 1 lists empty (annotations)"],
    other_images: [
        "10 images of another size than the json's (0.jpg: the file has 50 x 30 pixels, the annotations say 64 x 48",
        "and 7 more)",
    ],
    no_json: ["instances_val2017.json is not JSON"],
    half_a_json: ["1 lists missing (categories)"],
    no_picture: ["1 images that can't be read (val2017/1.png"],
    outside: ["1 boxes more than 1 pixel outside of their image (id 3: bbox [5, 5, 90, 9]"],
    crowds_alone: ["all of them crowd regions or without extent: nothing can be learnt"],
    other_categories: ["of train alone (52 'pullover')", "of val alone (52 'cape')"],
    no_masks: ["val has boxes and no segmentations; take masks=false"],
    no_split: ["holds no images of val: expected val2017/ or val/"],
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_data_that_are_wrong_are_refused_with_their_place(own: Path, tmp_path: Path, capsys, mistake) -> None:
    mistake(own)
    said = refused(capsys, command(f"coco:{own}", tmp_path / "store"), tmp_path / "store")
    assert str(own) in said or "garments: train and val" in said
    for part in MISTAKES[mistake]:
        assert part in said


def test_a_fraction_that_leaves_too_few_images(own: Path, tmp_path: Path, capsys) -> None:
    arguments = command(str(own), tmp_path / "store", "--fraction", "0.3")
    assert "batch=4 is above the 3 training images" in refused(capsys, arguments, tmp_path / "store")


def test_an_image_that_only_training_meets_is_named(own: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """Of a large set some images are looked at before, not all."""
    monkeypatch.setattr(coco_data, "SAMPLE", 1)
    for path in sorted((own / "train2017").iterdir())[1:]:
        path.write_bytes(b"\x89PNG\r\n")
    assert main(command(str(own), tmp_path / "store")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"failed: {own}/train2017/")
    assert "mend it or take it out" in error
    assert not list((tmp_path / "store").rglob("results/*"))


def voc_mistakes(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Break a set one way after the other; yield what must be said."""
    folder = root / "VOCdevkit" / "VOC2007"
    path = folder / "Annotations" / "train_000001.xml"
    text = path.read_text()
    path.write_text(text.replace("<xmin>", "<xmin>9"))
    yield "outside", ["1 annotations with a box outside of the image or without extent", str(path.relative_to(root))]
    path.write_text(text.replace(f"<name>{VOC[picture('train', 1)[2].labels[0]]}<", "<name>horsey<"))
    yield "class", ["1 annotations that are not VOC's", "'horsey' is no class of VOC; nearest: horse"]
    path.write_text(text[:-20])
    yield "cut", ["1 annotations that are not VOC's", str(path.relative_to(root))]
    path.unlink()
    (folder / "JPEGImages" / "train_000002.jpg").unlink()
    yield "gone", ["1 annotations that can't be read", "1 images without a file (VOCdevkit/VOC2007/JPEGImages/train_0"]


def test_wrong_annotations_of_voc_are_refused_with_their_place(voc: Path, tmp_path: Path, capsys) -> None:
    root, store = Path(shutil.copytree(voc, tmp_path / "kit")), tmp_path / "store"
    for name, parts in voc_mistakes(root):
        said = refused(capsys, command(f"voc:{root}", store, "--schedule", "voc_24k"), store)
        assert all(part in said for part in parts), (name, said)
    said = refused(capsys, command(f"voc:{voc}", store), store)
    assert "data=voc has no masks; take masks=false" in said


RESNET, BOTTLENECK, SWIN, VIT = (
    made_checkpoints.network(family).state_dict() for family in ("resnet", "bottleneck", "swin", "vit")
)
UNFIT = {
    "a projector": (
        {**RESNET, "projector.0.weight": torch.zeros(2, 2)}, (), "(layout timm) as resnet18: unknown 1: projector.0",
    ),
    "missing keys": (
        {key: value for key, value in RESNET.items() if not key.startswith("layer3.0.bn1")}, (),
        "missing 4: layer3.0.bn1.weight, layer3.0.bn1.bias",
    ),
    "another name": (RESNET, ("--model", "resnet18"), "of another shape or type 55: layer1.0.conv1.weight ([8"),
    "another kind": (VIT, (), "vit_base_patch16_224: a ResNet or a Swin is expected"),
    "a Swin for C4": (SWIN, ("--arch", "c4"), "arch=c4 needs a ResNet"),
    "a narrow Swin": (SWIN, ("--arch", "swin_fpn"), "is for swin_tiny_patch4_window7_224, and the checkpoint holds"),
    "a narrow ResNet": (BOTTLENECK, ("--arch", "r50_c4"), "the protocol is for resnet50, and the checkpoint holds"),
}  # fmt: skip


def of_file(path: Path, *arguments: str) -> list[str]:
    """The same command with a stranger's file."""
    return ["--ckpt", str(path), *arguments[4:]]


@pytest.mark.parametrize("what", UNFIT)
def test_checkpoints_that_do_not_fit_are_refused_with_their_keys(coco: Path, tmp_path: Path, capsys, what) -> None:
    content, more, part = UNFIT[what]
    torch.save(content, tmp_path / "stranger.pth")
    arguments = of_file(tmp_path / "stranger.pth", *command(str(coco), tmp_path / "store", *more))
    assert part in refused(capsys, arguments, tmp_path / "store")


def test_a_strangers_projector_in_its_own_layout_is_left_out_and_noted(coco: Path, tmp_path: Path, capsys) -> None:
    torch.save(made_checkpoints.moco(RESNET, "resnet"), tmp_path / "moco.pth")
    found = result(capsys, *of_file(tmp_path / "moco.pth", *command(str(coco), tmp_path / "store")))
    assert found["checkpoint"]["layout"] == "moco"
    assert found["checkpoint"]["left_out"]["encoder_q.fc.*"] == 4
    assert max(stage["max_abs"] for stage in found["parity"]) < 1e-4
