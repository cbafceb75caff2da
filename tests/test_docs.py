"""The commands that README.md and docs/ show are run, as they stand, at the size of the smoke recipe."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from made_detection import write_coco, write_voc
from made_segmentation import class_file, write_ade20k, write_cityscapes, write_voc12aug

from ablations.run import main as ablations
from reports.build import main as reports
from smog.__main__ import main as smog
from transfer.ade20k import main as ade20k
from transfer.coco import main as coco
from transfer.convert import main as convert

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^    ((?:smog|python (?:ablations|reports|transfer)/\w+\.py) [^#\n]*)", re.MULTILINE)
SMALL = ["recipe=smoke", "optim.epochs=1", "method.cache_size=1000"]
DETECTOR = [
    "images=2", "batch=1", "sizes=[64]", "largest=96", "test_size=64", "regions=8", "proposals=10", "channels=8",
    "anchor=8", "precise_bn=1", "precision=fp32", "made_train=8", "made_val=2",
]  # fmt: skip
SEGMENTOR = [
    "steps=2", "warmup=0", "batch=2", "crop=[32,32]", "scale=[48,32]", "channels=8", "precision=fp32", "made_train=8",
    "made_val=2", "made_size=32",
]  # fmt: skip
WEIGHTS = {
    "resnet50.pth": "resnet50",
    "swin_tiny.pth": "swin_tiny_patch4_window7_224",
    "deit_small.pth": "deit_small_patch16_224",
}
SETS = {
    "coco": write_coco, "voc": write_voc, "ade20k": write_ade20k, "cityscapes": write_cityscapes,
    "voc12aug": write_voc12aug,
}  # fmt: skip


def shown() -> list[str]:
    return [command.strip() for page in PAGES for command in COMMAND.findall(page.read_text())]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in ImageFolder layout, a store, and a finished run."""
    folder = tmp_path_factory.mktemp("place")
    for split in ("train", "test"):
        for number in range(300):
            path = folder / "images" / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((24, 24, 3), number % 256, np.uint8))
    assert ablations(["grid=num_groups", *SMALL, "seeds=[0,1]", f"store={folder / 'runs'}"]) == 0
    for name, write in SETS.items():
        write(folder / name)
    class_file(folder).rename(folder / "classes.txt")
    for file, model in WEIGHTS.items():
        torch.save(timm.create_model(model).state_dict(), folder / file)
    return folder


def small(words: list[str], place: Path) -> list[str]:
    """The same command on small data: its recipe, its folder and its store are ours."""
    run = next(path.name for path in (place / "runs").iterdir() if (path / "done").exists())
    words = [run if word == "RUN" else word.replace("=DIR", f"={place / 'images'}") for word in words]
    words = [re.sub(r"(\w+):DIR", rf"\1:{place}/\1", word) for word in words]
    words = [f"{place}/{word}" if word in (*WEIGHTS, "classes.txt") else word for word in words]
    if "grid=groups_and_momentum" in words:  # 31 runs of what other grids on these pages run as well
        words += ["action=plan"]
    if "grid=fidelity" in words:  # minutes even at this size; its cells run in the tests of the method
        words += ["action=plan", "method.num_groups=50", "recipe=smoke"]
        return [word for word in words if not word.startswith(("recipe=cifar", "store="))]
    return [word for word in words if not word.startswith(("recipe=", "store=", "out=", "seeds="))]


def test_there_are_commands_to_run() -> None:
    assert len(shown()) >= 6


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")  # of mmcv's imports, as the next
@pytest.mark.filterwarnings("ignore:``MultiScaleDeformableAttention`` has been moved:ImportWarning")
@pytest.mark.parametrize("command", shown())
def test_a_shown_command_runs(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    words = small(words, place)
    store = f"store={place / 'runs'}"
    if program == "smog":
        code = smog([*words, store, *(SMALL if words[0] == "train" else [])])
    elif words[0] == "ablations/run.py":
        more = [] if "recipe=smoke" in words else [*SMALL, "seeds=[0]"]
        if "grid=methods" in words:  # smoke has the predictor, and no balance, as one of its cells
            more += ["method.predictor=none"]
        if "grid=detection" in words:
            more += ["coco.engine=torchvision", *(f"coco.{override}" for override in DETECTOR)]
        if {"grid=segmentation", "tasks=[ade20k]"} & set(words):
            more += [f"ade20k.{override}" for override in SEGMENTOR]
        code = ablations([*words[1:], *more, store])
    elif words[0] == "transfer/coco.py":
        more = ["--store", str(place / "runs"), "--engine", "torchvision", "--set", *DETECTOR]
        code = coco([*words[1:], *more])
    elif words[0] == "transfer/ade20k.py":
        code = ade20k([*words[1:], "--store", str(place / "runs"), "--set", *SEGMENTOR])
    elif words[0] == "transfer/convert.py":
        code = convert([*words[1:], "--store", str(place / "runs")])
    else:
        out = f"out={place / 'output'}"
        if "check=true" in words:  # the store has grown since another page's build
            assert reports([store, out]) == 0
        code = reports([*words[1:], store, out])
    assert code == 0, capsys.readouterr().err


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(block.replace("recipe=demo", "recipe=smoke"), names)
    assert not names["backbone"].training


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
