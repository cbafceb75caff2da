"""Sheets of pictures: the nearest neighbours of some images, and the images of some groups, of a grid's baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from reports.figures import Drawing
from reports.fonts import fitted
from reports.plots import BLUE, ORANGE, style
from reports.tables import Record, Results
from smog.errors import UsageError

if TYPE_CHECKING:
    from smog.data.images import Images
    from smog.schema import Config

SIDE = 48  # pixels at most: beside eight others a picture is half an inch wide, and a page holds many sheets
MOST = 12  # lines, and pictures of each, that are drawn
WORDS, NAMES = 5.5, 4.5  # points, at the left of a line and beneath a picture
LEAD = -1  # the place of what leads a line
SAME: dict[str, Any] = {"edgecolor": BLUE, "linestyle": "-", "linewidth": 0.9}
OTHER: dict[str, Any] = {"edgecolor": ORANGE, "linestyle": (0, (2.5, 1.2)), "linewidth": 1.1}
Place = tuple[int, int]  # line, and place in it


@dataclass(frozen=True)
class Line:
    """A line of a sheet: words or one picture at its left, then pictures, framed by whether their class is ``own``."""

    words: tuple[str, ...]
    lead: int | None
    shown: list[int]
    own: int


@dataclass(frozen=True)
class Layout:
    """Where pictures of ``side`` pixels stand on a sheet ``inches`` wide, in pixels; all falls on whole ones."""

    inches: float
    side: int
    lines: int
    columns: int
    lead: bool

    @property
    def step(self) -> int:
        """From one picture to the next."""
        return self.side + max(4, round(0.14 * self.side))

    @property
    def left(self) -> int:
        """Where the pictures of a line begin, after what leads it and a gap."""
        return round((1.45 if self.lead else 1.9) * self.side)

    @property
    def width(self) -> int:
        """Of the sheet."""
        return self.left + self.step * self.columns

    @property
    def height(self) -> int:
        """Of the sheet, the key at its foot included."""
        return self.top(self.lines) + round(0.3 * self.side)

    def top(self, line: int) -> int:
        """Return where the pictures of a line begin; beneath them is room for names."""
        return round(0.08 * self.side) + line * (self.step + round(0.2 * self.side))

    def room(self, pixels: int) -> float:
        """Return how many inches so many pixels are on the sheet."""
        return self.inches * pixels / self.width

    def corner(self, line: int, place: int) -> tuple[int, int]:
        """Return x and y of a picture's upper left corner; LEAD is what leads the line."""
        return (round(0.08 * self.side) if place == LEAD else self.left + place * self.step), self.top(line)


def drawings(store: Path, record: Record, results: Results, name: str) -> tuple[list[Drawing], list[str]]:
    """Return the sheets of the baseline's first seed with a result of diagnostics, and why there are none where its
    images can't be shown. Images are opened when a sheet is drawn; before, they are only looked for."""
    found = _of_baseline(record, results)
    if found is None:
        return [], []
    seed, run, result = found
    try:
        config = _config_of(store / run, result)
        made = {kind: _lines_of(result, kind) for kind in ("neighbours", "groups")}
    except ImportError as error:
        return [], [f"{record['grid']}: no sheets of pictures, since {error.name} is not installed"]
    except UsageError as error:
        return [], [f"{record['grid']}: no sheets of pictures: {error}"]
    who = {"run": run, "seed": seed, "protocol": result.get("protocol"), "data": config.data.fingerprint}
    return [
        Drawing(f"{name}-{kind}", title, words(lines, f"run {run}, seed {seed}"), who | {kind: lines},
                partial(_draw, figure, result, config))
        for kind, (title, words, figure) in KINDS.items() if (lines := made[kind])
    ], []  # fmt: skip


def _of_baseline(record: Record, results: Results) -> tuple[int, str, dict[str, Any]] | None:
    for cell in record["cells"]:
        for seed in sorted(cell["runs"], key=int) if cell["baseline"] else ():
            if (result := results.get((cell["runs"][seed], "diagnostics"))) is not None:
                return int(seed), cell["runs"][seed], result
    return None


