"""A golden result a stage: results that change while the version of their code does not would mix with older ones.

``python tests/test_golden.py`` records golden.json again; with names behind it, such as ``knn linear``, these alone."""

import json
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smog import checkpoint, compose, optim, train
from smog.grouping import GroupBank
from smog.methods import VERSIONS
from smog.pretrained import open_pretrained
from smog.records import read_lines
from smog.tasks import diagnostics, knn, linear, settings
from smog.tasks.protocols import Diagnostics, Knn, Linear
from smog.tasks.result import Features
from transfer.data import open_data
from transfer.detection import Training
from transfer.detector import Detector
from transfer.evaluation import coco_ap
from transfer.inference import Images
from transfer.protocols import Detection
from transfer.segmentation.protocol import Segmentation
from transfer.voc import voc_ap

FILE = Path(__file__).with_name("golden.json")
AGAIN = "record again: python tests/test_golden.py"
WHERE = {
    "train/smog": "VERSIONS['smog'] in smog/methods/__init__.py",
    "knn": "Knn.VERSION in smog/tasks/protocols.py",
    "linear": "Linear.VERSION in smog/tasks/protocols.py",
    "diagnostics": "Diagnostics.VERSION in smog/tasks/protocols.py",
    "coco": "Detection.VERSION in transfer/protocols.py",
    "ade20k": "Segmentation.VERSION in transfer/segmentation/protocol.py",
}
RELATIVE = {
    "train/smog": 2e-3,
    "knn": 1e-4,
    "linear": 1e-4,
    "diagnostics": 1e-4,
    "coco": 2e-3,
    "ade20k": 2e-3,
}  # other CPUs round differently
IMAGES = {"top1": 0.6, "top5": 0.6, "minival_top1": 1.7}  # percent: one image may fall on the other side
RUN = (
    "recipe=smoke", "data=garments", "data.size=20", "views.size=16", "data.train_images=96", "data.val_images=40",
    "seed=0", "optim.batch=16", "optim.epochs=1.5", "optim.lr=0.02", "optim.warmup_epochs=0", "optim.precision=fp32",
    "method.regroup_interval=5", "method.group_momentum=0.9", "method.encoder_momentum=0.9",
    "runtime.threads=1", "runtime.device=cpu", "runtime.log_every=1",
)  # fmt: skip

DETECTION = (
    "engine=torchvision", "made_train=8", "made_val=4", "made_size=48", "sizes=[56]", "test_size=56", "anchor=8",
    "channels=8", "batch=4", "images=8", "warmup=0", "precise_bn=4", "precision=fp32", "device=cpu",
    "regions=4096", "proposals=4096",  # all of them: a draw among regions would turn rounding into other regions
)  # fmt: skip
SEGMENTATION = (
    "made_train=8", "made_val=4", "made_size=48", "crop=[48,48]", "scale=[56,56]", "distort=true", "channels=8",
    "batch=4", "steps=4", "warmup=1", "precision=fp32", "device=cpu", "log_every=1",
)  # fmt: skip
SEGMENTORS = {"resnet10_tiny": (), "vit_tiny_patch16_224": ("recipe=vit", "steps=3", "batch=2", "sliding=true")}
LOSSES = ("loss", "loss_decode", "loss_aux")


def versions():
    own = {"train/smog": VERSIONS["smog"], "knn": Knn.VERSION, "linear": Linear.VERSION}
    own["diagnostics"] = Diagnostics.VERSION
    return {**own, "coco": Detection.VERSION, "ade20k": Segmentation.VERSION}


def found_train():
    with tempfile.TemporaryDirectory() as store:
        folder = train(compose([*RUN, f"runtime.store={store}"]))
        rows, state = list(read_lines(folder / "metrics.jsonl")), checkpoint.read(folder / checkpoint.FILE)
        values = {f"{name}.{row['step']}": row[name] for name in ("loss", "group_movement") for row in rows}
        for part in ("backbone", "projector", "predictor", "momentum_branch", "bank.groups"):
            tensors = [x for name, x in state["method"].items() if name.startswith(part) and x.is_floating_point()]
            values[f"norm.{part}"] = norm(tensors)
        values["norm.speed"] = norm([x["momentum_buffer"] for x in state["optimizer"]["state"].values()])
    return values


def norm(tensors):
    return float(torch.cat([x.double().flatten() for x in tensors]).norm())


def features():
    """Clouds that overlap, one a class."""
    generator = np.random.default_rng(0)
    centres, y = generator.normal(size=(8, 12)), generator.integers(0, 8, 500)
    x = torch.from_numpy(centres[y] + 1.5 * generator.normal(size=(500, 12))).float()
    y = torch.from_numpy(y)
    return Features(x[:300], y[:300], x[300:], y[300:], 8)


