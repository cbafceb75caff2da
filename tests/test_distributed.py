"""Two processes with half of a batch each are one process with all of it; one that is lost or asked to stop loses
nothing. All of it in real processes over gloo on the loopback."""

import copy
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from smog import checkpoint, compose, distributed, processes, train, training
from smog.batchnorm import GlobalBatchNorm, synchronize
from smog.data.sampler import Batches, check_processes
from smog.errors import RunError, UsageError
from smog.processes import Place, joined, place, speaks
from smog.records import read_lines

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["smog.training"])


@pytest.fixture(autouse=True, scope="module")
def loopback():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def one_rank(rank: int, world: int, port: int, answer: Path, work: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    try:
        result = work(*args)
    except (RunError, UsageError) as error:
        result = error
    answer.write_bytes(pickle.dumps(result))


def start(folder: Path, work: Callable[..., Any], *args: Any, world: int = 2):
    port = free_port()
    folder.mkdir(exist_ok=True)
    ranks = [
        SERVER.Process(target=one_rank, args=(rank, world, port, folder / f"{rank}", work, *args))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def in_ranks(folder: Path, work: Callable[..., Any], *args: Any, world: int = 2) -> list[Any]:
    """What ``work(*args)`` returns, or the error that it raises, in each of some processes."""
    for process in start(folder, work, *args, world=world):
        process.join()
        assert process.exitcode == 0
    return [pickle.loads((folder / f"{rank}").read_bytes()) for rank in range(world)]


# ---- the collectives ----


def collectives() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(2):  # joining again in the same process is another run
        with joined("cpu"):
            mine = distributed.rank()
            x = torch.tensor([[1.0, 2.0]]) + 10 * mine
            found["rows"] = distributed.rows_of_all_ranks(x)
            found["columns"] = distributed.rows_of_all_ranks(x, dim=1)
            found["transposed"] = distributed.rows_of_all_ranks(torch.stack([x[0], x[0] + 1]).T)
            found["sum"] = distributed.sum_over_ranks(x)
            found["broadcast"] = distributed.broadcast(x.clone())
            found["agreed"] = distributed.agreed(mine, 5 - mine)
            found["gathered"] = distributed.gathered({"rank": mine})
    return {**found, "alone": distributed.world_size()}


def test_collectives(tmp_path):
    first, second = in_ranks(tmp_path, collectives)
    expected = {
        "rows": torch.tensor([[1.0, 2.0], [11.0, 12.0]]),
        "columns": torch.tensor([[1.0, 2.0, 11.0, 12.0]]),
        "transposed": torch.tensor([[1.0, 2.0], [2.0, 3.0], [11.0, 12.0], [12.0, 13.0]]),
        "sum": torch.tensor([[12.0, 14.0]]),
        "broadcast": torch.tensor([[1.0, 2.0]]),
    }
    for found in (first, second):
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        assert found["agreed"] == [1, 5]
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["alone"] == 1


def test_one_process_needs_no_group():
    x = torch.randn(3, 2)
    assert all(f(x) is x for f in (distributed.rows_of_all_ranks, distributed.sum_over_ranks, distributed.broadcast))
    assert distributed.agreed(3, 1) == [3, 1]
    assert distributed.gathered("x") == ["x"]
    with joined("cpu"), distributed.rank_0_first():
        distributed.wait()
        assert not torch.distributed.is_initialized()


# ---- batch norm ----

NORMS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.BatchNorm1d(5),
    "no affine": lambda: nn.BatchNorm1d(5, affine=False),
    "2d": lambda: nn.BatchNorm2d(5, eps=1e-3, momentum=0.3),
    "3d": lambda: nn.BatchNorm3d(5),
    "average": lambda: nn.BatchNorm2d(5, momentum=None),
    "untracked": lambda: nn.BatchNorm2d(5, track_running_stats=False),
    "with activation": lambda: BatchNormAct2d(5, act_layer=nn.SiLU),
}
SHAPES = {"1d": (12, 5), "no affine": (12, 5), "3d": (12, 5, 2, 3, 2)}


def batch_of(name: str, step: int, dtype: torch.dtype) -> torch.Tensor:
    """A batch off zero, the halves unlike each other, in channels_last where there are images."""
    x = torch.randn(*SHAPES.get(name, (12, 5, 4, 3)), generator=torch.Generator().manual_seed(step), dtype=dtype)
    x = 3 * x + 7 + torch.arange(12, dtype=dtype).view(-1, *[1] * (x.dim() - 1)) / 3
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


def through_norm(name: str, dtype: torch.dtype, half: slice = slice(None)) -> dict[str, torch.Tensor]:
    """Three training steps of a norm on some rows of every batch, and an evaluation: all that may depend on them."""
    torch.manual_seed(0)
    norm, found = NORMS[name]().to(dtype), {}
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm = synchronize(norm)
    for step in range(3):
        x = batch_of(name, step, dtype)[half].requires_grad_()
        y = norm(x)
        (
            y * torch.linspace(-1, 2, 12, dtype=dtype).view(-1, *[1] * (y.dim() - 1))[half] * y.detach().cos()
        ).sum().backward()
        found |= {f"output {step}": y.detach(), f"gradient {step}": x.grad}
    found["evaluated"] = norm.eval()(batch_of(name, 9, dtype)[half]).detach()
    return {**found, **norm.state_dict(), **{f"gradient of {k}": p.grad for k, p in norm.named_parameters()}}


def halves(names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    with joined("cpu"):
        mine = (slice(5), slice(5, 12))[distributed.rank()]  # of different sizes, as a detector's are
        cases = {name: through_norm(name, torch.float64, mine) for name in names}
        cases["float32"] = through_norm("2d", torch.float32, mine)
        with torch.autocast("cpu", torch.bfloat16):
            x = batch_of("2d", 0, torch.bfloat16)[mine].requires_grad_()
            y = GlobalBatchNorm(nn.BatchNorm2d(5))(x)
            y.float().square().sum().backward()
        cases["bf16"] = {"output": y.detach(), "gradient": x.grad}
    return cases


@pytest.fixture(scope="module")
def by_halves(tmp_path_factory):
    return in_ranks(tmp_path_factory.mktemp("norms"), halves, list(NORMS))


def assert_halves_are(whole: dict[str, torch.Tensor], first, second, tolerance: float) -> None:
    assert whole.keys() == first.keys() == second.keys()
    for name, expected in whole.items():
        if name.startswith("gradient of"):  # what DDP would sum
            found = first[name] + second[name]
        elif expected.shape[:1] == (12,):
            found = torch.cat([first[name], second[name]])
        else:
            assert torch.equal(first[name], second[name]), name
            found = first[name]
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_over_two_ranks_is_torchs_over_the_whole_batch(by_halves, name):
    whole, first, second = through_norm(name, torch.float64), by_halves[0][name], by_halves[1][name]
    if name == "untracked":  # evaluation then takes the statistics of what is at hand, in torch's as well
        whole, first, second = ({k: v for k, v in case.items() if k != "evaluated"} for case in (whole, first, second))
    assert_halves_are(whole, first, second, tolerance=1e-11)


def test_batch_norm_in_single_and_half_precision(by_halves):
    first, second = by_halves
    assert_halves_are(through_norm("2d", torch.float32), first["float32"], second["float32"], tolerance=1e-5)
    x = batch_of("2d", 0, torch.bfloat16).requires_grad_()
    y = nn.BatchNorm2d(5)(x)
    y.float().square().sum().backward()
    assert first["bf16"]["output"].dtype == first["bf16"]["gradient"].dtype == torch.bfloat16
    assert_halves_are({"output": y.detach(), "gradient": x.grad}, first["bf16"], second["bf16"], tolerance=0.02)


def test_a_converted_network_keeps_its_names_and_parameters(monkeypatch):
    network = timm.create_model("resnet10t", num_classes=0)
    before, parameters = copy.deepcopy(network.state_dict()), list(network.parameters())
    assert synchronize(network) is network
    assert not any(isinstance(module, GlobalBatchNorm) for module in network.modules())
    monkeypatch.setattr("smog.batchnorm.world_size", lambda: 2)
    assert synchronize(network) is network
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_norm_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr("smog.batchnorm.world_size", lambda: 2)
    with pytest.raises(UsageError, match="SplitBatchNorm2d: no statistics over several processes"):
        synchronize(nn.Sequential(timm.layers.SplitBatchNorm2d(4)))


# ---- the place of a process ----

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "node[07-09]",
}  # fmt: skip


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[07-09]" ] && printf "node07\\nnode08\\nnode09\\n"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_torchruns_environment_is_a_place(monkeypatch):
    assert place(TORCHRUN) == Place(3, 4, 1, "node7", 1234)
    assert speaks()
    for rank, alone in (("0", True), ("3", False)):
        for name, value in {**TORCHRUN, "RANK": rank}.items():
            monkeypatch.setenv(name, value)
        assert speaks() is alone


@pytest.mark.usefixtures("scontrol")
def test_slurms_environment_is_a_place():
    assert place(SLURM) == Place(3, 4, 1, "node07", 20000 + (4711 * 16 + 2) % 12000)
    del (without := dict(SLURM))["SLURM_STEP_NUM_TASKS"]
    assert place(without).world == 8
    assert place({**SLURM, **TORCHRUN}).host == "node7", "torchrun under srun"
    assert place({**SLURM, "SLURM_JOB_ID": "4712"}).port != place(SLURM).port


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"},  # a batch script, not a step
        {**SLURM, "WORLD_SIZE": "1"},
    ],
)
def test_one_process_has_no_place(environment):
    assert place(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set: start them by torchrun or srun"),
        ({**TORCHRUN, "RANK": "two"}, "can't be read.*two"),
        (SLURM, "scontrol can't say which machines"),
    ],
)
def test_a_place_that_is_not_one_is_refused(environment, message, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=message):
        place(environment)


