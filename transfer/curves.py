"""The figure of a training: its losses, and what it scored on the way."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smog.store import write_atomically
from transfer.panels import COLORS


def write_curves(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str], label: str) -> None:
    """Write a figure of a training: above, loss and every loss_* over the step; below, metrics in percent.

    ``rows``: {step, loss, loss_*} and {step, box_ap, mask_ap, ...}, as in the log. ``names``: the metrics that are
    drawn where they are there; ``label``: of their axis. The figure's format is that of the path's name.
    """
    from matplotlib.figure import Figure  # here, since it takes a second to import

    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    losses = sorted({name for row in rows for name in row if name.partition("_")[0] == "loss"})
    figures = [name for name in names if any(name in row for row in rows)]
    for axes, drawn, marker in ((above, losses, ""), (below, figures, "o")):
        for number, name in enumerate(drawn):
            points = [(row["step"], row[name]) for row in rows if name in row]
            color = [part / 255 for part in COLORS[number % len(COLORS)]]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name.replace("_", " "))
        if drawn:
            axes.legend(frameon=False, ncols=2)
        axes.grid(alpha=0.3)
    above.set(ylabel="loss", ylim=(0, None))
    below.set(ylabel=label, xlabel="step", ylim=(0, None))
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=120)
    write_atomically(path, lambda file: file.write(content.getvalue()))
