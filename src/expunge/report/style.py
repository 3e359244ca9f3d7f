"""The look of all charts, and how a figure becomes SVG that lives inside a page.

Charts are drawn in sentinel colours for ink, paper and grid; in the SVG these become CSS variables, so
that one picture serves a light and a dark page. Text stays text and takes the font of the page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, BAND = "#1a1b1c", "#6a6b6c", "#dadbdc", "#fefdfc", "#8a9bac"

# Okabe and Ito's colours, safe for the colour-blind; those that read on light and dark pages alike.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6bb3")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
ORIGINAL, RETRAINED = MUTED, INK

# From "as near as another retrain" to "far away"; the text on it is dark up to the fourth.
STEPS = ("#dceaf3", "#fbe3c4", "#f6bf85", "#e98f4a", "#c9571c", "#8f3208")
DARK_TEXT, LIGHT_TEXT = "#1d1d1b", "#ffffff"

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    BAND: "--band",
    **{color: f"--mark-{i + 1}" for i, color in enumerate(PALETTE)},
}
_SETTINGS: dict[str, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expunge",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "hatch.linewidth": 0.8,
}


@contextmanager
def style() -> Iterator[None]:
    """The settings of every chart, for as long as it is drawn; the caller's come back afterwards."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def figure(width: float, height: float, margins: tuple[float, float, float, float] | None = None) -> Figure:
    """A figure of so many inches, with a transparent ground.

    ``margins`` (left, bottom, right and top, in inches) spare the search for a layout.
    """
    drawn = Figure(figsize=(width, height), dpi=72, layout=None if margins else "constrained")
    if margins:
        left, bottom, right, top = margins
        drawn.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    FigureCanvasSVG(drawn)
    drawn.patch.set_alpha(0)
    return drawn


def to_svg(drawn: Figure, name: str, description: str) -> str:
    """Inline SVG: the same bytes for the same figure, no header, nothing loaded from elsewhere.

    ``name`` keeps the ids of several charts on one page apart.
    """
    stream = io.StringIO()
    drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--font, sans-serif)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', text).groups()  # type: ignore[union-attr]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escape(description)}"'
    head += f' style="--width: {float(width) * 4 / 3:.0f}px"'
    return re.sub(r"<svg [^>]*", head, text, count=1).strip()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
