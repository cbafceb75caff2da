"""mmengine's Runner over several processes on any device, resumed from our own checkpoints, silent on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine.runner
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from torch import nn

from smog import checkpoint
from smog.batchnorm import synchronize
from smog.distributed import rank, world_size
from smog.errors import RunError


class Runner(mmengine.runner.Runner):
    """The Runner of mmsegmentation. Its own checkpoints are neither atomic nor exact in what follows them: instead
    ``content`` holds what the next step depends on, and ``resumed`` what a training goes on from."""

    def __init__(self, device: torch.device, resumed: Mapping[str, Any] | None, **settings: Any) -> None:
        self.device, self.resumed = device, resumed
        super().__init__(**settings)

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """Let statistics and gradients be those of all processes; mmengine's way needs CUDA."""
        model = synchronize(model.to(self.device))
        if world_size() == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        # unused parameters are looked for so that gradients stay in the same buckets (see smog/gradients.py); finding
        # none, torch would warn at every start: there is one while it counts them, in no optimiser and no checkpoint
        model.unused = nn.Parameter(torch.zeros((), device=self.device))
        wrapped = MMDistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, find_unused_parameters=True)
        del model.unused
        return wrapped

    def build_logger(self, *args: Any, **settings: Any) -> MMLogger:
        """Return mmengine's logger, which prints warnings alone, where they belong."""
        return quiet(super().build_logger(*args, **settings))

    def dump_config(self) -> None:
        """Write the configuration beside the result, and not a file for every start."""
        if not rank():
            self.cfg.dump(Path(self.work_dir).parent / "config.py")

    @property
    def segmentor(self) -> Any:
        """Return the network, out of what several processes wrap it in."""
        return getattr(self.model, "module", self.model)

    def load_or_resume(self) -> None:
        """Go on from ``resumed``; called behind mmengine's own initialisation."""
        if self.resumed is None:
            return
        try:
            self.segmentor.load_state_dict(self.resumed["model"])
            if "optimizer" in self.resumed:  # not in that of a training that has ended
                self.optim_wrapper.load_state_dict(self.resumed["optimizer"])
                for scheduler, state in zip(self.param_schedulers, self.resumed["schedulers"], strict=True):
                    scheduler.load_state_dict(state)
            self.train_loop.start_at(self.resumed["step"])
        except (KeyError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            work = Path(self.work_dir).parent
            raise RunError(f"{work} is of another version of the program ({why}); move it away") from None

    def close(self) -> None:
        """Close the file of the log: a process may train many, one after the other."""
        for handler in list(self.logger.handlers):
            if isinstance(handler, logging.FileHandler):
                handler.close()
                self.logger.removeHandler(handler)

    def content(self) -> dict[str, Any]:
        """Return what the next step depends on, beside its number."""
        return {
            "model": self.segmentor.state_dict(),
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers],
        }


def quiet(logger: MMLogger) -> MMLogger:
    """Let a logger print errors alone, and not among the results on standard output."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(sys.stderr)
            handler.setLevel(logging.ERROR)
    return logger


class Follow(Hook):
    """Hands each step to the training, behind all other hooks."""

    priority = "LOWEST"

    def __init__(self, training: Any) -> None:
        self.training = training

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start the generators anew: dropout then depends on the step alone, and a resume has nothing to restore."""
        checkpoint.own_stream(self.training.chosen.seed, batch_idx)
        self.training.lr = max(group["lr"] for group in runner.optim_wrapper.param_groups)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log, evaluate, save and stop where that is due."""
        self.training.after(batch_idx + 1, outputs)