def _config_of(folder: Path, result: dict[str, Any]) -> Config:
    """Return a run's configuration once its images are there. Nothing will be fetched, or kept in its store.

    Of a folder, which may hold millions of files, the fingerprint is looked at only when a sheet is drawn.
    """
    from smog.config import load, with_runtime
    from smog.data.sources import with_fingerprint

    config = with_runtime(load(folder / "config.yaml"), keep_images=0)
    config = replace(config, data=replace(config.data, download=False))
    if result["inputs"].get("data") != config.data.fingerprint:
        raise UsageError(f"the diagnostics of run {folder.name} are of other images than its config.yaml names")
    return config if config.data.root and Path(config.data.root).is_dir() else with_fingerprint(config)


def _draw(figure: Callable[[dict[str, Any], Images], Figure], result: dict[str, Any], config: Config) -> Figure:
    from smog.data.images import open_images
    from smog.data.sources import with_fingerprint

    return figure(result, open_images(with_fingerprint(config), "val"))


def _lines_of(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return what a sheet shows: up to MOST lines, at even steps, of as many pictures. Raises UsageError for what is
    not among the run's images."""
    number, images = ("query" if kind == "neighbours" else "group"), range(result["inputs"]["val"])
    try:
        rows = [{**row, "nearest": row["nearest"][:MOST]} for row in result.get(kind, []) if row["nearest"]]
        rows = rows[:: max(1, -(-len(rows) // MOST))]
        whole = [value for row in rows for value in (row[number], row.get("count", 0))]
        shown = [place for row in rows for place in (*row["nearest"], row.get("query", 0))]
    except (TypeError, KeyError, AttributeError):
        rows, whole, shown = [], [None], []
    if any(type(value) is not int for value in whole + shown) or any(place not in images for place in shown):
        raise UsageError(f"the {kind} that the diagnostics of run {result.get('run_id')} hold are not of its images")
    return rows


def neighbours_figure(result: dict[str, Any], images: Images) -> Figure:
    """Draw a line a query: it, a gap, and its nearest others, framed by whether they are of its class."""
    rows = _lines_of(result, "neighbours")
    return _sheet([Line((), row["query"], row["nearest"], int(images.labels[row["query"]])) for row in rows], images)


def groups_figure(result: dict[str, Any], images: Images) -> Figure:
    """Draw a line a group: its number and images, and those nearest to it, framed by whether they are of the commonest
    class among these."""
    return _sheet([_group(row, images) for row in _lines_of(result, "groups")], images)


def _group(row: dict[str, Any], images: Images) -> Line:
    counts = np.bincount(images.labels[row["nearest"]])
    own = int(counts.argmax())
    share = f"{counts[own]} of {len(row['nearest'])}: {images.classes[own]}"
    return Line((f"group {row['group']}", f"{row['count']} images", share), None, row["nearest"], own)


def _sheet(lines: Sequence[Line], images: Images) -> Figure:
    found = {at: images[index] for number, line in enumerate(lines) for at, index in _places(number, line)}
    side = min(SIDE, max(min(image.shape[:2]) for image in found.values()))
    columns, lead = max(len(line.shown) for line in lines), any(line.lead is not None for line in lines)
    with style() as venue:
        layout = Layout(venue.text, side, len(lines), columns, lead)
        figure = Figure(figsize=(venue.text, layout.room(layout.height)))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        # as it is: each file keeps the pictures' own pixels, and whoever shows it makes them larger
        extent = (0, layout.width, layout.height, 0)
        ax.imshow(_canvas(layout, found), extent=extent, interpolation="none", aspect="auto")
        for number, line in enumerate(lines):
            _explain(ax, layout, number, line, images)
        _frame(ax, layout, lines, images)
    return figure


def _canvas(layout: Layout, found: dict[Place, np.ndarray]) -> np.ndarray:
    """Return all pictures in their places, uint8 RGBA [height, width, 4], clear between them."""
    clear = 255, 255, 255, 0  # white, for viewers that smooth the edges of pictures
    canvas = np.full((layout.height, layout.width, 4), clear, np.uint8)
    for at, image in found.items():
        x, y = layout.corner(*at)
        canvas[y : y + layout.side, x : x + layout.side] = _square(image, layout.side)
    return canvas


def _places(number: int, line: Line) -> Iterator[tuple[Place, int]]:
    """Yield where each picture of a line stands, and which image it is."""
    if line.lead is not None:
        yield (number, LEAD), line.lead
    for place, index in enumerate(line.shown):
        yield (number, place), index


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """Return the middle square of an image, uint8 RGBA [side, side, 4]."""
    import cv2

    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    patch = np.ascontiguousarray(image[top : top + edge, left : left + edge])
    patch = cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA) if edge != side else patch
    return cv2.cvtColor(patch, cv2.COLOR_RGB2RGBA)


def _explain(ax: Axes, layout: Layout, number: int, line: Line, images: Images) -> None:
    """Write what a line is at its left, and beneath a picture its class: the query's, and those that are not own."""
    x, y = layout.corner(number, LEAD)
    words = "\n".join(fitted(text, layout.room(layout.left - 2 * x), WORDS) for text in line.words)
    ax.text(x, y + layout.side / 2, words, fontsize=WORDS, va="center", linespacing=1.35)
    for at, index in _places(number, line):
        label = int(images.labels[index])
        if at[1] == LEAD or label != line.own:
            x, y = layout.corner(*at)
            name = fitted(images.classes[label], layout.room(layout.step), NAMES)
            ax.text(x + layout.side / 2, y + layout.side * 1.19, name, fontsize=NAMES, ha="center")


def _frame(ax: Axes, layout: Layout, lines: Sequence[Line], images: Images) -> None:
    """Frame the pictures, and say at the foot what the frames mean."""
    alike: dict[bool, list[Outline]] = {True: [], False: []}
    around = Affine2D().translate(-0.5, -0.5).scale(1.04 * layout.side).translate(layout.side / 2, layout.side / 2)
    square = around.transform_path(Outline.unit_rectangle())
    for number, line in enumerate(lines):
        for at, index in _places(number, line):
            there = Affine2D().translate(*layout.corner(*at)).transform_path(square)
            alike[int(images.labels[index]) == line.own] += [there] if at[1] != LEAD else []
    whose = "the query's class" if layout.lead else "the commonest class of the line"
    keys = {True: (SAME, whose), False: (OTHER, "another class")}
    for same, squares in alike.items():
        if squares:
            ax.add_patch(PathPatch(Outline.make_compound_path(*squares), facecolor="none", **keys[same][0]))
    handles = [Rectangle((0, 0), 1, 1, facecolor="none", label=text, **marks) for marks, text in keys.values()]
    ax.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=6, borderaxespad=0.1,
              borderpad=0.1, handlelength=1, handleheight=1)  # fmt: skip


def _of_neighbours(lines: list[dict[str, Any]], who: str) -> str:
    return (
        f"Validation images of {who}. Each line begins with a query, one of {len(lines)} at even steps through the "
        f"set; then come its nearest others by the cosine of the backbone's features, the nearest first. Solid blue "
        "frame: of the query's class. Dashed orange frame: of another, which is named beneath."
    )


def _of_groups(lines: list[dict[str, Any]], who: str) -> str:
    return (
        f"Validation images of {who}, in the groups that the momentum branch assigns them to: {len(lines)} groups at "
        "even steps down from the largest, all with enough images to fill a line. Each line has a group's number, how "
        "many images belong to it, and those of them that are nearest to it by cosine, the nearest first. "
        "Solid blue frame: of the commonest class among these, which is counted and named at the left. Dashed orange "
        "frame: of another, which is named beneath."
    )


KINDS: dict[str, tuple[str, Callable[..., str], Callable[..., Figure]]] = {
    "neighbours": ("Nearest neighbours", _of_neighbours, neighbours_figure),
    "groups": ("Groups", _of_groups, groups_figure),
}
