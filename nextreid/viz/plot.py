"""What every plot is made of: matplotlib without a display, colours that all can tell apart, and two styles."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from nextreid._names import unknown

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito's set that differ under every common colour blindness, without the yellow."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h", ">", "p")
LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
SAME, DIFFERENT, INK, FAINT = OKABE_ITO[0], OKABE_ITO[1], "#20242b", "#6b7280"

_LOCK = threading.Lock()  # matplotlib's settings belong to the whole process
_GLYPHS = ("Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "WenQuanYi Micro Hei")
_SHARED = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # type 3 fonts are what conferences reject
    "svg.hashsalt": "nextreid",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def _sizes(text: float, line: float) -> dict[str, Any]:
    return {
        "font.size": text,
        "axes.titlesize": text,
        "axes.labelsize": text,
        "xtick.labelsize": text - 1,
        "ytick.labelsize": text - 1,
        "legend.fontsize": text - 1,
        "lines.linewidth": line,
        "lines.markersize": 4 * line,
        "axes.linewidth": 0.45 * line,
        "xtick.major.width": 0.45 * line,
        "ytick.major.width": 0.45 * line,
    }


@dataclass(frozen=True)
class Style:
    """How a plot looks.

    Attributes:
        settings: matplotlib's, besides those that all styles share.
        panel: Width and height of one panel in inches.
        widest: Width at most in inches; panels shrink before it is passed.
    """

    settings: Mapping[str, Any]
    panel: tuple[float, float]
    widest: float


STYLES = {
    "light": Style(
        {**_sizes(9.5, 1.5), "figure.dpi": 120, "axes.grid": True, "grid.color": "#e3e6eb", "grid.linewidth": 0.7},
        (3.5, 2.8),
        14.0,
    ),
    "print": Style({**_sizes(7.5, 1.1), "figure.dpi": 300}, (2.3, 1.95), 7.0),
}
"""``"light"`` for screens and slides, ``"print"`` for the page of a paper, which is 7 inches wide."""


@dataclass(frozen=True)
class Plot:
    """A plot and what has to be said of it.

    Attributes:
        figure: A ``matplotlib.figure.Figure``, which may be changed before it is saved.
        caption: What was drawn and how it was chosen, in sentences; the files hold it as description.
    """

    figure: Any
    caption: str

    def image(self) -> Image.Image:
        """The plot as pixels, RGB."""
        data = BytesIO()
        self.write(data, "png")
        return Image.open(data).convert("RGB")

    def write(self, file: BytesIO | Path, format: str) -> None:
        """Write as ``"png"``, ``"pdf"`` or ``"svg"``: letters stay letters or outlines, and no date is kept."""
        about: dict[str, dict[str, str | None]] = {
            "png": {"Description": self.caption, "Software": None},
            "pdf": {"Subject": self.caption, "CreationDate": None, "Producer": None, "Creator": None},
            "svg": {"Description": self.caption, "Date": None, "Creator": None},
        }
        with _settings({}), warnings.catch_warnings():
            warnings.filterwarnings("once", message="Glyph .* missing from font")
            self.figure.savefig(file, format=format, dpi="figure", metadata=about[format])


def get_style(name: str) -> Style:
    """The style of a name; ValueError if there is none."""
    if name not in STYLES:
        raise ValueError(unknown("style", name, STYLES))
    return STYLES[name]


def draw(style: str, panels: int, paint: Callable[[Any, Any], str], columns: int = 4, height: float = 1.0) -> Plot:
    """Make a figure of panels side by side, as many in a row as the style has room for, and let a function paint them.

    Args:
        style: One of `STYLES`.
        panels: Number of panels, at least 1.
        paint: Called with the figure and the array of its panels, ``(panels,)``; returns the caption.
        columns: Panels in a row, at most.
        height: Factor of a panel's height.

    Returns:
        The plot.

    Raises:
        ValueError: If the style is unknown.
        ImportError: matplotlib is not installed.

    Example:
        >>> draw("print", 1, lambda figure, axes: axes[0].set_title("empty") and "One empty panel.").caption
        'One empty panel.'
    """
    chosen = get_style(style)
    with _settings(chosen.settings) as matplotlib:
        across = min(panels, columns)
        down = -(-panels // across)
        width = min(across * chosen.panel[0], chosen.widest)
        size = width, down * chosen.panel[1] * height * min(1.0, width / (across * chosen.panel[0]) + 0.15)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for empty in axes[panels:]:
            empty.remove()
        caption = paint(figure, axes[:panels])
        return Plot(figure, caption)


def colour_and_line(number: int) -> dict[str, Any]:
    """Colour and line style of the n-th line; 28 differ."""
    return {"color": OKABE_ITO[number % len(OKABE_ITO)], "linestyle": LINES[number % len(LINES)]}


def colour_and_marker(number: int) -> dict[str, Any]:
    """Colour and mark of the n-th group of points; 12 marks and 84 pairs differ."""
    return {"color": OKABE_ITO[number % len(OKABE_ITO)], "marker": MARKERS[number % len(MARKERS)]}


@contextmanager
def _settings(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Import matplotlib and hold its settings inside; pyplot, which would want a display, is never loaded."""
    try:
        import matplotlib.figure
        from matplotlib import font_manager
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "nextreid[figures]"') from error
    with _LOCK:
        there = set(font_manager.get_font_names())
        # DejaVu Sans comes with matplotlib; others only lend the glyphs that it does not have.
        fonts = {"font.family": ["DejaVu Sans", *(name for name in _GLYPHS if name in there)]}
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever a matplotlibrc of the user says
            matplotlib.rcParams.update({**_SHARED, **fonts, **settings})
            yield matplotlib
