"""Embeddings on a plane: one panel for each model, the same samples in the same colours and marks."""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from .plot import FAINT, Plot, colour_and_marker, draw

_LISTED = 24  # identities that a legend can name
_LARGER = {"*": 2.0, "P": 1.6, "X": 1.5, "^": 1.2, "v": 1.2}  # marks that look smaller than others


def space_plot(
    points: Mapping[str, np.ndarray],
    labels: Sequence[str],
    notes: Mapping[str, str],
    caption: str = "",
    *,
    style: str = "light",
) -> Plot:
    """Draw the same n samples as points of several planes; an identity has its colour and its mark in all of them.

    Args:
        points: ``(n, 2)`` for each model by its name.
        labels: What each sample shows, such as its identity, ``(n,)``.
        notes: What to write above each panel, by the model's name.
        caption: What has to be said of the plot.
        style: One of `plot.STYLES`.

    Returns:
        The plot.

    Raises:
        ValueError: If there is no model or no sample, or the numbers of points and labels differ.
    """
    if not points or not len(labels):
        raise ValueError(f"there is nothing to draw: {len(points)} models, {len(labels)} samples")
    for name, found in points.items():
        if np.shape(found) != (len(labels), 2):
            raise ValueError(f"points of {name} must be ({len(labels)}, 2), got {np.shape(found)}")
    groups = list(dict.fromkeys(labels))
    rows = {group: np.array([label == group for label in labels]) for group in groups}
    size = float(np.clip(3000 / len(labels), 8, 34)) * (1.0 if style == "light" else 0.6)

    def paint(figure: Any, axes: Any) -> str:
        for letter, axis, (name, found) in zip(_letters(len(points)), axes, points.items(), strict=True):
            for number, group in enumerate(groups):
                look = colour_and_marker(number)
                axis.scatter(
                    *found[rows[group]].T,
                    s=size * _LARGER.get(look["marker"], 1.0),
                    **look,
                    alpha=0.85,
                    linewidths=0.2,
                    edgecolors="white",
                    label=group if axis is axes[0] else None,
                )
            axis.set_title(f"{letter}{name}\n{notes.get(name, '')}".rstrip())
            axis.set(xticks=[], yticks=[])
            axis.margins(0.06)
            axis.set_aspect("equal", adjustable="datalim")
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color(FAINT)
        if 1 < len(groups) <= _LISTED:
            columns = 1 if len(groups) <= 12 else 2
            figure.legend(
                loc="outside right center",
                ncols=columns,
                handletextpad=0.2,
                borderaxespad=0.2,
                columnspacing=0.8,
                markerscale=(34 / size * (1.0 if style == "light" else 0.6)) ** 0.5,
                title="identity",
            )
        return caption

    return draw(style, len(points), paint, columns=3)


def _letters(count: int) -> list[str]:
    """``"(a) "``, ``"(b) "``, ...; nothing for a single panel."""
    if count == 1:
        return [""]
    return [f"({ascii_lowercase[i]}) " if i < len(ascii_lowercase) else "" for i in range(count)]
