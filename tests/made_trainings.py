"""What tests of segmentation's training share: settings of seconds, and what a training leaves. mmsegmentation is
imported here, in silence: it warns of much that nobody here can mend."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from smog import checkpoint
from smog.pretrained import Pretrained
from smog.records import read_lines
from smog.tasks import settings

if importlib.util.find_spec("mmseg") is None:
    pytest.skip("mmsegmentation is not installed", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmengine.registry import init_default_scope

    import transfer.segmentation.parts  # noqa: F401 (mmsegmentation with all of its networks)
    from transfer.segmentation.protocol import Segmentation
    from transfer.segmentation.training import Training, fine_tune, opened

    init_default_scope("mmseg")

MMSEG = [  # marks of tests that use its networks
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:mmseg"),
    pytest.mark.filterwarnings("ignore::UserWarning:mmengine"),
]
SMALL = (
    "schedule=smoke", "made_train=8", "made_val=4", "made_size=32", "crop=[32,32]", "scale=[32,32]", "batch=4",
    "steps=6", "warmup=2", "channels=8", "precision=fp32", "device=cpu", "log_every=1",
)  # fmt: skip


def small(*more: str) -> Segmentation:
    """A fine-tuning of six steps on tiny scenes."""
    return settings("ade20k", [*SMALL, *more])


def training(source: Pretrained, chosen: Segmentation, work: Path) -> Training:
    """A training that has not begun."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Training(source, chosen, opened(chosen, "train"), opened(chosen, "val"), work)


def trained(source: Pretrained, chosen: Segmentation, work: Path) -> dict[str, torch.Tensor]:
    """The weights after a fine-tuning."""
    fine_tune(source, chosen, work)
    return checkpoint.latest(work)["model"]


def rows_of(work: Path) -> list[dict[str, Any]]:
    """The lines of the log without the time."""
    return [
        {name: value for name, value in row.items() if name != "time"} for row in read_lines(work / "metrics.jsonl")
    ]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Every weight and statistic is equal to the last bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
