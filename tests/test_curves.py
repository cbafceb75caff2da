"""The curves: every loss above, the asked metrics below, each where it was written."""

import cv2
import matplotlib.figure
import pytest

from transfer.curves import write_curves

DETECTION = [
    *({"step": step, "loss": 1.0, "loss_mask": 0.5, "lr": 3.0} for step in (0, 10)),
    {"step": 10, "box_ap": 4.0, "box_ar10": 9.0},
    {"step": 20, "box_ap": 6.0, "box_ar10": 9.0},
]
SEGMENTATION = [
    *({"step": step, "loss": 1.4, "loss_decode": 1.0, "loss_aux": 0.4, "lr": 3.0} for step in (0, 10)),
    {"step": 20, "miou": 31.0, "macc": 40.0, "aacc": 62.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    original = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k))[1]
    )
    return figures


@pytest.mark.parametrize(
    ("rows", "names", "label", "losses", "figures"),
    [
        (
            DETECTION,
            ("box_ap", "mask_ap"),
            "AP (%)",
            ["loss", "loss mask"],
            {"box ap": [[10.0, 4.0], [20.0, 6.0]]},
        ),
        (
            SEGMENTATION,
            ("miou", "aacc"),
            "mIoU, aAcc (%)",
            ["loss", "loss aux", "loss decode"],
            {"miou": [[20.0, 31.0]], "aacc": [[20.0, 62.0]]},
        ),
    ],
)
def test_curves_hold_every_loss_and_the_asked_metrics(tmp_path, drawn, rows, names, label, losses, figures):
    write_curves(tmp_path / "curves.png", rows, names, label)
    above, below = drawn[0].axes
    assert [line.get_label() for line in above.lines] == losses
    assert {line.get_label(): line.get_xydata().tolist() for line in below.lines} == figures
    assert below.get_ylabel() == label
    assert cv2.imread(str(tmp_path / "curves.png")).shape == (720, 840, 3)


def test_a_training_without_a_line_yet_has_an_empty_figure(tmp_path):
    write_curves(tmp_path / "empty.svg", [], ("miou",), "%")
    assert (tmp_path / "empty.svg").read_text().startswith("<?xml")