# ---- who is lost ----


def leaving(way: str, errors: Path) -> None:
    """Two processes meet, and one leaves: what the other says."""
    os.dup2(os.open(errors / f"{os.environ['RANK']}.err", os.O_CREAT | os.O_WRONLY), 2)
    processes.LOST = 3.0 if way == "freezes" else processes.LOST
    with joined("cpu"):
        distributed.wait()
        if distributed.rank() == 1:
            if way == "fails":
                raise UsageError("no such image")
            os.kill(os.getpid(), signal.SIGSTOP if way == "freezes" else signal.SIGKILL)
        while True:
            distributed.wait()


@pytest.mark.parametrize("way", ["fails", "dies"])
def test_the_others_stop_when_a_process(tmp_path, way):
    first, second = start(tmp_path, leaving, way, tmp_path)
    first.join(120)
    second.join(120)
    error = pickle.loads((tmp_path / "0").read_bytes())
    assert isinstance(error, RunError)
    lost = "rank 1 was lost; the same command goes on from the last checkpoint"
    assert str(error) == ("rank 1 failed (no such image)" if way == "fails" else lost)


def test_a_process_that_waits_for_a_frozen_one_ends_itself(tmp_path):
    """What no collective notices: there is no end to wait for."""
    first, second = start(tmp_path, leaving, "freezes", tmp_path)
    first.join(120)
    second.kill()
    second.join()
    assert first.exitcode == 1
    assert "failed: rank 1 was lost; the same command goes on" in (tmp_path / "0.err").read_text()


