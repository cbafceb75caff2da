"""mIoU, mAcc and aAcc are those of independent computations in float64, and of mmsegmentation's own metric."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_trainings import MMSEG
from mmengine.structures import PixelData
from mmseg.evaluation.metrics import IoUMetric
from mmseg.structures import SegDataSample
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from transfer.segmentation import metric
from transfer.segmentation.metric import Confusion, Scores, counts, scores

pytestmark = MMSEG

IGNORE, CLASSES = 255, 7
NAMES = [f"class {number}" for number in range(CLASSES)]


def drawn(seed: int, images: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Truths and predictions. Class 4 is nowhere, 5 is there and never predicted, 6 predicted and never there."""
    random = np.random.default_rng(seed)
    shapes = [(random.integers(3, 40), random.integers(3, 40)) for _ in range(images)]
    truths = [random.choice([0, 1, 2, 3, 5, IGNORE], shape, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]) for shape in shapes]
    predicted = [
        np.where(random.random(one.shape) < 0.6, np.minimum(one, 3), random.choice([0, 1, 2, 3, 6], one.shape))
        for one in truths
    ]
    return [torch.from_numpy(one) for one in truths], [torch.from_numpy(one) for one in predicted]


def sample(truth: torch.Tensor, predicted: torch.Tensor, number: int) -> dict:
    """One image as mmsegmentation hands it to its metrics."""
    found = SegDataSample(metainfo={"number": number})
    found.gt_sem_seg, found.pred_sem_seg = PixelData(data=truth[None]), PixelData(data=predicted[None])
    return found.to_dict()


def figures(truths: list[torch.Tensor], predicted: list[torch.Tensor]) -> tuple[Confusion, Scores]:
    """What the metric makes of images that come one by one."""
    found = Confusion(CLASSES, kept=[1])
    for number, pair in enumerate(zip(truths, predicted, strict=True)):
        found.process(None, [sample(*pair, number)])
    values = found.evaluate(len(truths))
    result = scores(found.matrix, NAMES)
    assert values == result.metrics
    return found, result


