"""Our SMoG, lightly's published SMoG example and SimCLR on the same real images: k-NN top-1 and time, paired by seed.

    python tests/bench/rivals.py data.root=DIR [seeds=[0,1,2]] [only=ours,lightly,simclr] [recipe=cifar10_2core]
        [images=20000] [epochs=10] [jobs=2] [simclr_lr=1.0] [out=runs/rivals] [format=json] [key=value ...]

ours     smog.training.train on the recipe; further keys are those of smog/conf.
lightly  the loop of lightly's examples/pytorch/smog.py: its modules, transform, constants and order of steps, fp32. The
         backbone, images, batch and number of steps are ours, so that nothing but the method and its settings differs.
simclr   lightly's NTXentLoss and head, SimCLR's CIFAR views by our pipeline, our optimiser and precision, for as many
         seconds as our run of the same seed took; its cosine ends at that time. simclr_lr is the rate at 256 images
         (the recipe's if not given), scaled with the batch as ours.

A process has one thread; `jobs` of them train at once. Images are decoded beforehand and views made in the training
process, in all three. Wall seconds are those of the training loop, CPU seconds those of the process over the training.
Each arm and seed leaves one JSON in `out`; the same command makes only those that are missing, and a training that was
cut starts anew, so that its time is one piece.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reports.stats import summarise
from smog.__main__ import take, take_json
from smog.config import compose
from smog.data.images import Images, open_images
from smog.data.sampler import Batches, loader
from smog.data.sources import with_fingerprint
from smog.data.views import normalize, whole_view
from smog.environment import machine, now, provenance
from smog.errors import UsageError, exit_code, nearest
from smog.identity import as_dict, digest, run_id
from smog.models import build_backbone
from smog.optim import build_optimizer, peak
from smog.schema import Config
from smog.store import read_json, write_json
from smog.tasks import knn
from smog.tasks.protocols import Knn
from smog.tasks.result import BATCH, Features
from smog.training import DONE, precision, train

VERSION = 1  # raised when the same command would give other numbers: it is part of a result's name
KNN = Knn(k=20, temperature=0.07)
SPOKEN = 30.0  # seconds between two lines of progress
CPU = torch.device("cpu")


# ---- lightly's loop ----


class LightlySmog(nn.Module):
    """SMoG as lightly's example has it. z is not normalised before it meets the groups, and the first groups lie in the
    positive orthant with norms of about 6.5: both are the example's."""

    GROUPS, DIM, HIDDEN, MOMENTUM, REGROUP = 300, 128, 2048, 0.99, 300

    def __init__(self, backbone: nn.Module, batch: int) -> None:
        from lightly.models.modules.heads import SMoGPredictionHead, SMoGProjectionHead, SMoGPrototypes
        from lightly.models.modules.memory_bank import MemoryBankModule

        super().__init__()
        width: Any = backbone.num_features
        self.online = nn.Sequential(backbone, SMoGProjectionHead(width, self.HIDDEN, self.DIM))
        self.predictor = SMoGPredictionHead(self.DIM, self.HIDDEN, self.DIM)
        self.momentum = copy.deepcopy(self.online).requires_grad_(False)
        self.groups = SMoGPrototypes(torch.rand(self.GROUPS, self.DIM), beta=0.99)
        # the example's size, all features since the last regroup; lightly's benchmark script has 10,000 rows
        self.cache = MemoryBankModule(size=(self.REGROUP * batch, self.DIM))

    def forward(self, x: Tensor, other: Tensor, step: int) -> Tensor:
        """Return the loss of a step; the momentum branch and the groups move before it, as in the example."""
        from lightly.models.utils import update_momentum

        if step and step % self.REGROUP == 0:
            self.regroup()
        else:
            update_momentum(self.online, self.momentum, self.MOMENTUM)
        z = self.online(x)
        target = self.groups.assign_groups(self.momentum(other))
        moved = self.groups.get_updated_group_features(z)
        scores = self.groups(self.predictor(z), moved, temperature=0.1)
        self.groups.set_group_features(moved)
        self.cache(z, update=True)
        return F.cross_entropy(scores, target)

    def regroup(self) -> None:
        """Groups by scikit-learn's k-means over the cache, momentum weights from the online ones."""
        from sklearn.cluster import KMeans

        centres = KMeans(self.GROUPS).fit(self.cache.bank.numpy()).cluster_centers_
        self.groups.set_group_features(F.normalize(torch.from_numpy(centres).float(), dim=1))
        self.momentum = copy.deepcopy(self.online).requires_grad_(False)


