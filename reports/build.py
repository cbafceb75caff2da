"""From the store to tables, figures and one page: ``python reports/build.py [store=runs] [out=reports/output]``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout runs without installation

from smog.errors import UsageError, exit_code, nearest
from smog.store import grids, read_json, result_path, write_atomically

if TYPE_CHECKING:
    from reports.tables import Record, Results, Table

HELP = """\
usage: python reports/build.py [store=runs] [out=reports/output] [grids=[NAME,...]] [--json]

Draws a table (Markdown, LaTeX, CSV, HTML), a figure of the metric and the training curves (PDF, SVG, PNG)
for every grid of the store, and one self-contained page, OUT/index.html.

  store=DIR          where the runs lie (runs)
  out=DIR            where to write (reports/output)
  grids=[a,b]        which grids (all of the store)
  --json             print one JSON document instead (also: format=json)

exit codes: 0 done, 1 results are missing (the outputs say which), 2 wrong use (nothing is written)
"""
KEYS = ("store", "out", "grids", "format")
SAFE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    store: Path = Path("runs")
    out: Path = Path("reports/output")
    grids: tuple[str, ...] = ()
    json: bool = False


@dataclass(frozen=True)
class Section:
    """One grid of the page: its record and table, what was drawn of it, and the runs behind it."""

    name: str
    record: Record
    table: Table
    runs: list[dict[str, Any]]
    files: dict[str, bytes] = field(default_factory=dict)

    def drawing(self, name: str) -> str | None:
        """Return the SVG of a figure for the page, or None where there is none."""
        svg = self.files.get(f"figures/{name}.svg")
        return None if svg is None else inline_svg(svg.decode(), name)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    return exit_code(_build, arguments)


def _build(arguments: Sequence[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(HELP, end="")
        return 0
    request = parse(arguments)
    sections = [draw(request.store, record, name) for name, record in chosen(request)]
    write(request.out, sections, render_page(sections))
    print_summary(request, sections)
    return 1 if any(section.table.missing for section in sections) else 0


def parse(arguments: Sequence[str]) -> Request:
    """Read ``key=value`` arguments; a key that does not exist is answered with the nearest one."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = ("format", "=", "json") if argument == "--json" else argument.partition("=")
        if key not in KEYS:
            raise UsageError(f"unknown argument {argument!r}{nearest(key.lstrip('-'), KEYS)}")
        if not equals or not value:
            raise UsageError(f"{key} needs a value: {key}=...")
        given[key] = value
    if given.get("format", "json") != "json":
        raise UsageError(f"unknown format {given['format']!r}; known: json")
    names = tuple(name.strip() for name in given.get("grids", "").strip("[]").split(",") if name.strip())
    store, out = Path(given.get("store", Request.store)), Path(given.get("out", Request.out))
    return Request(store, out, names, "format" in given)


def chosen(request: Request) -> list[tuple[str, Record]]:
    """Return the asked grids with the names of their files: the grid's own, and its id too where a name is shared."""
    records = grids(request.store)
    if not records:
        raise UsageError(f"no grids in the store {request.store}; run one: python ablations/run.py grid=num_groups")
    known = [record["grid"] for record in records]
    for name in [*known, *(record["id"] for record in records)]:
        if not SAFE_NAME.fullmatch(name):
            raise UsageError(f"the store {request.store} has a grid with an unusable name or id: {name!r}")
    for name in request.grids:
        if name not in known:
            raise UsageError(f"no grid {name!r} in the store {request.store}{nearest(name, set(known))}")
    wanted = [record for record in records if not request.grids or record["grid"] in request.grids]
    return [(_file_name(record, known), record) for record in wanted]


def _file_name(record: Record, known: list[str]) -> str:
    return record["grid"] if known.count(record["grid"]) == 1 else f"{record['grid']}-{record['id']}"


def draw(store: Path, record: Record, name: str) -> Section:
    """Compute a grid's table once and draw all of its files."""
    from reports import forest, plots, tables, writers  # here, because --help must not pay for them

    results = tables.read_results(store, record)
    table = tables.grid_table(store, record, results)
    drawn = {"md": writers.to_markdown, "tex": writers.to_latex, "csv": writers.to_csv, "html": writers.to_html}
    files = {f"tables/{name}.{kind}": writer(table).encode() for kind, writer in drawn.items()}
    figures = {name: forest.forest_figure(table) if forest.suits(record) else plots.metric_figure(table, record)}
    if curves := plots.read_curves(store, record):
        figures[f"{name}-curves"] = plots.curves_figure(curves)
    for figure_name, figure in figures.items():
        files |= {f"figures/{figure_name}.{kind}": plots.save(figure, kind) for kind in ("pdf", "svg", "png")}
    return Section(name, record, table, list(runs_behind(store, record, results)), files)


