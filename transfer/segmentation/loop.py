"""mmengine's loop over steps, which a resume enters where it was cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import LOOPS


@LOOPS.register_module()
class Steps(IterBasedTrainLoop):
    """mmengine's own loop, without its validation, which is asked for where checkpoints are (see training.py)."""

    def __init__(self, runner: Any, dataloader: Any, max_iters: int) -> None:
        super().__init__(runner, dataloader, max_iters, val_begin=max_iters + 1)
        self.start = 0
        batches: Any = self.dataloader_iterator
        self.dataloader_iterator: Any = _Resumed(self, batches)

    def start_at(self, step: int) -> None:
        """Go on after ``step`` steps, whose batches the loader leaves out already."""
        self.start = self._iter = step

    def run(self) -> Any:
        """Train; the processes that read the images end with it. Left to Python's collection of cycles they would stay
        for a while, and then keep whoever runs it waiting for ten seconds."""
        try:
            return super().run()
        finally:
            self.dataloader_iterator = None


class _Resumed:
    """The batches of a loader that begins at the step of a resume. mmengine walks past all batches before it, one by
    one, as its own loaders begin anew; that walk goes over nothing here."""

    def __init__(self, loop: Steps, batches: Iterator[Any]) -> None:
        self.loop, self.batches, self.passed = loop, batches, 0

    def __next__(self) -> Any:
        if self.passed < self.loop.start:
            self.passed += 1
            return None
        return next(self.batches)