def alone_too_long() -> None:
    processes.MEETING = timedelta(seconds=2)
    with joined("cpu"):
        pytest.fail("met nobody")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_finds_no_other_gives_up(tmp_path, rank):
    process = SERVER.Process(target=one_rank, args=(rank, 2, free_port(), tmp_path / "said", alone_too_long))
    process.start()
    process.join(60)
    error = pickle.loads((tmp_path / "said").read_bytes())
    assert f"rank {rank} of 2 did not meet the others at 127.0.0.1:" in str(error)


# ---- shares of a batch ----


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        (["optim.batch=33"], 2, "optim.batch=33 can't be shared evenly by 2 processes: take a multiple of 2"),
        (
            ["optim.batch=12", "optim.accumulate=2"], 4,
            "optim.batch=12 in 2 micro-batches can't be shared evenly by 4 processes: take a multiple of 8",
        ),
        (["optim.batch=2"], 2, "optim.batch=2 over 2 processes leaves 1 image a process; BatchNorm needs 2"),
        (
            ["optim.batch=8", "optim.accumulate=2"], 4,
            "optim.batch=8 in 2 micro-batches over 4 processes leaves 1 image a process; BatchNorm needs 2",
        ),
    ],
)  # fmt: skip
def test_a_batch_that_can_not_be_shared_is_refused(overrides, processes, message):
    with pytest.raises(UsageError) as caught:
        check_processes(compose(["recipe=smoke", *overrides]), processes)
    assert str(caught.value) == message


