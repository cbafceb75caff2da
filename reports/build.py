"""From the store to tables, figures and one page: ``python reports/build.py [store=runs] [out=reports/output]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout runs without installation

from smog.errors import UsageError, exit_code, nearest
from smog.store import write_atomically

if TYPE_CHECKING:
    from reports.collect import Collected
    from reports.report import Gap, Report, Section

HELP = """\
usage: python reports/build.py [store=runs] [out=reports/output] [grids=[NAME,...]] [draft=true] [check=true]
                               [venue=eccv] [--json]

Makes every table (Markdown, LaTeX, CSV, HTML) and figure (PDF, SVG, PNG) of the store again, one self-contained page
(OUT/index.html), the commands behind every number (OUT/REPRODUCE.md), and OUT/model-index.yaml for model cards.
What has not changed is not made again.

  store=DIR          where the runs lie (runs)
  out=DIR            where to write (reports/output)
  grids=[a,b]        which grids (all of the store, and the runs that belong to none)
  draft=true         write also where planned results are missing: they are -- with n/N, and all outputs say DRAFT
  check=true         write nothing; name every cell that the store no longer gives, every line that was edited
  venue=eccv         size of the figures: eccv, cvpr, neurips
  --json             print one JSON document instead (also: format=json)

DIR/dropped.yaml lists seeds that do not count, each with a reason, which the tables print.

exit codes: 0 done, 1 results are missing (nothing is written) or check=true found something, 2 wrong use
"""
KEYS = ("store", "out", "grids", "draft", "check", "venue", "format")
STAMP = ".stamp"
SHOWN = 20  # missing results, or problems, that a terminal shows


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    store: Path = Path("runs")
    out: Path = Path("reports/output")
    grids: tuple[str, ...] = ()
    draft: bool = False
    check: bool = False
    venue: str = "eccv"
    json: bool = False


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    return exit_code(_build, arguments)


def _build(arguments: Sequence[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(HELP, end="")
        return 0
    request = parse(arguments)
    if request.check:
        return _check(request)
    from reports.stamp import sources

    made_of = sources(request.store, repr(replace(request, json=False, check=False)))
    if (known := _unchanged(request, made_of)) is not None:
        _say(request, known, changed=0)
        return 0
    collected = _collected(request)
    if collected.report.draft and not request.draft:
        return _refuse(request, collected.report)
    _write(request, collected, made_of)
    return 0


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
    for key in ("draft", "check"):
        if given.get(key, "true") not in ("true", "false"):
            raise UsageError(f"{key}={given[key]!r}: true or false")
    names = tuple(name.strip() for name in given.get("grids", "").strip("[]").split(",") if name.strip())
    store, out = Path(given.get("store", Request.store)), Path(given.get("out", Request.out))
    draft, check = (given.get(key) == "true" for key in ("draft", "check"))
    return Request(store, out, names, draft, check, given.get("venue", Request.venue), "format" in given)


def _collected(request: Request) -> Collected:
    """Read the store. Heavy imports are here, because --help must not pay for them."""
    from reports import plots
    from reports.collect import collect

    with plots.venue(request.venue):  # an unknown one is said before anything is computed
        return collect(request.store, request.grids)


def _unchanged(request: Request, made_of: str) -> dict[str, Any] | None:
    """Return what the last build said, where it would say and write the same now."""
    from reports.stamp import written

    try:
        known = json.loads((request.out / STAMP).read_bytes())
        same = (known["made_of"], known["written"]) == (made_of, written(request.out))
        return known["said"] if same else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(request: Request, collected: Collected, made_of: str) -> None:
    """Draw and write everything. What changes in the store meanwhile is found the next time: ``made_of`` is older."""
    from reports.output import outputs, with_pictures, write
    from reports.stamp import written

    report = with_pictures(request.store, collected, request.venue, request.out)
    changed = write(request.out, outputs(report, request.venue, request.grids))
    said = _summary(request, report)
    if _settled(report):
        content = json.dumps({"made_of": made_of, "written": written(request.out), "said": said}) + "\n"
        write_atomically(request.out / STAMP, lambda file: file.write(content.encode()))
    else:
        (request.out / STAMP).unlink(missing_ok=True)
    _say(request, said, changed)


def _settled(report: Report) -> bool:
    """Say whether files alone tell what the report shows: not a process that may end, or images that may come back."""
    return not any(one.notes or any(gap.state == "running" for gap in one.gaps) for one in report.sections)


def _summary(request: Request, report: Report) -> dict[str, Any]:
    """Return what the command prints with --json."""
    return {
        "tables": [f"tables/{one.name}.{kind}" for one in report.sections for kind in ("md", "tex", "csv", "html")],
        "figures": [path for one in report.sections for path in _figures(one)],
        "page": "index.html",
        "missing": sum(section.table.missing for section in report.sections if section.kind == "grid"),
        "notes": [f"{one.name}: {note}" for one in report.sections for note in one.notes],
        "sections": [[one.name, one.table.planned - one.table.missing, one.table.planned] for one in report.sections],
    }


def _figures(section: Section) -> list[str]:
    return [f"figures/{one.name}.{kind}" for one in section.pictures for kind in one.files]


def _say(request: Request, said: dict[str, Any], changed: int) -> None:
    """Print what was written: text for people, whose last line is the page, or one JSON document."""
    if request.json:
        paths = {kind: [str(request.out / path) for path in said[kind]] for kind in ("tables", "figures")}
        more = {key: said[key] for key in ("missing", "notes")}
        print(json.dumps(paths | {"page": str(request.out / said["page"])} | more | {"changed": changed}, indent=1))
        return
    for name, there, planned in said["sections"]:
        print(f"{name}: {there} of {planned} results")
    for note in said["notes"]:
        print(f"not drawn: {note}")
    print(f"{changed} files changed" if changed else "nothing has changed")
    print(request.out / said["page"])


def _refuse(request: Request, report: Report) -> int:
    """Say what is missing, and how each stands. Nothing is written."""
    found = ((section, gap) for section in report.sections for gap in section.gaps)
    gaps = list({(gap.run, gap.task, gap.reason): (section, gap) for section, gap in found}.values())  # grids are last
    for section, gap in gaps[:SHOWN]:
        print(f"missing: {_place(section, gap)}: {gap.state}, {gap.reason}", file=sys.stderr)
    if len(gaps) > SHOWN:
        print(f"and {len(gaps) - SHOWN} more", file=sys.stderr)
    print(
        f"failed: {len(gaps)} planned results are missing in {request.store}; run the grid again to fill them in, or "
        "draft=true writes -- in their places",
        file=sys.stderr,
    )
    return 1


def _place(section: Section, gap: Gap) -> str:
    return f"{section.name}, {gap.row}, seed {gap.seed}, {gap.task} (run {gap.run})"


def _check(request: Request) -> int:
    """Compare what was written with the store; exit 1 where anything differs."""
    from reports.check import problems
    from reports.output import read_manifest

    grids = request.grids or tuple(read_manifest(request.out).get("grids", ()))  # as it was built
    found = list(problems(request.store, _collected(replace(request, grids=grids)), request.out))
    if request.json:
        print(json.dumps({"problems": found}, indent=1))
    else:
        print(
            "\n".join([*found, f"{len(found)} problems" if found else f"everything in {request.out} matches the store"])
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
