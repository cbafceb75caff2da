"""Speed as ratios against peers in the same run: ``make bench`` (or ``only=views,groups,step format=json``)."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from smog.__main__ import take, take_json
from smog.config import compose
from smog.data.sampler import loader
from smog.data.sources import with_fingerprint
from smog.data.views import normalize
from smog.environment import machine
from smog.errors import UsageError, exit_code, nearest

PAIRS = 15  # measurements of ours and the peer's in turn; the medians are compared


def paired(ours: Callable[[], Any], peer: Callable[[], Any], pairs: int = PAIRS) -> tuple[float, float, float]:
    """Return the median seconds of both and the median of the ratios pair by pair, after two calls to warm up."""
    times = [(_seconds(ours), _seconds(peer)) for _ in range(pairs + 2)][2:]
    ratio = statistics.median(one / other for one, other in times)
    return statistics.median(one for one, _ in times), statistics.median(other for _, other in times), ratio


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


RESNET18 = ["backbone=resnet18", "views.size=64", "data.size=64", "runtime.keep_images=2048"]
STEPS = {"step": [], "step_resnet18": RESNET18}


def bench_step() -> Iterator[dict[str, Any]]:
    """A whole training step, images to updated weights, against the passes of its networks alone: as the demo has it,
    and with ResNet-18 on 64 px, both at batch 128."""
    for name, more in STEPS.items():
        ours, peer, ratio = _step(["recipe=demo", *more, "optim.epochs=1000"])
        yield row(name, ours, peer, ratio, "its networks' forward and backward passes alone", "s")


def _step(overrides: list[str]) -> tuple[float, float, float]:
    from smog.training import Run

    with tempfile.TemporaryDirectory() as folder:
        config = with_fingerprint(compose([*overrides, f"runtime.store={folder}"]))
        run = Run(config, Path(folder) / "run")
        batches = loader(run.batches, 0, run.steps, workers=0)

        def step() -> None:
            run._one_step(next(batches))
            run.step += 1

        views = torch.stack([normalize(view, run.device) for view in run.batches[0].views[0]])
        return paired(step, lambda: passes(run, views))


def passes(run: Any, views: torch.Tensor) -> None:
    """Forward and backward of the online networks and forward of the momentum branch, on the same views."""
    method = run.method
    online, other = (views[crops].flatten(0, 1) for crops in method._roles(len(views), 0))
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        q = method.predictor(method.projector(method.backbone(online)))
        with torch.no_grad():
            method.momentum_branch(other)
    q.float().square().mean().backward()
    run.optimizer.zero_grad()


CELLS = 4  # runs of a pack, which differ in their temperature
TURN = 3  # steps that a run takes in a row when it is alone, so that its network is as warm in the caches as then


def bench_pack() -> Iterator[dict[str, Any]]:
    """A step of one of four runs of the demo on shared batches, against the same four one after the other: on its kept
    32 px images, and on 256 px JPEGs that are decoded at every look."""
    with tempfile.TemporaryDirectory() as folder:
        _jpegs(Path(folder))
        jpeg = ["data=imagefolder", f"data.root={folder}", "data.train_images=0", "data.val_images=0"]
        for name, more in (("pack", []), ("pack_jpeg", [*jpeg, "views.size=32", "runtime.keep_images=0"])):
            yield row(name, *_pack(["recipe=demo", "optim.epochs=1000", *more]), "the same one after the other", "s")


def _pack(overrides: list[str]) -> tuple[float, float, float]:
    from smog.training import Run

    with tempfile.TemporaryDirectory() as folder:
        cells = [f"method.temperature={0.1 * cell:.1f}" for cell in range(1, CELLS + 1)]
        configs = [with_fingerprint(compose([*overrides, cell, f"runtime.store={folder}"])) for cell in cells]
        runs = [Run(config, Path(folder) / "run") for config in configs]
        shared, *own = (loader(run.batches, 0, run.steps, workers=0) for run in (runs[0], *runs))

        def step(run: Any, batch: Any) -> None:
            run._one_step(batch)
            run.step += 1

        def together() -> None:
            for _ in range(TURN):
                batch = next(shared)
                for run in runs:
                    step(run, batch)

        def in_turn() -> None:
            for run, batches in zip(runs, own, strict=True):
                for _ in range(TURN):
                    step(run, next(batches))

        ours, peer, ratio = paired(together, in_turn)
    return ours / CELLS / TURN, peer / CELLS / TURN, ratio


def _jpegs(folder: Path) -> None:
    """Draw garments at 256 px into train/CLASS/ and val/CLASS/."""
    from smog.data import scenes

    for split, count in (("train", 512), ("val", 20)):
        for index in range(count):
            place = folder / split / scenes.CLASSES[scenes.label(index, split)]
            place.mkdir(parents=True, exist_ok=True)
            image = scenes.draw(0, index, 256, split)
            cv2.imwrite(str(place / f"{index}.jpg"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def bench_views() -> Iterator[dict[str, Any]]:
    """Two views of a cached image at the demo's size, against torchvision's transforms on PIL images."""
    from PIL import Image
    from torchvision.transforms import v2

    with tempfile.TemporaryDirectory() as folder:
        config = with_fingerprint(compose(["recipe=demo", f"runtime.store={folder}", "data.train_images=256"]))
        from smog.data.images import open_images
        from smog.data.sampler import Batches

        images = open_images(config, "train")
        batches = Batches(config, images)
        v = config.views
        transforms = [
            v2.Compose(
                [
                    v2.RandomResizedCrop(v.size, (view.scale_min, view.scale_max)),
                    v2.RandomHorizontalFlip(v.flip),
                    v2.RandomApply([v2.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue)], view.jitter),
                    v2.RandomGrayscale(view.gray),
                    v2.RandomApply([v2.GaussianBlur(3, (v.blur_sigma_min, v.blur_sigma_max))], view.blur),
                    v2.RandomSolarize(128, view.solarize),
                    v2.PILToTensor(),
                ]
            )
            for view in (v.first, v.second)
        ]
        pictures = [Image.fromarray(images[i]) for i in range(config.optim.batch)]
        ours, peer, ratio = paired(
            lambda: batches[0], lambda: [[t(picture) for t in transforms] for picture in pictures], pairs=7
        )
    count = 2 * config.optim.batch
    yield row("views", ours / count, peer / count, ratio, "torchvision v2 on PIL", "s a view")


def bench_groups() -> Iterator[dict[str, Any]]:
    """Both assignments, update, loss and backward at batch 1024, K 3000, d 128, on groups spread over the sphere:
    against lightly's modules, and against the five matrix products that this can't do without, of the same shapes."""
    from lightly.models.modules.heads import SMoGPrototypes

    from smog.grouping import GroupBank

    generator = torch.Generator().manual_seed(0)
    bank = GroupBank(3000, 128, 0.99, 3000)
    bank.groups.copy_(F.normalize(torch.randn(3000, 128, generator=generator), dim=1))
    peer_bank = SMoGPrototypes(bank.groups.clone(), 0.99)
    z, q, other = (F.normalize(torch.randn(1024, 128, generator=generator), dim=1).requires_grad_() for _ in range(3))

    def ours() -> None:
        target, own = bank.assign(other), bank.assign(z)
        bank.loss(q, bank.updated(z, own), target, 0.1).backward()

    def peer() -> None:
        target, updated = peer_bank.assign_groups(other), peer_bank.get_updated_group_features(z)
        F.cross_entropy(peer_bank(q, updated, 0.1), target).backward()

    features, groups = q.detach(), bank.groups
    logits, to_q, to_groups = torch.empty(1024, 3000), torch.empty(1024, 128), torch.empty(3000, 128)

    def products() -> None:
        for _ in ("target", "own", "logits"):
            torch.mm(features, groups.T, out=logits)
        torch.mm(logits, groups, out=to_q)
        torch.mm(logits.T, features, out=to_groups)

    yield row("groups", *paired(ours, peer), "lightly's SMoGPrototypes", "s")
    yield row("groups_matmul", *paired(ours, products), "its five matrix products alone", "s")


def bench_regroup() -> Iterator[dict[str, Any]]:
    """Spherical k-means of 100,000 x 128 in 5,000 blobs into 3,000, against one fit of scikit-learn's KMeans, which
    takes a minute or two, and what both leave of 1 - cosine."""
    from sklearn.cluster import KMeans

    from smog.kmeans import spherical_kmeans
    from smog.nearest import nearest as closest

    generator = torch.Generator().manual_seed(0)
    blobs = F.normalize(torch.randn(5000, 128, generator=generator), dim=1)
    blob = torch.randint(5000, (100_000,), generator=generator)
    features = F.normalize(blobs[blob] + torch.randn(100_000, 128, generator=generator) / 128**0.5, dim=1)
    fits: list[Any] = []
    peer = _seconds(lambda: fits.append(KMeans(3000, random_state=0).fit(features.numpy()).cluster_centers_))
    ours = []
    for seed in range(3):
        draws = torch.Generator().manual_seed(seed)
        ours.append(_seconds(lambda draws=draws: fits.append(spherical_kmeans(features, 3000, draws)[0])))
    left = [1 - float(closest(features, F.normalize(torch.as_tensor(fit), dim=1))[1].mean()) for fit in fits]
    median, found = statistics.median(ours), statistics.median(left[1:])
    yield row("regroup", median, peer, median / peer, "scikit-learn's KMeans", "s")
    yield row("regroup_objective", found, left[0], found / left[0], "scikit-learn's KMeans", "of 1 - cosine left")


def bench_evaluation() -> Iterator[dict[str, Any]]:
    """COCO's figures from detections in memory, against pycocotools, which takes most of a minute."""
    import detection

    yield row("evaluation", *detection.measure(), "pycocotools", "s")


