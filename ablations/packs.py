"""Which jobs are trained together: those whose runs share images and views, spread over the places there are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from ablations.work import Job
from smog.packing import pack_key


def packs(jobs: Sequence[Job], most: int, at_once: int) -> list[list[Job]]:
    """Return the jobs in packs of at most ``most`` (0: any number), in the order of their first jobs.

    A pack is no larger than keeps ``at_once`` processes at work.
    """
    if most == 1:
        return [[job] for job in jobs]
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[pack_key(job.config) if job.config.optim.epochs else job.run].append(job)
    even = max(1, math.ceil(len(jobs) / at_once))
    size = min(most or even, even)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
