"""What is done about a failure, by its kind: try again, elsewhere, or stop and say which setting would help."""

from __future__ import annotations

from dataclasses import dataclass

SAME = 3  # equal tracebacks after which a grid starts no more jobs: the fourth would say the same


@dataclass(frozen=True)
class Policy:
    """``retries`` within one launch; ``elsewhere``: on another machine; ``hint``: what a person can do."""

    retries: int
    hint: str = ""
    elsewhere: bool = False


# Memory never changes the micro-batch by itself: with BatchNorm that would be another experiment.
_SMALLER = (
    "optim.accumulate=N makes micro-batches smaller (with BatchNorm that is another experiment), "
    "launch.slots=N or pack=N puts fewer runs on a device"
)
POLICIES = {
    "preempted": Policy(1000),
    "timeout": Policy(20, "raise launch.hours, or let it go on: it resumes from its checkpoint"),
    "stopped": Policy(0, "the same command goes on from the last checkpoint"),
    "killed": Policy(2, f"if memory ran out: {_SMALLER}"),
    "memory": Policy(0, _SMALLER),
    "code": Policy(0, "see the log"),
    "nan": Policy(0, "a smaller optim.lr, or optim.precision=fp32"),
    "data": Policy(0, "mend the image, or take data.on_bad_image=replace"),
    "node": Policy(3, "the machine is left out: look after it", elsewhere=True),
    "disk": Policy(0, "make room in the store, or take store=DIR elsewhere; nothing that was computed is lost"),
    "usage": Policy(0),
    "busy": Policy(0, "the other process finishes it; action=status shows it"),
}
