"""Fine-tuning of a segmentor by mmsegmentation's Runner, that can be killed anywhere and started again."""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import mmcv
import mmseg
import numpy as np
import torch
from mmengine.config import Config as MmConfig
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmseg.registry import MODELS

from smog import checkpoint
from smog.data.sampler import data_loader
from smog.distributed import agreed, rank, sum_over_ranks, world_size
from smog.models import chosen_precision
from smog.pretrained import Pretrained, open_pretrained
from smog.processes import own_device
from smog.progress import say
from smog.records import read_lines
from smog.schema import Config
from smog.tasks import protocol
from smog.tasks.result import Found
from smog.training import choose_device, make_deterministic
from transfer.parity import as_text
from transfer.protocols import work_folder
from transfer.segmentation.batches import Batches, Tested
from transfer.segmentation.data import Pairs, check_pair, fraction, open_pairs, unlearnable
from transfer.segmentation.made import open_made
from transfer.segmentation.metric import Confusion, Scores, scores
from transfer.segmentation.model import build_segmentor, named
from transfer.segmentation.protocol import Segmentation
from transfer.segmentation.runner import Follow, Runner, quiet
from transfer.watch import METRICS, Watch, close, inputs, not_finite

TITLES = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"}
SHOWN = 8  # predictions for the pictures, spread over the images
_numbers = itertools.count()  # mmengine keeps its parts by the name of an experiment, as long as a process lives


def of_run(folder: Path, config: Config, chosen: Segmentation) -> Found:
    """Fine-tune from a finished run; what remains of it beside the result lies in ``<run>/transfer/``."""
    return fine_tune(open_pretrained(folder), chosen, work_folder(folder, "ade20k", chosen))


def fine_tune(source: Pretrained, chosen: Segmentation, work: Path) -> Found:
    """Train a segmentor from a checkpoint, or go on where it was cut, and evaluate it.

    Raises UsageError where the checkpoint, the data or a key do not fit, before anything is written; RunError where the
    backbone does not give the feature maps of its source, or the loss is not finite; StoppedError after a signal to
    stop.
    """
    train, val = opened(chosen, "train"), opened(chosen, "val")
    check_pair(train, val)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmsegmentation uses what is deprecated here and there; nobody here mends it
        training = Training(source, chosen, train, val, work)
        if not rank():
            say(as_text(training.parity))
        found = training.run()
    return _found(training, *found)


def opened(chosen: Segmentation, split: str) -> Pairs:
    """Open a split, checked; of train the fraction that is asked for. Raises UsageError for what is wrong with it."""
    if chosen.data == "made":
        found = open_made(split, chosen.made_train if split == "train" else chosen.made_val, chosen.made_size)
    else:
        found = open_pairs(chosen.data, Path(chosen.root), split, chosen.classes)
    return fraction(found, chosen.fraction, chosen.seed) if split == "train" and chosen.fraction < 1 else found


def _found(training: Training, single: Scores, multiple: Scores | None) -> Found:
    chosen, train, val = training.chosen, training.train, training.val
    backbone = training.config["model"]["backbone"]
    engine = {
        "name": "mmsegmentation",
        "version": mmseg.__version__,
        "mmcv": mmcv.__version__,
        "body": "mmseg" if chosen.family == "swin" else "timm",
        "backbone": backbone["name"],
        "dilated": backbone["dilated"],
        "processes": world_size(),
        "precision": training.precision,
    }
    more = {"checkpoint": training.origin, "engine": engine, "parity": training.parity, "per_class": single.per_class}
    metrics = dict(single.metrics)
    if multiple:
        metrics |= {f"{name}_ms": value for name, value in multiple.metrics.items()}
        more["per_class_ms"] = multiple.per_class
    return Found(metrics, inputs(chosen.fingerprint, train, val, unlearnable(train, val)), more)


