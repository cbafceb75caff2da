"""Where the rows of a run can go besides metrics.jsonl, which stays the truth: TensorBoard, Weights & Biases."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from smog.errors import UsageError, nearest
from smog.identity import as_dict, group_id, run_id
from smog.schema import Config

FINISH = 60.0  # seconds that a finished run waits for a slow network; wandb itself would wait for ever


class Logger(Protocol):
    """What a run writes its rows to. A row is a line of metrics.jsonl."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row at its step."""

    def close(self) -> None:
        """Write what is left."""


def open_loggers(names: Sequence[str], folder: Path, config: Config, step: int) -> list[Logger]:
    """Open the named loggers of the run in ``folder``, of which ``step`` steps are done; rank 0 alone does so.

    Rows that an earlier start wrote after ``step`` will not show twice. Raises UsageError as ``check_loggers``.
    """
    check_loggers(names)
    return [
        Guarded(name, functools.partial(KINDS[name], folder, config, step))
        for name in dict.fromkeys(names)  # each once
    ]


def check_loggers(names: Sequence[str]) -> None:
    """Raise UsageError for an unknown logger, or one whose package is missing, before a run writes anything."""
    for name in names:
        if name not in KINDS:
            raise UsageError(f"runtime.loggers: no logger {name!r}{nearest(name, KINDS)}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"runtime.loggers: {name} is not installed: pip install 'smog-suite[loggers]'")


class Guarded:
    """A logger that may fail: a full disk or a lost network turns it off with one line, and the run goes on."""

    def __init__(self, name: str, start: Callable[[], Logger]) -> None:
        self.name = name
        self.logger: Logger | None = None
        try:
            self.logger = start()
        except Exception as error:  # whatever a foreign package raises must not end the run
            self._off(error)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row at its step."""
        try:
            if self.logger:
                self.logger.write(row)
        except Exception as error:
            self._off(error)

    def close(self) -> None:
        """Write what is left."""
        try:
            if self.logger:
                self.logger.close()
        except Exception as error:
            self._off(error)

    def _off(self, error: Exception) -> None:
        self.logger = None
        why = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{self.name} is off from here on ({why}); metrics.jsonl has every row", file=sys.stderr, flush=True)


class TensorBoard:
    """Scalars under ``tensorboard/`` in the run's folder; the name of a scalar is that of the key."""

    def __init__(self, folder: Path, config: Config, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard itself hides what an earlier start wrote from the purged step on
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row at its step."""
        for name, value in numbers(row):
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()  # a row before a checkpoint is never written again, so no kill may take it

    def close(self) -> None:
        """Close the file of events."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases with our run's id: offline, to be sent by ``wandb sync``, unless the user has a key.

    A kill takes what wandb has not put on the disk yet, and wandb can't forget rows. So every start writes the rows of
    metrics.jsonl up to its step anew, offline into a folder in place of the old one; a server leaves out what it has.
    """

    def __init__(self, folder: Path, config: Config, step: int) -> None:
        import wandb

        from smog.records import read_lines  # here, since records import the loggers

        for old in folder.glob(f"wandb/offline-run-*-{run_id(config)}*"):
            shutil.rmtree(old)
        self.run = wandb.init(
            project="smog",
            id=run_id(config),
            group=group_id(config),
            config=as_dict(config),
            dir=str(folder),
            mode=wandb_mode(),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH),
        )
        for row in read_lines(folder / "metrics.jsonl"):
            if row["step"] <= step:
                self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row at its step."""
        if row["step"] >= self.run.step:  # on the server already; its values are the same, since a resume is exact
            self.run.log(dict(numbers(row)), step=row["step"], commit=True)

    def close(self) -> None:
        """Hand over what is left."""
        self.run.finish()


KINDS: dict[str, Callable[[Path, Config, int], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def wandb_mode() -> Any:
    """Return None where the user set WANDB_MODE, which wandb reads itself; else online with a key, offline without."""
    if os.environ.get("WANDB_MODE"):
        return None
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a row but its step, those of inner groups under dotted names: ``time.seconds``."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + name != "step":
            yield prefix + name, value
