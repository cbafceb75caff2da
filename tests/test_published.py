"""Published rows stand beside a result of their own protocol, and of no other."""

import pytest

from smog.identity import as_dict
from smog.tasks import settings
from transfer.published import Published, as_text, protocol_name, published, rows_of


def result(*overrides: str, classes: int = 80, val: int = 5000, data: str = "coco") -> dict:
    """A result of the protocol under overrides, as if of that data."""
    chosen = as_dict(settings("coco", ["engine=torchvision", "data=made", *overrides]), science_only=True)
    return {
        "settings": {**chosen, "data": data},
        "inputs": {"classes": [f"class {n}" for n in range(classes)], "val": val, "train": 118287, "notes": []},
        "metrics": {"box_ap": 12.34, "box_ap50": 23.4, "mask_ap": 11.0},
        "checkpoint": {"kind": "run", "id": "0123456789ab"},
        "engine": {"name": "torchvision", "version": "0"},
        "parity": [{"max_abs": 0.0}],
        "per_class": {"person": {"box_ap": 50.0}},
    }


def test_the_protocols_have_the_names_that_papers_give_them() -> None:
    assert protocol_name(result("arch=r50_fpn", "schedule=1x")) == "Mask R-CNN R50-FPN 1x"
    assert protocol_name(result("arch=r50_c4", "schedule=2x")) == "Mask R-CNN R50-C4 2x"
    voc = result("arch=r50_c4", "schedule=voc_24k", "data=made", classes=20, val=4952, data="voc")
    assert protocol_name(voc) == "Faster R-CNN R50-C4 24k"


@pytest.mark.parametrize(
    "other",
    [
        result("arch=fpn", "schedule=1x"),
        result("arch=r50_fpn", "schedule=smoke"),
        result("arch=r50_fpn", "schedule=1x", "lr=0.03"),
        result("arch=r50_fpn", "schedule=1x", "fraction=0.1"),
        result("arch=r50_fpn", "schedule=1x", "batch=8"),
        result("arch=r50_fpn", "schedule=1x", classes=3, val=72),
        result("arch=r50_fpn", "schedule=1x", data="made"),
    ],
)
def test_anything_changed_is_another_protocol(other: dict) -> None:
    assert protocol_name(other) == ""
    assert "PixPro" not in as_text(other, "work")


def test_rows_carry_their_figures_and_their_source() -> None:
    rows = {method: (figures, source) for method, figures, source in published("Mask R-CNN R50-FPN 1x")}
    assert rows["Supervised"] == ({"box_ap": 39.7, "mask_ap": 35.9}, "PixPro README (reported)")
    text = as_text(result("arch=r50_fpn", "schedule=1x"), "work")
    assert "12.3" in text
    assert "39.7" in text
    assert "PixPro README (reported)" in text
    [voc] = [figures for method, figures, _ in published("Faster R-CNN R50-C4 24k") if method == "MoCo v2 800ep"]
    assert voc == {"box_ap50": 82.5, "box_ap": 57.4, "box_ap75": 64.0}


def test_the_rows_of_a_file_are_those_of_the_wanted_columns_in_its_order(tmp_path) -> None:
    header = "task,protocol,method,backbone,metric,value,source,kind"
    lines = [
        "t,P,A,X,m,1.5,here,reported",
        "t,P,B,Y,m,2,there,second-hand",
        "t,P,A,X,n,3,here,reported",
        "t,Q,A,X,m,4,,",
    ]
    (tmp_path / "rows.csv").write_text("\n".join([header, *lines, ""]))
    first = Published("A", {"m": 1.5, "n": 3.0}, "here (reported)")
    assert rows_of(tmp_path / "rows.csv", protocol="P") == [first, Published("B", {"m": 2.0}, "there (second-hand)")]
    assert rows_of(tmp_path / "rows.csv", protocol="P", backbone="X") == [first]
    assert rows_of(tmp_path / "rows.csv", protocol="") == []