def found_knn():
    given, chosen = features(), Knn(k=20, temperature=0.07)
    scores = knn.knn_scores(given, chosen)
    own = scores.gather(1, given.val_labels[:, None])[:, 0] / scores.sum(dim=1)
    return {**knn.compute(given, chosen), "share_of_own": float(own.mean()), "norm.scores": norm([scores])}


def found_linear():
    given = features()
    chosen = Linear([0.1, 1.0], [1e-3], epochs=5, batch=64, momentum=0.9, minival=0.2, seed=0)
    weight, bias = linear.fit(given.train, given.train_labels, [(0.1, 1e-3)], 8, chosen)
    return {**linear.compute(given, chosen), "norm.weight": norm([weight]), "norm.bias": norm([bias])}


def found_diagnostics():
    """Of a run's features, and of groups that are its first features."""
    given, chosen, bank = features(), Diagnostics(8, 8, 8), GroupBank(20, 12)
    bank.groups.copy_(given.val[:20])
    own = bank.assign(given.val)
    values = {"rankme": diagnostics.rankme(given.val), "feature_std": diagnostics.feature_std(given.val)}
    values |= diagnostics.spread(bank, given.val, own) | {"nmi": diagnostics.nmi(own, given.val_labels)}
    pictures = [*diagnostics.neighbours(given.val, chosen), *diagnostics.sheets(bank, given.val, own, chosen)]
    return values | {f"place.{place}": sum(one["nearest"]) for place, one in enumerate(pictures)}


def found_coco():
    chosen = settings("coco", DETECTION)
    source = open_pretrained("random", model="resnet10_tiny")
    val = open_data(chosen, "val")
    training, values = Training(source, chosen, open_data(chosen, "train"), val, Path("work")), {}
    for step in range(chosen.steps):
        losses = training._one_step(training.batches[step])
        training.step += 1
        values |= {f"{name}.{step + 1}": float(loss) for name, loss in losses.items()}
    detector, found = training.detector, shifted(val)
    values["norm.speed"] = norm([x["momentum_buffer"] for x in training.optimizer.state_dict()["state"].values()])
    with detector.precise_statistics(training._precise_batches()), torch.no_grad():
        detector.eval()
        values["norm.maps"] = norm(detector.stages(detector.prepare(Images(val, chosen)[0][None].float())))
    for kind, scores in (("coco", coco_ap(val, found, masks=True)), ("voc", voc_ap(val, found))):
        values |= {f"{kind}.{name}": value for name, value in scores.metrics.items() if "_ar" not in name}
    return values


