"""The page of a report: one file that needs nothing else, with every number's run behind it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.costs import hours, origins, section_cost, whole_cost
from reports.embedded import commit, embedded
from reports.markup import to_html
from reports.plots import BLUE, INK, PAPER
from reports.report import Picture, Report, Run, Section
from smog.identity import digest

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).parent
LARGEST_SVG = 200_000  # bytes; above it the page shows the PNG
LARGEST_PAGE = 2_950_000  # bytes, without the figures that would make it larger
GROWTH = 1.6  # how much wider than in print a figure may stand on the page
FILES = ("md", "tex", "csv", "html")
COLOURS = {INK: "currentColor", PAPER: "var(--paper)", BLUE: "var(--blue)"}
UNSEEN = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
OUTSIDE = '<p class="soft">Not shown here, where it would make the page too large; the files below have it.</p>'
PLACE = "<!--figure {}-->"  # replaced once it is known what has room; no text of the store has a < of its own
Placed = tuple[int, str]  # a figure: its place in its section, and what is drawn
NAMES = re.compile(r'(\bid="|url\(#|href="#)')


def render(report: Report) -> bytes:
    """Return the page; whatever comes from the store is escaped, and the browser runs no script but the page's own."""
    return filled(*text_of(report))


def text_of(report: Report) -> tuple[str, list[Placed]]:
    """Return the page with a mark in the place of each figure, and the figures."""
    from markupsafe import Markup

    script = (HERE / "page.js").read_text(encoding="utf-8")
    total, missing = planned(report)
    places: list[Placed] = []

    def place(order: int, picture: Picture, words: str) -> str:
        places.append((order, drawing(picture, words)))
        return Markup(PLACE.format(len(places) - 1))

    drawn = _template().render(
        report=report, sections=ordered(report), total=total, missing=missing, digest=whole_digest(report),
        style=(HERE / "page.css").read_text(encoding="utf-8"), script=script, policy=policy(script),
        data=embedded(report), costs={one.name: section_cost(report, one) for one in report.sections},
        whole=whole_cost(report), origins=origins(report), files=FILES, drawing=place,
    )  # fmt: skip
    return drawn, places


def filled(page: str, places: list[Placed]) -> bytes:
    """Put the figures into the page: the first of each section, the second of each, as long as there is room."""
    room = LARGEST_PAGE - len(page.encode())
    shown = dict.fromkeys(range(len(places)), OUTSIDE)
    for number in sorted(shown, key=lambda one: places[one][0]):
        size = len(places[number][1].encode())
        if size <= room:
            shown[number], room = places[number][1], room - size
    return re.sub(PLACE.format(r"(\d+)"), lambda found: shown[int(found[1])], page).encode()


def whole_digest(report: Report) -> str:
    """Return twelve hex digits over all tables, pictures, gaps and dropped runs, which the page carries in its head."""
    sections = [
        [one.name, one.title, one.table.digest, [picture.digest for picture in one.pictures],
         [[gap.run, gap.task, gap.state, gap.reason] for gap in one.gaps]]
        for one in report.sections
    ]  # fmt: skip
    return digest([sections, dict(report.dropped)])


def ordered(report: Report) -> list[Section]:
    """Return the sections in the order of the page: tables of tasks, then grids."""
    return sorted(report.sections, key=lambda one: one.kind != "paper")


def planned(report: Report) -> tuple[int, int]:
    """Return how many numbers were planned, those of several tables once, and how many of them are missing."""
    wanted: set[tuple[str, ...]] = set()
    there: set[tuple[str, ...]] = set()
    for one in (one for section in report.sections for row in section.table.rows for one in row.measures):
        own = (one.task, one.protocol, one.metric)
        wanted.update((run, *own) for run in one.runs.values())
        there.update((one.runs[seed], *own) for seed in one.values)
    return len(wanted), len(wanted - there)


def policy(script: str) -> str:
    """Return the content security policy: no request at all, and no script but this one."""
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{known}'")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def inline_svg(svg: str, name: str) -> str:
    """Return an SVG to stand in the page: ids of its own, and ink and paper in the page's colours, light or dark."""
    svg = UNSEEN.sub("", svg[svg.index("<svg") :])
    for colour, own in COLOURS.items():
        svg = svg.replace(colour, own)
    head, end, rest = NAMES.sub(rf"\g<1>{name}-", svg).partition(">")
    width = re.search(r' width="([\d.]+)pt"', head)
    if width:  # as wide as its place, up to a size of which the text is still text
        limit = f' style="max-width:{float(width[1]) * GROWTH:.0f}pt"'
        head = re.sub(r' (width|height)="[\d.]+pt"', "", head) + limit
    return head.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1) + end + rest


def drawing(picture: Picture, words: str) -> str:
    """Return what the page shows of a picture: its SVG, or its PNG where the SVG is large; ``words`` replace it."""
    from markupsafe import escape

    svg, png = picture.files.get("svg", b""), picture.files.get("png", b"")
    if svg and len(svg) <= LARGEST_SVG:
        return f'<div role="img" aria-label="{escape(words)}">\n{inline_svg(svg.decode(), picture.name)}\n</div>'
    if not png:
        return ""
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def runs_behind(report: Report, section: Section) -> Iterator[tuple[Run, str, str, str, str]]:
    """Yield each run of a section with the label of its first row, its device, commit and time."""
    labels: dict[str, str] = {}
    for row in section.table.rows:
        for one in row.measures:
            for planned_run in one.runs.values():
                labels.setdefault(planned_run, row.label)
    for name in dict.fromkeys(section.runs):
        run = report.runs[name]
        last: dict[str, Any] = next(iter(run.results.values()), {"cost": {}, "provenance": {}})
        device = run.training.get("device") or last["cost"].get("device") or ""
        when = run.training.get("finished") or last.get("created") or ""
        yield run, labels.get(name, ""), device, run.commit or commit(last), str(when)[:19].replace("T", " ")


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {
        "table_html": lambda section: Markup(to_html(section.table, section.name)),
        "runs_behind": runs_behind,
    }
    environment.filters |= {"hours": hours, "raw": Markup}
    return environment.get_template("page.html.j2")
