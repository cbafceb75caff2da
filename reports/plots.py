"""The look of the figures: style, colours, sizes of venues, and files equal byte for byte."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reports import fonts
from smog.errors import UsageError, nearest

INK, PAPER, GREY = "#1b1b1b", "#ffffff", "#808080"  # the page replaces the first two by its own colours
BLUE, ORANGE = "#0072b2", "#d55e00"
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#808080")  # Okabe and Ito
MARKERS = "os^DvP<X>ph*"  # what a print without colours tells apart
STYLE: Any = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
    "text.parse_math": False, "pdf.fonttype": 42, "svg.hashsalt": "smog", "savefig.dpi": 200,
}  # fmt: skip
WITHOUT_DATES: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}
QUICK: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}}  # a third faster than the usual 6, 3 % larger
VENUES = {  # the names that tueplots has for the width of the text, that of a column, and the fonts
    "eccv": ("eccv2024", "eccv2024", "eccv2024"),
    "cvpr": ("cvpr2024_full", "cvpr2024_half", "cvpr2024"),
    "neurips": ("neurips2024", "neurips2024", "neurips2024"),
}
NARROWEST = 1.55  # inches of a panel
LONG_DIGITS = re.compile(rb"(\.\d\d)\d+")
PLACES = re.compile(rb'( d="[^"]*"|(?<=<use )[^>]*)')


@dataclass(frozen=True)
class Venue:
    """What a venue prints: the width of its text and of a column in inches, and font sizes as matplotlib names them."""

    name: str
    text: float
    column: float
    fonts: tuple[tuple[str, float], ...]

    def across(self, count: int) -> int:
        """Return how many of the panels stand side by side."""
        return max(1, min(count, 3, int(self.text / NARROWEST)))


_chosen: ContextVar[str] = ContextVar("venue", default="eccv")


def venue(name: str) -> AbstractContextManager[Venue]:
    """Return a context in which figures have the widths and font sizes of a venue: eccv (default), cvpr, neurips."""
    if name not in VENUES:
        raise UsageError(f"unknown venue {name!r}{nearest(name, VENUES)}")
    return _within(name)


@contextmanager
def _within(name: str) -> Iterator[Venue]:
    token = _chosen.set(name)
    try:
        yield _venue(name)
    finally:
        _chosen.reset(token)


@cache
def _venue(name: str) -> Venue:
    from tueplots import figsizes, fontsizes

    *widths, size = VENUES[name]
    text, column = (getattr(figsizes, one)(nrows=1, ncols=1)["figure.figsize"][0] for one in widths)
    return Venue(name, text, column, tuple(getattr(fontsizes, size)().items()))


def current() -> Venue:
    """Return the venue in use."""
    return _venue(_chosen.get())


@contextmanager
def style() -> Iterator[Venue]:
    """Draw in our style from matplotlib's defaults, whatever the machine's matplotlibrc says, for the venue in use."""
    chosen = current()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"font.family": fonts.families()} | dict(chosen.fonts))
        yield chosen


def save(figure: Figure, kind: str, keywords: str = "") -> bytes:
    """Return the figure as a PDF, SVG or PNG file that is the same byte for byte each time.

    ``keywords`` stand in the file's own metadata.
    """
    file = io.BytesIO()
    metadata = WITHOUT_DATES[kind] | ({"Keywords": keywords} if keywords else {})
    with style():
        figure.savefig(file, format=kind, metadata=metadata, **(QUICK if kind == "png" else {}))
    return _shorter(file.getvalue()) if kind == "svg" else file.getvalue()


def _shorter(svg: bytes) -> bytes:
    """Return an SVG whose places end after a hundredth of a point: two thirds of the size, and no eye sees more."""
    return PLACES.sub(lambda found: LONG_DIGITS.sub(rb"\1", found[0]), svg)