def shifted(dataset):
    """Truths as detections, each a little further to the right than the one before."""
    found = []
    for image in dataset.images:
        for box, label, segment in zip(image.boxes.tolist(), image.labels, image.segments, strict=True):
            x, y, right, low = box
            mask = np.roll(rle.decode(segment), len(found) // 4, axis=1)
            found.append({
                "image_id": image.id, "category_id": dataset.category_ids[label], "score": 1 / (len(found) + 1),
                "bbox": [x + 0.5 * len(found), y, right - x, low - y],
                "segmentation": rle.encode(np.asfortranarray(mask)),
            })  # fmt: skip
    return found


def found_ade20k():
    values = {}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as place:
        warnings.simplefilter("ignore")  # of mmsegmentation's imports
        from transfer.segmentation.training import Training, opened

        for model, more in SEGMENTORS.items():
            chosen, work = settings("ade20k", [*SEGMENTATION, *more]), Path(place) / model
            data = [opened(chosen, split) for split in ("train", "val")]
            training = Training(open_pretrained("random", model=model), chosen, *data, work)
            before = [one.detach().clone() for one in training.model.backbone.parameters()]
            training.run()
            rows = [row for row in read_lines(work / "metrics.jsonl") if "loss" in row]
            values |= {f"{model}.{name}.{row['step']}": row[name] for row in rows for name in LOSSES}
            moved = [one.detach() - own for one, own in zip(training.model.backbone.parameters(), before, strict=True)]
            values[f"{model}.moved.backbone"] = norm(moved)
            for part in ("decode_head", "auxiliary_head"):
                values[f"{model}.norm.{part}"] = norm(list(getattr(training.model, part).parameters()))
        return values | figures_of_labels()


def figures_of_labels():
    """Those of truths as predictions, each moved further to the right than the one before."""
    from transfer.segmentation.made import open_made
    from transfer.segmentation.metric import counts, scores

    val, matrix = open_made("val", 4, 48), 0
    for index in range(len(val.images)):
        labels = torch.from_numpy(val.read(index)[1])
        matrix = matrix + counts(labels, labels.roll(index, dims=1), len(val.classes)).numpy()
    return scores(matrix, val.classes).metrics


FOUND = {
    "train/smog": found_train, "knn": found_knn, "linear": found_linear, "diagnostics": found_diagnostics,
    "coco": found_coco, "ade20k": found_ade20k,
}  # fmt: skip


def differences(stage, values):
    """Name what is not as golden.json has it."""
    golden = json.loads(FILE.read_text())[stage]["values"]
    assert values.keys() == golden.keys(), f"{stage}: golden.json holds other values; {AGAIN}"
    apart = []
    for name, value in values.items():
        within = {"abs": IMAGES[name]} if name in IMAGES else {"rel": RELATIVE[stage]}
        if value != pytest.approx(golden[name], **within):
            apart.append(f"{name}: {golden[name]:.6g} -> {value:.6g}")
    return apart


@pytest.mark.parametrize("stage", FOUND)
def test_results_change_only_with_their_version(stage):
    ours, golden = versions()[stage], json.loads(FILE.read_text())[stage]["version"]
    assert ours == golden, f"{stage} is at version {ours}, golden.json at {golden}; {AGAIN}"
    apart = differences(stage, FOUND[stage]())
    assert not apart, f"{stage}: results changed: raise {WHERE[stage]} and {AGAIN}\n" + "\n".join(apart)


def changed_temperature(patch):
    loss = GroupBank.loss
    patch.setattr(GroupBank, "loss", lambda self, q, groups, own, t: loss(self, q, groups, own, 1.05 * t))


def changed_group_momentum(patch):
    updated = GroupBank.updated

    def other(self, z, own=None):
        self.momentum = 0.91
        return updated(self, z, own)

    patch.setattr(GroupBank, "updated", other)


def changed_rate(patch):
    peak = optim.peak
    patch.setattr(optim, "peak", lambda config: 1.05 * peak(config))


def changed_regroup(patch):
    patch.setattr(GroupBank, "regroup", lambda self, generator: None)


def changed_weights_of_neighbours(patch):
    scores = knn.knn_scores
    patch.setattr(knn, "knn_scores", lambda x, chosen: scores(x, replace(chosen, temperature=0.071)))


def changed_rate_of_heads(patch):
    error = linear._error
    patch.setattr(linear, "_error", lambda logits, y, classes: 1.01 * error(logits, y, classes))


def changed_epsilon(patch):
    patch.setattr(diagnostics, "EPSILON", 1e-5)


def changed_order_of_neighbours(patch):
    normalize = torch.nn.functional.normalize
    patch.setattr(diagnostics.F, "normalize", lambda x, dim: normalize(x, p=1.0, dim=dim))


def changed_rate_of_detectors(patch):
    rate = Detection.rate
    patch.setattr(Detection, "rate", lambda self, step: 1.05 * rate(self, step))


def changed_statistics(patch):
    patch.setattr(Detector, "_average", lambda self, norms, batches: None)


def changed_rate_of_segmentors(patch):
    rate = Segmentation.rate.fget
    patch.setattr(Segmentation, "rate", property(lambda self: 1.05 * rate(self)))


def changed_decay_by_depth(patch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transfer.segmentation import optim as own

    groups = own.param_groups_layer_decay
    patch.setattr(
        own, "param_groups_layer_decay", lambda *given, layer_decay: groups(*given, layer_decay=0.95 * layer_decay)
    )


def changed_distortion(patch):
    patch.setattr(Segmentation, "validate", lambda self: object.__setattr__(self, "distort", False))


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("train/smog", changed_temperature),
        ("train/smog", changed_group_momentum),
        ("train/smog", changed_rate),
        ("train/smog", changed_regroup),
        ("knn", changed_weights_of_neighbours),
        ("linear", changed_rate_of_heads),
        ("diagnostics", changed_epsilon),
        ("diagnostics", changed_order_of_neighbours),
        ("coco", changed_rate_of_detectors),
        ("coco", changed_statistics),
        ("ade20k", changed_rate_of_segmentors),
        ("ade20k", changed_decay_by_depth),
        ("ade20k", changed_distortion),
    ],
)
def test_a_small_change_of_the_code_is_found(stage, change, monkeypatch):
    change(monkeypatch)
    assert differences(stage, FOUND[stage]())


def test_another_version_asks_to_record_again(monkeypatch):
    monkeypatch.setattr(Knn, "VERSION", Knn.VERSION + 1)
    with pytest.raises(AssertionError, match="record again"):
        test_results_change_only_with_their_version("knn")


def record(*asked):
    content = json.loads(FILE.read_text()) if asked else {}
    content |= {stage: {"version": versions()[stage], "values": FOUND[stage]()} for stage in asked or FOUND}
    FILE.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    record(*sys.argv[1:])
