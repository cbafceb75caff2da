import csv
from pathlib import Path

import pytest

from reports.published import gap_cell, rivals_of
from reports.reference import COLUMNS, FOLDER, KINDS, published
from reports.stats import summarise
from smog.errors import UsageError

GOOD = ["knn", "p", "M", "R", "1", "2", "2x32", "top1", "50.0", "a page", "reported", ""]


def write(folder, **changed):
    row = dict(zip(COLUMNS, GOOD, strict=True)) | changed
    with open(folder / "x.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


def test_every_row_has_its_source_and_kind():
    rows = published()
    assert len(rows) > 150
    assert {row.task for row in rows} == {"ade20k", "cityscapes", "coco", "knn", "linear", "semi", "voc"}
    assert all(row.source and row.kind in KINDS for row in rows)


def test_what_others_printed_of_smog_is_second_hand():
    kinds = {(row.task, row.kind) for row in published() if row.method == "SMoG"}
    assert {kind for task, kind in kinds if task != "knn"} == {"second-hand"}
    assert {kind for task, kind in kinds if task == "knn"} == {"reproduced"}  # by a library, with its own code


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": ""}, "lacks source: no number without its origin"),
        ({"kind": "reportd"}, "nearest: reported"),
        ({"value": "nan"}, "no finite number"),
        ({"value": "seventy"}, "no finite number"),
        ({"method": ""}, "lacks method"),
    ],
)
def test_a_row_that_lacks_what_it_needs_is_named(tmp_path, changed, words):
    write(tmp_path, **changed)
    with pytest.raises(UsageError, match=words) as found:
        published(tmp_path)
    assert "x.csv, line 2" in str(found.value)


def test_other_columns_are_refused(tmp_path):
    Path(tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="expected: task, protocol"):
        published(tmp_path)


def cifar(train=50_000, k=20):
    return {"inputs": {"train": train, "val": 10_000}, "settings": {"k": k, "temperature": 0.07}}


def test_only_the_whole_data_set_has_published_rows_beside_it():
    config = {"data.name": "cifar10"}
    assert rivals_of("knn", cifar(10_000), config) == []
    rivals = rivals_of("knn", cifar(), config)
    assert len(rivals) == 30
    assert not any(rival.exact for rival in rivals)  # theirs are the best epoch on the test images


def test_imagenet_k_nn_is_theirs_at_their_settings_alone():
    result = cifar() | {"inputs": {"train": 1_281_167, "val": 50_000}}
    [dino] = rivals_of("knn", result, {"data.name": "imagefolder"})
    assert (dino.values, dino.exact, dino.words[0]) == ({"top1": 67.5}, True, "DINO")
    result["settings"]["k"] = 10
    assert not rivals_of("knn", result, {"data.name": "imagefolder"})[0].exact


def test_our_backbones_are_known_by_the_names_in_papers():
    rivals = rivals_of("linear", {"inputs": {"train": 1_281_167, "val": 50_000}}, {"data.name": "imagefolder"})
    swav = next(rival for rival in rivals if rival.words[:5] == ("SwAV", "ResNet-50", "400", "4096", "2x224+6x96"))
    assert swav.of(("SwAV", "resnet50", "400", "4096", "2x224 + 6x96", "imagenet_r50"))
    assert not swav.of(("SwAV", "resnet50", "400", "256", "2x224 + 6x96"))  # of another batch, of other crops
    assert not swav.of(("SwAV", "resnet50", "400", "4096", "2x224"))
    assert not swav.of(("SwAV", "resnet18", "400"))
    assert not swav.of(("SMoG", "resnet50", "400"))


@pytest.mark.parametrize(
    ("values", "reported", "text", "marks"),
    [
        ([70.0, 70.2, 70.4], 70.5, "\u22120.3 (within 1.0)", ()),
        ([60.0, 60.2, 60.4], 70.5, "\u221210.3 (outside 1.0)", ("outside",)),
        ([70.0], 70.4, "\u22120.4 (within 0.5)", ()),
        ([70.0], 70.6, "\u22120.6 (outside 0.5)", ("outside",)),
    ],
)
def test_the_gap_says_whether_it_is_within_the_tolerance_and_our_interval(values, reported, text, marks):
    cell = gap_cell(summarise(values), reported)
    assert (cell.text, cell.marks) == (text, marks)


def test_the_folder_is_read_as_a_whole():
    lines = [len(path.read_text().splitlines()) - 1 for path in FOLDER.glob("*.csv")]
    assert sum(lines) == len(published())
