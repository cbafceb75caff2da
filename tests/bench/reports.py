"""How long a report over 10,000 made results takes: ``python tests/bench/reports.py`` (or ``results=1000``).

Three shapes of the same number: one grid, ten grids, a hundred. Each is built from nothing, again without a change, and
checked; seconds of the command, and the page's size.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from made_store import AXIS, TASKS, cell, record

from smog.config import compose, dump
from smog.store import write_grid

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 5


def make(store: Path, grids: int, cells: int) -> None:
    """Write grids of so many cells, five seeds and two tasks, with logs and configurations."""
    text = dump(compose(["recipe=demo", "data.fingerprint=abcdef012345"]))
    for grid in range(grids):
        found = []
        for number in range(cells):
            noise = random.Random(f"{grid}-{number}")
            level = 50 + 10 * number / cells
            values = {task: [round(level + noise.gauss(0, 1), 2) for _ in range(SEEDS)] for task in TASKS}
            one = cell(store, f"{grid}.{number}", number + 2, values, baseline=number == 0)
            for seed, run in one["runs"].items():
                own = text.replace("num_groups: 300", f"num_groups: {number + 2}").replace("seed: 0", f"seed: {seed}")
                own = own.replace("temperature: 0.1", f"temperature: 0.{grid + 1}")
                (store / run / "config.yaml").write_text(own)
            found.append(one)
        write_grid(store, record(found, f"grid{grid:03}", baseline={AXIS: 2}))


def seconds(store: Path, out: Path, *more: str) -> float:
    """Run the command as a user types it."""
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "reports" / "build.py"), f"store={store}", f"out={out}", *more]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def main() -> None:
    """Print a line for each shape."""
    results = next((int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("results=")), 10_000)
    lines = []
    for grids in (1, 10, 100):
        with tempfile.TemporaryDirectory() as folder:
            store, out = Path(folder) / "runs", Path(folder) / "out"
            make(store, grids, results // (grids * SEEDS * len(TASKS)))
            times = [seconds(store, out), seconds(store, out), seconds(store, out, "check=true")]
            size = (out / "index.html").stat().st_size / 1e6
            lines.append([grids, *(f"{one:.2f}" for one in times), f"{size:.2f}"])
    print(tabulate(lines, ["grids", "built (s)", "unchanged (s)", "checked (s)", "page (MB)"], disable_numparse=True))


if __name__ == "__main__":
    main()
