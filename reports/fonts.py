"""The figures' font: DejaVu Sans, which comes with matplotlib, cut down to common letters, and what it can draw.

matplotlib embeds in each PDF only the letters that it shows, and reads the whole font for that: with 6,000 letters in
it that takes longer than drawing the figure. The small font is made once and lies in matplotlib's cache.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from smog.store import write_atomically

WHOLE, SMALL = "DejaVu Sans", "DejaVu Sans Small"
# ASCII, the Latin and Greek alphabets, dashes and quotes, and a few signs
LETTERS = (*range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x370, 0x400), *range(0x2010, 0x2028), 0x20AC, 0x2190,
           0x2191, 0x2192, 0x2193, 0x2212, 0x2248, 0x2264, 0x2265, 0xFFFD)  # fmt: skip
UNUSED = ["FFTM", "GDEF", "GPOS", "GSUB", "MATH"]  # tables; without features of layout they only take time
UNKNOWN = "\ufffd"


@cache
def families() -> list[str]:
    """Return the families to draw with: the small font, and the whole one for the letters that it lacks."""
    whole = Path(font_manager.findfont(WHOLE))
    identity = hashlib.sha256(repr((LETTERS, SMALL, UNUSED)).encode() + whole.read_bytes()).hexdigest()[:12]
    small = Path(mpl.get_cachedir()) / f"smog-font-{identity}.ttf"
    if not small.is_file():
        _cut(whole, small)
    font_manager.fontManager.addfont(small)
    return [SMALL, WHOLE]


def _cut(whole: Path, small: Path) -> None:
    from fontTools import subset

    options = subset.Options(layout_features=[], notdef_outline=True)
    options.drop_tables += UNUSED
    font = subset.load_font(str(whole), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=LETTERS)
    cutter.subset(font)
    for name in font["name"].names:
        if name.nameID in (1, 4, 16):
            name.string = SMALL
        if name.nameID == 6:  # the name within a PDF, which allows no spaces
            name.string = SMALL.replace(" ", "")
    write_atomically(small, font.save)


def _whole() -> FT2Font:
    """Return the whole font, as matplotlib keeps it: anew in a forked process, as that shares the file's position."""
    return font_manager.get_font(font_manager.findfont(WHOLE))


@cache
def _advance(letter: str) -> float:
    """Return how far a letter of 1 pt reaches, in points."""
    font = _whole()
    font.set_size(100, 72)
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 100


def width(text: str, size: float) -> float:
    """Return the width of a text of one or more lines in inches, at a font size in points."""
    return max(sum(map(_advance, line)) for line in text.split("\n")) * size / 72


def legible(text: object, most: int = 60) -> str:
    """Return a text as a figure can show it: one line, letters that the font has, at most so many of them."""
    line = " ".join(str(text).split())
    known = "".join(letter if _known(letter) else UNKNOWN for letter in line)
    return known if len(known) <= most else known[: most // 2] + "…" + known[len(known) - (most - 1) // 2 :]


@cache
def _known(letter: str) -> bool:
    return letter.isprintable() and _whole().get_char_index(ord(letter)) > 0


def fitted(text: object, room: float, size: float) -> str:
    """Return a text cut in its middle so far that it takes no more than so many inches."""
    shown = legible(text)
    while len(shown) > 3 and width(shown, size) > room:
        shown = legible(shown, len(shown) - 1)
    return shown