def runs_behind(store: Path, record: Record, results: Results) -> Iterator[dict[str, Any]]:
    """Yield what the page tells of each run of a grid, once a run: who, what it cost, where, from which code."""
    from reports.tables import in_order

    seen = set()
    for cell in in_order(record):
        for seed, run in sorted(cell["runs"].items(), key=lambda item: int(item[0])):
            if run not in seen:
                seen.add(run)
                yield {"run": run, "cell": cell["label"], "seed": seed} | _cost(store / run, record["tasks"], results)


def _cost(folder: Path, tasks: dict[str, str], results: Results) -> dict[str, Any]:
    """Return a run's seconds (training and the grid's tasks) and provenance, as far as it got."""
    done = read_json(folder / "done") if (folder / "done").is_file() else {}
    paths = {name: result_path(folder, name, protocol) for name, protocol in tasks.items()}
    found = {path: results[folder.name, name] for name, path in paths.items() if (folder.name, name) in results}
    seconds = {str(path): result["cost"]["seconds"] for path, result in found.items()}
    if "seconds" in done:
        seconds[str(folder / "done")] = done["seconds"]
    last: dict[str, Any] = next(iter(found.values()), {"provenance": {}, "cost": {}})
    return {
        "seconds": seconds,
        "device": done.get("device") or last["cost"].get("device"),
        "commit": last["provenance"].get("commit"),
        "dirty": last["provenance"].get("dirty"),
        "created": last.get("created"),
    }


def total_cost(sections: Sequence[Section]) -> tuple[int, float]:
    """Return how many runs there are and their seconds; what two grids share counts once."""
    seconds = {path: cost for section in sections for run in section.runs for path, cost in run["seconds"].items()}
    runs = {run["run"] for section in sections for run in section.runs if run["seconds"]}
    return len(runs), sum(seconds.values())


def duration(seconds: float) -> str:
    """Return seconds in words: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def inline_svg(svg: str, name: str) -> str:
    """Return an SVG to stand in the page: ids of its own, and ink and paper in the page's colours, light or dark."""
    from reports.plots import BLUE, INK, PAPER

    svg = svg[svg.index("<svg") :]
    for colour, own in {INK: "currentColor", PAPER: "var(--paper)", BLUE: "var(--blue)"}.items():
        svg = svg.replace(colour, own)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


def render_page(sections: Sequence[Section]) -> bytes:
    """Return the page; whatever comes from the store is escaped by the template."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    from reports.writers import to_html

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"table_html": lambda table: Markup(to_html(table)), "svg": _drawn_svg}
    environment.filters["duration"] = duration
    runs, seconds = total_cost(sections)
    return environment.get_template("page.html.j2").render(sections=sections, runs=runs, seconds=seconds).encode()


def _drawn_svg(section: Section, name: str) -> Any:
    from markupsafe import Markup

    svg = section.drawing(name)
    return None if svg is None else Markup(svg)


def write(out: Path, sections: Sequence[Section], page: bytes) -> None:
    """Write all files, each atomically, the page last: it never names a file that is not there yet."""
    files = {path: content for section in sections for path, content in section.files.items()}
    try:
        for path, content in (files | {"index.html": page}).items():
            write_atomically(out / path, partial(_write_bytes, content))
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error}") from None


def _write_bytes(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def print_summary(request: Request, sections: Sequence[Section]) -> None:
    """Print what was written: text for people, whose last line is the page, or one JSON document."""
    page = str(request.out / "index.html")
    missing = sum(section.table.missing for section in sections)
    if request.json:
        paths = [str(request.out / path) for section in sections for path in section.files]
        kinds = {kind: [path for path in paths if Path(path).parent.name == kind] for kind in ("tables", "figures")}
        print(json.dumps(kinds | {"page": page, "missing": missing}, indent=1))
        return
    for section in sections:
        table = section.table
        print(f"{section.name}: {table.planned - table.missing} of {table.planned} results, {len(section.files)} files")
    print(page)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
