"""Caption sets beside each other: how much they do not know, how long they are, how far they tell identities apart."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from .plot import FAINT, INK, OKABE_ITO, Plot, draw

WINDOW = 77
"""Tokens of CLIP's text encoder, start and end included."""
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")


class CaptionFigures(Protocol):
    """What is drawn of the captions of one set and modality; `nextreid.captioning.Quality` has it."""

    @property
    def unknown(self) -> float:
        """Share of captions that say "unknown" or the like."""

    @property
    def tokens(self) -> np.ndarray:
        """Their lengths, ``(n,)``, at least one."""

    @property
    def agreement(self) -> tuple[float, float]:
        """How alike captions of one identity are, and of two; nan where no pair is known."""


def captions_plot(sets: Mapping[str, Mapping[str, CaptionFigures]], caption: str = "", *, style: str = "light") -> Plot:
    """Draw unknown rate, length and agreement of caption sets by modality (NEXT, Fig. 2).

    Args:
        sets: Figures by the set's name, then by modality.
        caption: What has to be said of the plot.
        style: One of `plot.STYLES`.

    Returns:
        The plot.

    Raises:
        ValueError: If there is no caption set, or more than can be distinguished.
    """
    modalities = list(dict.fromkeys(modality for found in sets.values() for modality in found))
    if not modalities or len(sets) > len(_HATCHES):
        raise ValueError(f"{len(sets)} caption sets cannot be drawn: 1 to {len(_HATCHES)} with captions can")
    width = 0.8 / len(sets)
    spread = not all(np.isnan(f.agreement).any() for found in sets.values() for f in found.values())

    def paint(figure: Any, axes: Any) -> str:
        for number, (name, found) in enumerate(sets.items()):
            colour = OKABE_ITO[number]
            for place, modality in enumerate(modalities):
                if modality not in found:
                    continue
                figures, x = found[modality], place + (number + 0.5) * width - 0.4
                bar = axes[0].bar(
                    x, 100 * figures.unknown, 0.9 * width, color=colour, alpha=0.85, hatch=_HATCHES[number],
                    edgecolor="white", linewidth=0, label=name,
                )  # fmt: skip
                axes[0].bar_label(bar, fmt="%.0f" if figures.unknown >= 0.1 else "%.1f", fontsize="small", padding=1)
                _box(axes[1], x, figures.tokens, width, colour)
                if spread:
                    _dumbbell(axes[2], x, figures, colour)
        for axis, title in zip(
            axes,
            ("unknown, % of captions", "length, tokens", "agreement: \u25cf same, \u25cb other identity"),
            strict=False,
        ):
            axis.set_title(title)
            axis.set_xticks(range(len(modalities)), [name.upper() for name in modalities])
            axis.set_xlim(-0.6, len(modalities) - 0.4)
            axis.tick_params(axis="x", length=0)
            axis.grid(False, axis="x")
            axis.set_ylim(bottom=0)
        axes[0].set_ylim(0, max(1.0, 1.12 * axes[0].dataLim.y1))
        if axes[1].get_ylim()[1] > WINDOW:
            axes[1].axhline(WINDOW, color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
            axes[1].set_title(f"length, tokens (dashed: CLIP's {WINDOW})")
        if spread:
            axes[2].set_ylim(0, 1)
        if len(sets) > 1:
            by_name = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
            figure.legend(by_name.values(), by_name, loc="outside upper center", ncols=len(sets))
        return caption

    return draw(style, 2 + spread, paint, columns=3)


def _box(axis: Any, x: float, tokens: np.ndarray, width: float, colour: str) -> None:
    """Draw 5 to 95 % as a line, 25 to 75 % as a box, and the median."""
    low, first, middle, third, high = np.percentile(tokens, [5, 25, 50, 75, 95])
    axis.vlines(x, low, high, color=colour, linewidth=1)
    axis.bar(x, max(third - first, 0.4), 0.7 * width, first, color=colour, alpha=0.85)
    axis.hlines(middle, x - 0.35 * width, x + 0.35 * width, color=INK, linewidth=1.2)


def _dumbbell(axis: Any, x: float, figures: CaptionFigures, colour: str) -> None:
    """Draw how alike captions of one identity are, a disc, and of two, a ring."""
    same, other = figures.agreement
    axis.vlines(x, other, same, color=colour, linewidth=1)
    axis.plot(x, same, "o", color=colour)
    axis.plot(x, other, "o", color=colour, markerfacecolor="white")
