"""A real Slurm for the tests that ask for it, where SMOG_TEST_SLURM=1 allows to start one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cluster


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of two nodes, which the commands of Slurm find; it ends with the tests."""
    if os.environ.get("SMOG_TEST_SLURM") != "1":
        pytest.skip("SMOG_TEST_SLURM=1 starts a private Slurm for these tests (root, Debian's slurm-wlm and munge)")
    if reason := cluster.install():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
            patch.delenv(name)  # never those of a real cluster
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        with cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """A function that waits until a condition holds, and fails after a while."""

    def wait(condition: Callable[[], object], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"after {seconds} s:\n" + _queue()
            time.sleep(0.2)

    return wait


def _queue() -> str:
    return subprocess.run(["squeue", "-r"], capture_output=True, text=True, check=False).stdout