def test_the_refusal_comes_before_anything_is_written(tmp_path):
    first, second = in_ranks(tmp_path / "ranks", trained, tmp_path / "store", "optim.batch=33")
    assert isinstance(first, UsageError)
    assert "can't be shared evenly" in str(first) + str(second)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_shares_of_the_processes_are_the_batch(parts, world, monkeypatch, tiny):
    config = tiny("optim.batch=16", f"optim.accumulate={parts}")
    whole = Batches(config, range(96)).indices(8)
    own = []
    monkeypatch.setattr("smog.data.sampler.world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr("smog.data.sampler.rank", lambda rank=rank: rank)
        own.append(Batches(config, range(96)).own(8).reshape(parts, -1))
    assert np.concatenate(own, axis=1).flatten().tolist() == whole.tolist()


# ---- training ----

COMMON = ["recipe=smoke", "optim.precision=fp32", "runtime.threads=1"]
CASES = {  # each part of the method that looks at more than one image, in two or three runs
    "plain": ["optim.epochs=2.5"],  # 20 steps, regrouped after each 5th
    "crops in micro-batches": [
        "optim.epochs=1", "optim.accumulate=2", "views.local_crops=2", "views.local_size=12", "optim.clip=1",
        "method.group_updates=per_view", "method.targets=after", "method.initial_groups=batch",
    ],
    "balanced after instances": [
        "optim.epochs=1", "method.balanced_targets=true", "method.instance_epochs=0.5", "method.direction=alternate",
        "method.start_groups=3", "method.growth_epochs=1", "optim.name=lars",
    ],
}  # fmt: skip


def trained(store: Path, *overrides: str) -> Path:
    return train(compose([*COMMON, f"runtime.store={store}", *overrides]))


def trained_in_double(store: Path, cases: dict[str, list[str]]) -> dict[str, Path]:
    """Runs in float64, in which rounding can't grow to where it would hide, or look like, a difference."""
    normalize = training.normalize
    torch.set_default_dtype(torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(training, "normalize", lambda crops, device: normalize(crops, device).double())
        return {name: trained(store, *overrides) for name, overrides in cases.items()}


@pytest.fixture(scope="module")
def by_one_and_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    [one] = in_ranks(folder / "alone", trained_in_double, folder / "one", CASES, world=1)
    two, other = in_ranks(folder / "together", trained_in_double, folder / "two", CASES)
    assert two == other
    return one, two


def state(folder: Path) -> dict[str, torch.Tensor]:
    content = checkpoint.read(folder / checkpoint.FILE)
    momenta = {f"optimizer.{k}": v["momentum_buffer"] for k, v in content["optimizer"]["state"].items()}
    return {**content["method"], **momenta}


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_lines(folder / "metrics.jsonl")]


def far(one: Path, other: Path) -> float:
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(by_one_and_two, name):
    one, two = (runs[name] for runs in by_one_and_two)
    assert one.name == two.name
    assert torch.equal(state(one)["bank.cached_own"], state(two)["bank.cached_own"])
    assert far(one, two) < 1e-9
    for ours, theirs in zip(lines(one), lines(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def trained_in_single(store: Path) -> Path:
    # at a rate so small that a unit of the last bit does not become another sign of a ReLU
    return trained(store, "optim.epochs=2.5", "optim.lr=0.0001", "seed=1")


def test_in_single_precision_as_well(tmp_path):
    [one] = in_ranks(tmp_path / "alone", trained_in_single, tmp_path / "one", world=1)
    two, _ = in_ranks(tmp_path / "together", trained_in_single, tmp_path / "two")
    ours, theirs = state(one), state(two)
    assert torch.equal(ours["bank.cached_own"], theirs["bank.cached_own"])
    for name in ours:
        if name.startswith(("backbone", "projector", "predictor", "bank.groups")) and "running" not in name:
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5, atol=1e-5)


def test_bad_images_are_counted_over_all_processes(tmp_path):
    for number in range(96):
        path = tmp_path / "images" / ("train", "val")[number // 48] / f"class{number % 2}" / f"{number % 48}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((20, 20, 3), number, np.uint8))
    for number in (7, 20, 33):
        (tmp_path / "images" / "train" / f"class{number % 2}" / f"{number}.png").write_bytes(b"no image")
    overrides = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "data.train_images=48", "data.val_images=8"]
    overrides += ["data.on_bad_image=replace", "runtime.keep_images=0", "optim.batch=12", "optim.epochs=1"]
    folder, _ = in_ranks(tmp_path / "ranks", trained, tmp_path / "runs", *overrides)
    assert lines(folder)[-1]["bad_images"] == 3


# ---- lost, stopped, resumed ----


def cut_in_double(store: Path, step: int, overrides: list[str]) -> None:
    original = training.Run._one_step

    def one_step(self, batch):
        if self.step == step:
            raise RunError("cut")
        return original(self, batch)

    training.Run._one_step = one_step
    trained_in_double(store, {"cut": [*overrides, "runtime.checkpoint_every=0.0001"]})


def test_a_run_goes_on_with_more_and_with_fewer_processes(by_one_and_two, tmp_path):
    name = "crops in micro-batches"
    for step, world in ((3, 2), (5, 1)):
        for error in in_ranks(tmp_path / f"{step}", cut_in_double, tmp_path / "runs", step, CASES[name], world=world):
            assert str(error) == "cut"
    found, _ = in_ranks(tmp_path / "end", trained_in_double, tmp_path / "runs", {name: CASES[name]})
    for whole in by_one_and_two:
        assert far(whole[name], found[name]) < 1e-9


LONG = ["optim.epochs=4", "runtime.checkpoint_every=0.3", "runtime.log_every=1"]  # 32 steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return in_ranks(folder / "ranks", trained, folder / "runs", *LONG)[0]


def torchrun(store: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "smog"]
    arguments = ["train", *COMMON, *LONG, f"store={store}", *overrides]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(log: Path, step: int, process: subprocess.Popen) -> None:
    while process.poll() is None and not any(line["step"] >= step for line in read_lines(log)):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def signal_rank(agent: subprocess.Popen, rank: int, number: int) -> None:
    [found] = [child for child in psutil.Process(agent.pid).children() if child.environ().get("RANK") == str(rank)]
    found.send_signal(number)


def bits_differ(one: Path, other: Path) -> list[str]:
    ours, theirs = (state(folder) | {"rng": checkpoint.read(folder / "last.pt")["rng"]} for folder in (one, other))
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_a_lost_and_a_stopped_run_go_on_to_the_same_bits(whole, tmp_path):
    folder = tmp_path / whole.name
    first = torchrun(tmp_path)
    wait_for_step(folder / "metrics.jsonl", 8, first)
    signal_rank(first, 1, signal.SIGKILL)
    killed = time.monotonic()
    _, errors = first.communicate(timeout=240)
    assert first.returncode == 1
    assert "failed: rank 1 was lost; the same command goes on from the last checkpoint" in errors
    print(f"the other process stopped after {time.monotonic() - killed:.1f} s")

    second = torchrun(tmp_path)
    wait_for_step(folder / "metrics.jsonl", checkpoint.read(folder / "last.pt")["step"] + 5, second)
    signal_rank(second, 1, signal.SIGTERM)
    out, errors = second.communicate(timeout=240)
    assert out == ""
    step = checkpoint.read(folder / "last.pt")["step"]
    line = f"run {whole.name}: stopped at step {step} of 32; the same command goes on from the last checkpoint"
    assert errors.splitlines().count(line) == 2  # one a process
    assert not (folder / "done").exists()

    in_ranks(tmp_path / "ranks", trained, tmp_path, *LONG)
    assert not bits_differ(whole, folder)
    assert lines(whole) == lines(folder)
    assert not (folder / "previous.pt").exists()
