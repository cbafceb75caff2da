"""Reports made by hand from a made store, for the tests of the page."""

import base64
from dataclasses import replace
from pathlib import Path

from made_store import TASKS, configured

from reports.cells import Cell, Row, Table
from reports.evidence import read_results
from reports.report import Gap, Picture, Report, Run, Runs, Section
from reports.tables import grid_table
from smog.store import read_json, write_json

SVG = b"""<?xml version="1.0"?>
<svg width="300pt" height="90pt" viewBox="0 0 300 90"><defs><path id="a" d="M0 0h9v9z"/></defs>
<use href="#a" x="20" y="20" style="fill: #0072b2"/><path d="M0 80h300" style="stroke: #1b1b1b"/></svg>"""
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def documented(store: Path, made: dict) -> dict:
    """Give the runs of a grid all that the page tells of a run, as if they had been trained; return the record."""
    for cell in configured(store, made)["cells"]:
        for run in cell["runs"].values():
            write_json(store / run / "env.json", {"commit": "d" * 40, "dirty": False, "versions": {"torch": "2.9"}})
            for path in (store / run / "results").glob("*.json"):
                write_json(path, read_json(path) | {"settings": {"k": 20}})
    return made


def runs_of(store: Path, made: dict) -> dict[str, Run]:
    """Read the runs of a grid."""
    reader = Runs(store, read_results(store))
    return {
        run: reader.read(run, cell["group_id"], int(seed))
        for cell in made["cells"]
        for seed, run in cell["runs"].items()
    }


def gaps(table: Table) -> tuple[Gap, ...]:
    """Return what a table lacks, each as failed."""
    return tuple(
        Gap(row.label, seed, run, one.task, "failed", f"{one.task}: RunError, <b>out of memory</b>")
        for row in table.rows for one in row.measures for seed, run in one.runs.items() if seed not in one.values
    )  # fmt: skip


def section(store: Path, made: dict, table: Table | None = None, **more) -> Section:
    """Return the section of a grid, with a picture."""
    table = table or grid_table(store, made)
    name = more.pop("name", made["grid"])
    picture = Picture(name, "Metric", "Every seed as a circle.", "f" * 12, {"svg": SVG, "pdf": b"%PDF", "png": PNG})
    runs = tuple(dict.fromkeys(run for cell in made["cells"] for run in cell["runs"].values()))
    own = {"pictures": (picture,), "gaps": gaps(table)} | more
    return Section(name, made["title"], own.pop("kind", "grid"), table, made["command"], runs, **own)


def report(store: Path, made: dict, **more) -> Report:
    """Return the report of one grid."""
    own = {name: more.pop(name) for name in ("dropped",) if name in more}
    return Report((section(store, made, **more),), runs_of(store, made), **own)


def with_others(table: Table) -> Table:
    """Return the table with a difference beneath its last row and two numbers of others that look equal."""
    blank = (Cell(""),) * (len(table.columns) - 2)
    delta = Row("difference", "delta", None, None, {}, (Cell("to untrained"), Cell("+14.2", 14.2), *blank), ())
    others = [_reported(name, value, blank) for name, value in (("B et al.", 61.54), ("A et al.", 61.46))]
    return replace(table, rows=(*table.rows, delta, *others))


def _reported(name: str, value: float, blank: tuple[Cell, ...]) -> Row:
    cells = (Cell(name, notes=(f"{name}, table 3",)), Cell(f"{value:.1f}", value, ("reported",)), *blank)
    return Row(name, "reported", None, None, {}, cells, ())


def write(folder: Path, report: Report, page: bytes) -> Path:
    """Write the page and the files that it links to; return the page's path."""
    for one in report.sections:
        for kind in ("md", "tex", "csv", "html"):
            _write(folder / "tables" / f"{one.name}.{kind}", b"")
        for picture in one.pictures:
            for kind, content in picture.files.items():
                _write(folder / "figures" / f"{picture.name}.{kind}", content)
    for text in ("REPRODUCE.md", "model-index.yaml"):
        _write(folder / text, b"")
    return _write(folder / "index.html", page)


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


PROTOCOLS = {task: f"{task}@{protocol}" for task, protocol in TASKS.items()}