def flat(truths: list[torch.Tensor], predicted: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    truth, other = (torch.cat([one.flatten() for one in many]).numpy() for many in (truths, predicted))
    return truth[truth != IGNORE], other[truth != IGNORE]


@pytest.mark.parametrize("seed", range(5))
def test_the_figures_are_those_of_scikit_learn(seed: int) -> None:
    """In float64, over the classes that are there or predicted, or for accuracies those that are there."""
    images = drawn(seed)
    _, found = figures(*images)
    truth, predicted = flat(*images)
    seen, there = np.union1d(truth, predicted).tolist(), np.unique(truth).tolist()
    assert (4 not in seen, 6 in seen, 6 in there) == (True, True, False)
    close = {"rel": 0, "abs": 1e-6}
    iou = 100 * jaccard_score(truth, predicted, labels=seen, average=None)
    accuracy = 100 * recall_score(truth, predicted, labels=there, average=None)
    assert found.metrics["miou"] == pytest.approx(iou.mean(), **close)
    assert found.metrics["macc"] == pytest.approx(accuracy.mean(), **close)
    assert found.metrics["aacc"] == pytest.approx(100 * accuracy_score(truth, predicted), **close)
    for number, name in enumerate(NAMES):
        expected = iou[seen.index(number)] if number in seen else None
        assert found.per_class[name]["iou"] == (None if expected is None else pytest.approx(expected, **close))
        expected = accuracy[there.index(number)] if number in there else None
        assert found.per_class[name]["acc"] == (None if expected is None else pytest.approx(expected, **close))


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_are_those_of_torchmetrics(seed: int) -> None:
    """Its index is in float32; it leaves out of the mean what is neither there nor predicted, as we do."""
    images = drawn(seed)
    found, result = figures(*images)
    truth, predicted = (torch.cat([one.flatten() for one in many]) for many in images)
    expected = multiclass_confusion_matrix(predicted, truth, CLASSES, ignore_index=IGNORE)
    assert np.array_equal(found.matrix, expected.numpy())
    jaccard = multiclass_jaccard_index(predicted, truth, CLASSES, ignore_index=IGNORE)
    assert result.metrics["miou"] == pytest.approx(100 * float(jaccard), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_mmsegmentation(seed: int) -> None:
    """Its own metric rounds to two decimals."""
    truths, predicted = drawn(seed)
    theirs = IoUMetric(ignore_index=IGNORE, iou_metrics=["mIoU"])
    theirs.dataset_meta = {"classes": NAMES}
    theirs.process({}, [sample(*pair, 0) for pair in zip(truths, predicted, strict=True)])
    expected = theirs.evaluate(len(truths))
    _, found = figures(truths, predicted)
    for name, own in (("mIoU", "miou"), ("mAcc", "macc"), ("aAcc", "aacc")):
        assert found.metrics[own] == pytest.approx(float(expected[name]), abs=0.00501)


labels = arrays(np.int64, (4, 5), elements=st.sampled_from([0, 1, 2, IGNORE]))


@given(labels, arrays(np.int64, (4, 5), elements=st.integers(0, 2)))
def test_every_pixel_is_counted_where_it_belongs(truth: np.ndarray, predicted: np.ndarray) -> None:
    expected = np.zeros((3, 3), np.int64)
    for one, other in zip(truth.flat, predicted.flat, strict=True):
        if one != IGNORE:
            expected[one, other] += 1
    found = counts(torch.from_numpy(truth), torch.from_numpy(predicted), 3)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()


@given(st.integers(2**24, 2**44), st.integers(1, 1000), st.integers(1, 1000))
def test_large_counts_are_exact(many: int, wrong: int, more: int) -> None:
    """A single pixel of many billions is seen; in float32 it would be lost above 2**24."""
    one, other = Confusion(2), Confusion(2)
    for found, last in ((one, wrong), (other, wrong + more)):
        found.results = [np.array([[many, 0], [0, 0]]), np.array([[1, last], [0, many]])]
        found.evaluate(2)
        assert found.matrix.tolist() == [[many + 1, last], [0, many]]
        figures = scores(found.matrix, "ab")
        assert figures.per_class["a"]["iou"] == 100 * (many + 1) / (many + 1 + last)
        assert figures.metrics["aacc"] == 100 * (2 * many + 1) / (2 * many + 1 + last)
    assert one.matrix[0, 1] != other.matrix[0, 1]


def test_labels_of_one_byte_do_not_run_over() -> None:
    truth, predicted = torch.full((2, 2), 200, dtype=torch.uint8), torch.full((2, 2), 199)
    found = counts(truth, predicted, 201)
    assert (int(found[200, 199]), int(found.sum())) == (4, 4)


def test_the_matrix_is_the_sum_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which one may have no image at all; every one gets the same figures."""
    truths, predicted = drawn(0, images=4)
    whole, _ = figures(truths, predicted)
    parts = [sum(counts(*pair, CLASSES).numpy() for pair in zip(truths[a:b], predicted[a:b], strict=True))
             for a, b in ((0, 3), (3, 4))]  # fmt: skip
    rest = [*parts[1:], np.zeros_like(whole.matrix)]
    monkeypatch.setattr(metric, "gathered", lambda own: [own, *rest])
    found, _ = figures(truths[:3], predicted[:3])
    assert np.array_equal(found.matrix, whole.matrix)
    monkeypatch.setattr(metric, "gathered", lambda own: [*parts, own])
    idle = Confusion(CLASSES)
    assert idle.evaluate(4) == scores(whole.matrix, NAMES).metrics


def test_it_keeps_the_predictions_that_are_asked_for_and_starts_anew() -> None:
    truths, predicted = drawn(1)
    found, _ = figures(truths, predicted)
    assert {number: one.tolist() for number, one in found.shown.items()} == {1: predicted[1].tolist()}
    assert found.shown[1].dtype == np.uint8
    found.process(None, [sample(truths[0], predicted[0], 0)])
    found.evaluate(1)
    assert found.matrix.sum() == (truths[0] != IGNORE).sum()