def bench_detection_loader() -> Iterator[dict[str, Any]]:
    """An image with its masks read for training at a short side of 800 in one process, against the step that a
    ResNet-50 FPN detector makes of it with all threads."""
    import detection

    with tempfile.TemporaryDirectory() as folder:
        found = detection.loader_and_network(Path(folder))
    yield row("detection_loader", *found, "the network's training step alone", "s an image")


def bench_detection_start() -> Iterator[dict[str, Any]]:
    """From the command to the first step on a json of 5,000 images, against the import of torch and torchvision."""
    import detection

    with tempfile.TemporaryDirectory() as folder:
        found = detection.start(Path(folder))
    yield row("detection_start", *found, "importing torch and torchvision alone", "s")


def bench_segmentation_loader() -> Iterator[dict[str, Any]]:
    """An image with its labels read for training at crops of 512 in one process, against the step that a ResNet-50
    UPerNet makes of it with all threads."""
    import segmentation

    with tempfile.TemporaryDirectory() as folder:
        found = segmentation.loader_and_network(Path(folder))
    yield row("segmentation_loader", *found, "the network's training step alone", "s an image")


def bench_segmentation_start() -> Iterator[dict[str, Any]]:
    """From the command to the first step on made scenes, against the import of torch and mmsegmentation."""
    import segmentation

    with tempfile.TemporaryDirectory() as folder:
        found = segmentation.start(Path(folder))
    yield row("segmentation_start", *found, "importing torch and mmsegmentation alone", "s")


