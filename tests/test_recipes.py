"""Every recipe says what it takes and what to expect, builds its model, and takes two steps on small images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from smog.config import CONF, compose, options
from smog.data.sampler import loader
from smog.data.sources import with_fingerprint
from smog.training import Run

RECIPES = options("recipe")
LARGE = [name for name in RECIPES if "_r" in name or "_swin" in name or "_deit" in name]
SMALL = ["data.train_images=16", "data.val_images=4", "optim.epochs=1", "runtime.workers=0", "runtime.threads=1",
         "optim.batch=8", "method.num_groups=4", "method.cache_size=16", "method.hidden=32",
         "method.regroup_interval=1", "views.size=64", "views.local_size=32"]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pictures in ImageFolder layout."""
    folder = tmp_path_factory.mktemp("images")
    chance = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(16):
            path = folder / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), chance.integers(0, 256, (80, 72, 3), dtype=np.uint8))
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_takes_two_steps(recipe: str, images: Path, tmp_path: Path) -> None:
    size = {"smoke": 16, "demo": 32, "cifar10_2core": 32, "cifar10_r18": 32}.get(recipe, 64)
    place = [f"data.root={images}", "data=imagefolder"] if recipe != "demo" else []
    overrides = [*place, *SMALL, f"views.size={size}", f"views.local_size={max(16, size // 2)}"]
    config = with_fingerprint(compose([f"recipe={recipe}", *overrides, f"runtime.store={tmp_path}"]))
    run = Run(config, tmp_path / "run")
    assert run.steps == 2
    before = [parameter.clone() for parameter in run.method.parameters() if parameter.requires_grad]
    for batch in loader(run.batches, 0, 2, workers=0):
        loss, _ = run._one_step(batch)
        run.step += 1
        assert torch.isfinite(loss)
    after = [parameter for parameter in run.method.parameters() if parameter.requires_grad]
    moved = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert sum(moved) > 0.5 * len(moved)  # LARS in its warm-up moves some norms by less than their last bit


@pytest.mark.parametrize("recipe", LARGE)
def test_a_recipe_says_its_command_what_to_expect_and_where_its_cost_stands(recipe: str) -> None:
    lines = (CONF / "recipe" / f"{recipe}.yaml").read_text().splitlines()
    for start in ("# Command: ", "# Expect: ", "# Cost: "):
        assert sum(line.startswith(start) for line in lines) == 1
    [command] = [line for line in lines if line.startswith("# Command: ")]
    assert f"recipe={recipe}" in command


@pytest.mark.parametrize("recipe", LARGE)
def test_every_value_of_optimiser_and_method_has_its_origin(recipe: str) -> None:
    header, *sections = (CONF / "recipe" / f"{recipe}.yaml").read_text().split("\n\n", 1)[1].split("\n" * 2)
    part, bare = "", []
    for line in "\n".join([header, *sections]).splitlines():
        part = line.split(":")[0] if line[0] != " " else part
        if line[0] == " " and part in ("optim", "method") and "#" not in line:
            bare.append(line.split(":")[0].strip())
    # what a header calls our choice throughout, and lengths that follow from the batch
    assert set(bare) <= {"batch", "warmup_epochs"}