class Pictures(Dataset):
    """Decoded images in memory as PIL has them, each with the views that lightly's transform makes of it."""

    def __init__(self, images: Images, size: int) -> None:
        from lightly.transforms.smog_transform import SMoGTransform
        from PIL import Image

        self.pictures = [Image.fromarray(images[index]) for index in range(len(images))]
        self.transform = SMoGTransform(
            crop_sizes=(size, size),
            crop_counts=(1, 1),
            gaussian_blur_probs=(0.0, 0.0),
            crop_min_scales=(0.2, 0.2),
            crop_max_scales=(1.0, 1.0),
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: Any = self.transform(self.pictures[index])
        return views


# ---- the three arms ----


@dataclass(frozen=True)
class Trained:
    """A trained backbone and what it took: optimiser steps and wall seconds of the loop."""

    backbone: nn.Module
    steps: int
    seconds: float


def train_ours(config: Config, images: Images, budget: float) -> Trained:
    """A run of the suite."""
    from smog.checkpoint import load_backbone

    # a run that was cut would go on, but the CPU seconds before the cut are lost
    shutil.rmtree(Path(config.runtime.store) / run_id(config), ignore_errors=True)
    folder = train(config)
    cost = read_json(folder / DONE)
    return Trained(load_backbone(folder), cost["steps"], cost["seconds"])


def train_lightly(config: Config, images: Images, budget: float) -> Trained:
    """lightly's example on our backbone, images and batch, for as many steps as ours."""
    np.random.seed(config.seed)  # lightly's transforms and scikit-learn draw from it
    batches = DataLoader(Pictures(images, config.views.size), config.optim.batch, shuffle=True, drop_last=True)
    model = LightlySmog(build_backbone(config.backbone, config.views.size), config.optim.batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-6)
    steps = round(config.optim.epochs * len(batches))
    watch = Watch(f"lightly seed {config.seed}")
    epochs = itertools.chain.from_iterable(itertools.repeat(batches))  # each pass shuffles anew
    for step, (x, other) in zip(range(steps), epochs, strict=False):
        swap = step % len(batches) % 2
        loss = model(*((other, x) if swap else (x, other)), step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.show((step + 1) / steps)
    return Trained(model.online[0], steps, watch.seconds)


def train_simclr(config: Config, images: Images, budget: float) -> Trained:
    """SimCLR for ``budget`` seconds, both views in one pass."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    backbone = build_backbone(config.backbone, config.views.size)
    width: Any = backbone.num_features
    network = nn.Sequential(backbone, SimCLRProjectionHead(width, width, 128)).to(memory_format=torch.channels_last)
    criterion, optimizer = NTXentLoss(temperature=0.5), build_optimizer(network, config.optim)
    half = precision(config, CPU) == "bf16"
    batches, steps = loader(Batches(config, images), 0, 10**9, workers=0), 0
    watch = Watch(f"simclr seed {config.seed}")
    while (share := watch.seconds / budget) < 1:
        set_rate(optimizer, share, config)
        views = normalize(next(batches).views[0].flatten(0, 1), CPU)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            z = network(views)
        loss = criterion(*z.float().chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        watch.show(share)
    return Trained(backbone, steps, watch.seconds)


def set_rate(optimizer: Optimizer, share: float, config: Config) -> None:
    """Linear warm-up over the recipe's share of the training, then a cosine to 0, both over time instead of steps."""
    warmup = min(1.0, config.optim.warmup_epochs / config.optim.epochs)
    part = share / warmup if share < warmup else 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = peak(config.optim) * part


ARMS: dict[str, Callable[[Config, Images, float], Trained]] = {
    "ours": train_ours,
    "lightly": train_lightly,
    "simclr": train_simclr,
}
# SimCLR, appendix B.9: two equal views, half the strength of ImageNet's jitter, no blur
_EITHER = {"scale_min": 0.2, "scale_max": 1.0, "jitter": 0.8, "gray": 0.2, "blur": 0.0, "solarize": 0.0}
_BOTH = {
    "global_crops": 2,
    "local_crops": 0,
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
}
SIMCLR_VIEWS = (
    *(f"views.{key}={value}" for key, value in _BOTH.items()),
    *(f"views.{side}.{key}={value}" for side in ("first", "second") for key, value in _EITHER.items()),
)


class Watch:
    """Seconds since it was made, and lines on standard error that say how much is done and what is left."""

    def __init__(self, name: str) -> None:
        self.name, self.began = name, time.monotonic()
        self.spoke = self.began

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def show(self, share: float) -> None:
        """Say where the training stands, where nothing was said for a while; ``share`` goes from 0 to 1."""
        if share and time.monotonic() - self.spoke > SPOKEN:
            self.spoke = time.monotonic()
            say(f"{self.name}: {100 * share:.0f} %, {self.seconds * (1 - share) / share:.0f} s left")


def say(line: str) -> None:
    """Print one line for the person at the terminal."""
    print(line, file=sys.stderr, flush=True)


# ---- one arm at one seed ----


@dataclass(frozen=True)
class Cell:
    """An arm at a seed: its configuration, and where its result lies."""

    arm: str
    seed: int
    config: Config
    path: Path


def make_cell(arm: str, seed: int, asked: Asked) -> Cell:
    """Resolve an arm at a seed. Its result is named by all that can change its number or its time."""
    ours = config = resolved(seed, asked)
    identity: list[Any] = [run_id(ours)]
    if arm == "simclr":
        config = resolved(seed, asked, *SIMCLR_VIEWS, *([f"optim.lr={asked.simclr_lr}"] if asked.simclr_lr else []))
        identity = [run_id(ours), run_id(config)]  # our time is its budget
    if arm == "lightly":  # other settings of our method change nothing here
        same = (as_dict(config.data, science_only=True), as_dict(config.backbone), config.views.size)
        identity = [*same, config.optim.batch, config.optim.epochs, seed]
    name = f"{arm}-seed{seed}-{digest([VERSION, arm, asked.jobs, *identity])}.json"
    return Cell(arm, seed, config, asked.out / name)


def resolved(seed: int, asked: Asked, *more: str) -> Config:
    """Return the configuration of an arm: on the CPU, one thread, in the store beside the results."""
    here = (f"runtime.store={asked.out / 'store'}", "runtime.device=cpu", "runtime.threads=1", "runtime.workers=0")
    config = with_fingerprint(compose([*asked.overrides, *more, f"seed={seed}", *here]))
    if not config.optim.epochs:
        raise UsageError("optim.epochs=0: nothing to compare before the first step")
    return config


def work(cell: Cell, budget: float, jobs: int) -> None:
    """Train and evaluate an arm at a seed and write its result. Runs in a process of its own."""
    origin, config = provenance(), cell.config  # the code as it was at the start
    torch.set_num_threads(1)
    torch.manual_seed(cell.seed)
    images = open_images(config, "train")
    cpu = time.process_time()
    trained = ARMS[cell.arm](config, images, budget)
    cpu = time.process_time() - cpu
    features = features_of(trained.backbone, images, config)
    result = {
        "arm": cell.arm,
        "seed": cell.seed,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "top1": knn.compute(features, KNN)["top1"],
        "knn": {"k": KNN.k, "temperature": KNN.temperature, "train": len(features.train), "val": len(features.val)},
        "jobs": jobs,
        "precision": "fp32" if cell.arm == "lightly" else precision(config, CPU),
        "config": as_dict(config, science_only=True),
        "machine": machine(),
        "lightly": importlib.metadata.version("lightly") if importlib.util.find_spec("lightly") else None,
        "provenance": origin,
        "created": now(),
    }
    write_json(cell.path, result)


@torch.inference_mode()
def features_of(backbone: nn.Module, images: Images, config: Config) -> Features:
    """Return the features of all images by the suite's protocol, in the precision that its tasks have here."""
    backbone.eval().to(memory_format=torch.channels_last)
    half = precision(config, CPU) == "bf16"

    def extracted(split: Images) -> Iterator[Tensor]:
        for start in range(0, len(split), BATCH):
            part = range(start, min(start + BATCH, len(split)))
            batch = torch.from_numpy(np.stack([whole_view(split[index], config.views.size) for index in part]))
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                yield backbone(normalize(batch, CPU)).float()

    val = open_images(config, "val")
    found = [torch.cat(list(extracted(split))) for split in (images, val)]
    labels = [torch.from_numpy(split.labels) for split in (images, val)]
    return Features(found[0], labels[0], found[1], labels[1], len(images.classes))


# ---- all of them ----


def carry_out(cells: Sequence[Cell], ours: dict[int, Path], jobs: int) -> None:
    """Make the results that are missing, ``jobs`` at once. SimCLR starts when our run of its seed has its time."""
    waiting = [cell for cell in cells if not cell.path.exists()]
    count, began = len(waiting), time.monotonic()
    running: dict[Future[None], Cell] = {}
    for split in ("train", "val") if waiting else ():
        open_images(waiting[0].config, split)  # decoded once, for all processes
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes: scikit-learn asks OpenMP and not torch
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), plain_stderr) as pool:
        try:
            while waiting or running:
                for cell in [c for c in waiting if c.arm != "simclr" or ours[c.seed].exists()]:
                    running[pool.submit(work, cell, budget_of(cell, ours), jobs)] = cell
                    waiting.remove(cell)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    report(running.pop(future), began, count - len(waiting) - len(running), count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def budget_of(cell: Cell, ours: dict[int, Path]) -> float:
    """Return the seconds that an arm may take: those of our run of the same seed for SimCLR, no limit for the rest."""
    return read_json(ours[cell.seed])["seconds"] if cell.arm == "simclr" else math.inf


def plain_stderr() -> None:
    """Let a process print lines, no bars: two bars on one terminal overwrite each other."""

    class Plain(io.TextIOWrapper):
        def isatty(self) -> bool:
            return False

    sys.stderr = Plain(sys.stderr.buffer, line_buffering=True)


def report(cell: Cell, began: float, done: int, count: int) -> None:
    """Say what was finished, and how long the rest will take if it takes as long as what is done."""
    result = read_json(cell.path)
    left = (time.monotonic() - began) / done * (count - done)
    say(
        f"{cell.arm} seed {cell.seed}: top-1 {result['top1']:.1f} % after {result['seconds']:.0f} s; "
        f"{done} of {count} done, about {left:.0f} s left"
    )


# ---- what comes out ----

TITLES = {
    "seconds": "wall s",
    "cpu_seconds": "CPU s",
    "top1": "k-NN top-1 (%)",
    "pair": "k-NN top-1, points",
    "low": "95 % from",
    "high": "to",
    "seconds_ratio": "wall, ratio",
    "cpu_seconds_ratio": "CPU, ratio",
}


def differences(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ours minus each rival in k-NN top-1, paired by seed, and the mean ratios of wall and CPU seconds."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    ours = by_arm.pop("ours", {})
    return [_pair(arm, ours, theirs) for arm, theirs in by_arm.items() if ours.keys() & theirs.keys()]


def _pair(arm: str, ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    seeds = sorted(ours.keys() & theirs.keys())
    points = summarise([ours[seed]["top1"] - theirs[seed]["top1"] for seed in seeds])
    ratios = {
        f"{kind}_ratio": fmean(ours[seed][kind] / theirs[seed][kind] for seed in seeds)
        for kind in ("seconds", "cpu_seconds")
    }
    return {"pair": f"ours - {arm}", **asdict(points), **ratios, "seeds": seeds}


def markdown(results: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> str:
    """Return both tables and a line on what they stand on."""
    runs = pd.DataFrame(results)[["arm", "seed", "steps", "seconds", "cpu_seconds", "top1"]]
    parts = [runs.rename(columns=TITLES).to_markdown(index=False, floatfmt=".1f")]
    if pairs:
        columns = ["pair", "n", "mean", "sd", "low", "high", "seconds_ratio", "cpu_seconds_ratio"]
        table = pd.DataFrame(pairs)[columns].rename(columns=TITLES)
        parts.append(table.to_markdown(index=False, floatfmt=".2f", missingval=""))
    return "\n\n".join([*parts, footing(results)])


def footing(results: Sequence[dict[str, Any]]) -> str:
    """Say which images, which network, which protocol and which machine the numbers stand on."""
    one = results[0]
    config, used = one["config"], one["knn"]
    origins = [result["provenance"] for result in results]
    commits = sorted({str(o["commit"])[:7] + (" with changes" if o["dirty"] else "") for o in origins})
    return (
        f"{used['train']} training and {used['val']} test images ({config['data']['name']}), backbone "
        f"{config['backbone']['name']}, batch {config['optim']['batch']}; k-NN k={used['k']}, temperature "
        f"{used['temperature']}; paired 95 % t intervals; lightly {one['lightly']}; {one['jobs']} processes of one "
        f"thread at once on {one['machine']['processor']}, {one['machine']['cores']} cores; "
        f"commit {', '.join(commits)}."
    )


# ---- what is asked for ----


@dataclass(frozen=True)
class Asked:
    """The arguments of a call."""

    arms: list[str]
    seeds: list[int]
    jobs: int
    out: Path
    simclr_lr: str  # empty for the recipe's
    overrides: list[str]  # of the configuration of all arms


def read(arguments: Sequence[str]) -> Asked:
    """Read the arguments; those that are not of this script go to the configuration, which knows its own keys."""
    given = {"only": ",".join(ARMS), "seeds": "[0,1,2]", "jobs": "2", "out": "runs/rivals", "simclr_lr": ""}
    rest = list(arguments)
    for name, default in given.items():
        given[name], rest = take(rest, name, default)
    recipe, rest = take(rest, "recipe", "cifar10_2core")
    for name, key in (("images", "data.train_images"), ("epochs", "optim.epochs")):
        value, rest = take(rest, name, "")
        rest += [f"{key}={value}"] if value else []
    if any(argument.startswith("seed=") for argument in rest):
        raise UsageError("seed= is set for every run; take seeds=[0,1,2]")
    seeds = numbers("seeds", given["seeds"], least=0)
    [jobs] = numbers("jobs", given["jobs"], least=1)[:1]
    return Asked(arms(given["only"]), seeds, jobs, Path(given["out"]), given["simclr_lr"], [f"recipe={recipe}", *rest])


def numbers(name: str, text: str, least: int) -> list[int]:
    """Read one whole number or several with commas between, in brackets or not."""
    words = text.strip("[]").split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words) or len(set(words)) < len(words):
        raise UsageError(f"{name}={text}: different whole numbers from {least} on")
    return [int(word) for word in words]


def arms(text: str) -> list[str]:
    """Read ``only``; the order is that of the table."""
    names = text.strip("[]").split(",")
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise UsageError(f"only={unknown[0]!r}: no such arm{nearest(unknown[0], ARMS)}")
    for module in ("lightly", "sklearn"):
        if names != ["ours"] and importlib.util.find_spec(module) is None:
            raise UsageError(f"{module} is not installed: pip install -e '.[dev]' brings it; only=ours does without")
    return [name for name in ARMS if name in names]


def plan(asked: Asked) -> tuple[list[Cell], dict[int, Path]]:
    """Return the cells, seed by seed, and where the results of our runs lie, of which SimCLR takes its time."""
    cells = [make_cell(arm, seed, asked) for seed in asked.seeds for arm in asked.arms]
    ours = {seed: make_cell("ours", seed, asked).path for seed in asked.seeds}
    lacking = [seed for seed in asked.seeds if not ours[seed].exists()]
    if "simclr" in asked.arms and "ours" not in asked.arms and lacking:
        raise UsageError(f"simclr takes its time from ours, which {asked.out} lacks at seed {lacking[0]}: add ours")
    return cells, ours


def main(arguments: Sequence[str]) -> int:
    """Make what is missing and print the tables."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    as_json, rest = take_json(list(arguments))
    asked = read(rest)
    cells, ours = plan(asked)
    carry_out(cells, ours, asked.jobs)
    results = [read_json(cell.path) for cell in sorted(cells, key=lambda cell: list(ARMS).index(cell.arm))]
    pairs = differences(results)
    print(json.dumps({"runs": results, "differences": pairs}, indent=1) if as_json else markdown(results, pairs))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