def bench_segmentation_step() -> Iterator[dict[str, Any]]:
    """A step of eight crops of 64, of each family of backbones, against the passes of the backbone alone."""
    import segmentation

    with tempfile.TemporaryDirectory() as folder:
        for model, found in segmentation.steps(Path(folder)):
            yield row(f"segmentation_step_{model}", *found, "the backbone's forward and backward passes alone", "s")


def bench_segmentation_check() -> Iterator[dict[str, Any]]:
    """The check of an image and its labels of 640 x 480, against OpenCV's decoding of the labels."""
    import segmentation

    with tempfile.TemporaryDirectory() as folder:
        found = segmentation.check(Path(folder))
    yield row("segmentation_check", *found, "OpenCV's decoding of the labels alone", "s an image")


def row(name: str, ours: float, peer: float, ratio: float, peer_name: str, unit: str) -> dict[str, Any]:
    """One line of the table, as interface.md has it."""
    what = machine()
    where = f"{what['processor']}, {what['cores']} cores, {torch.get_num_threads()} threads"
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ratio,
        "machine": where,
    }


BENCHES = {
    "step": bench_step,
    "pack": bench_pack,
    "views": bench_views,
    "groups": bench_groups,
    "regroup": bench_regroup,
    "evaluation": bench_evaluation,
    "detection_loader": bench_detection_loader,
    "detection_start": bench_detection_start,
    "segmentation_loader": bench_segmentation_loader,
    "segmentation_start": bench_segmentation_start,
    "segmentation_step": bench_segmentation_step,
    "segmentation_check": bench_segmentation_check,
}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that are asked for and print one table."""
    as_json, rest = take_json(list(arguments))
    only, rest = take(rest, "only", ",".join(BENCHES))
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}{nearest(rest[0], ('only', 'format'))}")
    names = only.strip("[]").split(",")
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise UsageError(f"no benchmark {unknown[0]!r}{nearest(unknown[0], BENCHES)}")
    rows = [line for name in names for line in BENCHES[name]()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    for line in rows:
        print(
            f"{line['name']:>8}  ours {line['ours']:.4g} {line['unit']}, {line['peer']:.4g} with {line['peer_name']}: "
            f"ratio {line['ratio']:.3f}"
        )
    print(f"on {rows[0]['machine']}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
