import functools
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the processes that tests start inherit it

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SMOG_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
SMALL = ("recipe=smoke", "data.train_images=96", "data.val_images=40", "optim.batch=16", "runtime.threads=1")


@functools.cache
def composed(*overrides):
    from smog.config import compose

    return compose([*SMALL, *overrides])


@pytest.fixture(scope="session")
def repository():
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny():
    """A function from overrides to a configuration of seconds; equal overrides are composed once."""
    return composed


@pytest.fixture
def in_store(tmp_path):
    """A function that gives a configuration a store of its own."""
    from smog.config import with_runtime

    return lambda config, **more: with_runtime(config, store=str(tmp_path / "store"), **more)


@pytest.fixture(scope="session")
def cifar_zip():
    """Real CIFAR-10 images as JPEG, beside the repository."""
    return beside("cifar10_jpeg.zip")


@pytest.fixture(scope="session")
def bccd_zip():
    """Real photographs in COCO's layout, beside the repository."""
    return beside("bccd_coco.zip")


@pytest.fixture(scope="session")
def camvid_zip():
    """Real street photographs with labels in ADE20K's layout, beside the repository."""
    return beside("camvid_ade.zip")


def beside(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; SMOG_SHARED_DATA=DIR names the folder that holds it")
    return path