class Training:
    """A segmentor that is being trained, and all that its next step depends on."""

    def __init__(self, source: Pretrained, chosen: Segmentation, train: Pairs, val: Pairs, work: Path) -> None:
        self.chosen, self.train, self.val, self.work = chosen, train, val, work
        self.origin = source.origin
        self.device = own_device(choose_device(chosen.device))
        self.precision = chosen_precision(chosen.precision, self.device)
        init_default_scope("mmseg")
        quiet(MMLogger.get_instance(f"building {next(_numbers)}"))
        self.config, self.model, self.parity = build_segmentor(source, chosen, len(train.classes))
        self.config["optim_wrapper"]["half"] = self.precision == "bf16"
        with named("mmseg.train_pipeline"):
            self.batches = Batches(train, chosen, self.config["train_pipeline"])
        self._try()
        self.step, self.seconds, self.began, self.lr = 0, 0.0, 0.0, 0.0
        self.last: dict[int, Any] = {}

    def _try(self) -> None:
        """Build what the Runner will build, so that a wrong key is told before anything is written."""
        for name in ("test_pipeline", "tta_pipeline"):
            with named(f"mmseg.{name}"):
                Tested(self.val, self.config[name])
        with named("mmseg.optim_wrapper"):
            optimizer = build_optim_wrapper(self.model, copy.deepcopy(self.config["optim_wrapper"]))
        with named("mmseg.param_scheduler"):
            for scheduler in copy.deepcopy(self.config["param_scheduler"]):
                PARAM_SCHEDULERS.build(scheduler, default_args={"optimizer": optimizer})

    def run(self) -> tuple[Scores, Scores | None]:
        """Go on from the last checkpoint, or from the start, to the end; return the scores of the last step, and those
        of the multi-scale test where it is asked for."""
        content = checkpoint.latest(self.work) if any(agreed(checkpoint.exists(self.work))) else None
        if content:
            self.step, self.seconds = content["step"], content["seconds"]
        title = f"ade20k {self.origin['id'][:6]} {self.chosen.decoder} seed {self.chosen.seed}"
        self.work.mkdir(parents=True, exist_ok=True)
        with Watch(self.chosen, self.work, title, self.step) as self.watch:
            self.runner = self._runner(content)
            self.began = time.monotonic()
            with closing(self.runner):
                self.runner.train()
                self.watch.trained()
                single = self.evaluate()
                multiple = self._multi_scale() if self.chosen.multi_scale else None
        if not rank():
            self._close()
        return single, multiple

    def _runner(self, content: Mapping[str, Any] | None) -> Runner:
        """Return mmengine's Runner; its log lies in ``mmengine/``, its configuration in ``config.py`` of the work."""
        config, chosen = copy.deepcopy(self.config), self.chosen
        loaders = {
            "train_dataloader": data_loader(self.batches, self.step, chosen.steps, chosen.workers),
            "val_dataloader": self._testing(config["test_pipeline"]),
        }
        own = ("train_cfg", "val_cfg", "optim_wrapper", "param_scheduler")
        start, stop = self._part()
        self.metric = Confusion(len(self.val.classes), np.linspace(start, stop - 1, SHOWN).astype(int).tolist())
        runner = Runner(
            self.device,
            content,
            model=self.model,
            work_dir=str(self.work / "mmengine"),
            **loaders,
            **{name: config[name] for name in own},
            val_evaluator=[self.metric],
            default_hooks={"logger": None, "checkpoint": None, "sampler_seed": None},
            custom_hooks=[Follow(self)],
            visualizer={"type": "Visualizer", "vis_backends": []},
            randomness={"seed": chosen.seed},
            default_scope="mmseg",
            experiment_name=f"ade20k {next(_numbers)}",
            cfg=MmConfig(self.config),
        )
        make_deterministic(self.device)
        return runner

    def _testing(self, pipeline: list[dict[str, Any]]) -> Any:
        """Return the loader of this process's part of the validation images."""
        return data_loader(Tested(self.val, pipeline), *self._part(), self.chosen.workers)

    def _part(self) -> tuple[int, int]:
        """Return the first and the one behind the last of this process's validation images."""
        count, world = len(self.val.images), world_size()
        return count * rank() // world, count * (rank() + 1) // world

    def after(self, step: int, losses: Mapping[str, Any]) -> None:
        """Do what is due after a step of the Runner."""
        self.step = step
        self.seconds += time.monotonic() - self.began
        self.watch.after(step, lambda: self._row(losses), self.evaluate, self._content)
        self.began = time.monotonic()

    def _row(self, losses: Mapping[str, Any]) -> dict[str, Any]:
        """Return a line of metrics.jsonl, means over the processes. Raises RunError where the loss is not finite."""
        names = {"loss": "loss", "loss_decode": "decode.loss_ce", "loss_aux": "aux.loss_ce"}
        shown = {name: losses[theirs].detach().float() for name, theirs in names.items() if theirs in losses}
        means = (sum_over_ranks(torch.stack(list(shown.values()))) / world_size()).tolist()
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.batches.per_epoch, 4),
            **dict(zip(shown, means, strict=True)),
            "lr": self.lr,
            "time": {"seconds": round(self.seconds, 3)},
        }
        if not abs(row["loss"]) < float("inf"):
            raise not_finite(self.work, self.step, self.chosen.steps, row["loss"])
        return row

    def evaluate(self) -> Scores:
        """Score the segmentor as it stands."""
        self.metric.shown.clear()
        self.runner.val_loop.run()
        found = scores(self.metric.matrix, self.val.classes)
        self.last = dict(self.metric.shown)
        headline = ", ".join(f"{title} {found.metrics[name]:.2f}" for name, title in TITLES.items())
        self.watch.scored(found.metrics, headline)
        return found

    def _multi_scale(self) -> Scores:
        """Score it once more, over several scales and mirrored, by mmsegmentation's own model of that."""
        many = MODELS.build({"type": "SegTTAModel", "module": self.runner.segmentor})
        loader = self._testing(self.config["tta_pipeline"])
        many.eval()
        with torch.no_grad():
            for batch in loader:
                found = many.test_step(batch)
                self.metric.process(batch, [sample.to_dict() for sample in found])
        self.metric.evaluate(len(self.val.images))
        return scores(self.metric.matrix, self.val.classes)

    def _content(self) -> dict[str, Any]:
        code = protocol("ade20k", self.chosen)
        return {"protocol": code, "step": self.step, "seconds": self.seconds, **self.runner.content()}

    def _close(self) -> None:
        """Write the pictures and the curves, and drop what only further steps need."""
        from transfer.curves import write_curves
        from transfer.segmentation.sheet import write_sheet

        write_sheet(self.work / "predictions.png", self.val, self.last)
        rows = list(read_lines(self.work / METRICS))
        write_curves(self.work / "curves.png", rows, list(TITLES), "%")
        close(self.work, ("optimizer", "schedulers"))
