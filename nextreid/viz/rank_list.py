"""Rank lists: each query beside its nearest gallery entries, correct and wrong told apart by colour and by shape."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from nextreid.data.sample import Sample

from .drawing import (
    BLACK,
    CORRECT,
    GREY,
    LIGHT,
    MARGIN,
    TEXT,
    WRONG,
    Canvas,
    Size,
    check_modalities,
    draw_image,
    font,
    hatched,
    mark,
    size_to_draw,
)

_FRAME = 4
_INSET = _FRAME + 2  # from the outer edge of a frame to the images
_GAP = 12  # between neighbouring entries
_HEAD = 26  # above an entry: its rank and mark
_CAPTION = 36  # below an entry: identity and camera
_LABELS = 40  # left of the queries: names of the modalities
_LEGEND_WIDTH = 500


def rank_list_image(
    queries: Sequence[Sample],
    gallery: Sequence[Sample],
    indices: np.ndarray,
    matches: np.ndarray,
    modalities: Sequence[str],
    *,
    image_size: int = 144,
) -> Image.Image:
    """Draw one row per query: its modalities stacked, then its k nearest gallery entries.

    A correct entry has a solid frame and a tick in a disc; a wrong one a dashed frame and a cross in a square.

    Args:
        queries: Q samples.
        gallery: G samples.
        indices: ``(Q, k)`` gallery indices, nearest first; -1 where there is no entry (see `nextreid.retrieval.top_k`).
        matches: ``(Q, k)`` bool, whether an entry shows the query's identity.
        modalities: M names, in the order of the samples' images.
        image_size: Longer side of one drawn image, in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: If shapes do not fit each other, an index lies outside the gallery, or there is nothing to draw.
    """
    indices, matches = np.asarray(indices), np.asarray(matches)
    if indices.ndim != 2 or 0 in indices.shape or indices.shape != matches.shape or len(indices) != len(queries):
        raise ValueError(
            f"indices and matches must both be (queries, k) and not empty; got {indices.shape} and {matches.shape} "
            f"for {len(queries)} queries"
        )
    if indices.max() >= len(gallery) or indices.min() < -1:
        raise ValueError(
            f"indices must lie in [-1, {len(gallery)}) for {len(gallery)} gallery samples; "
            f"got values from {indices.min()} to {indices.max()}"
        )
    check_modalities([*queries, *(gallery[i] for i in np.unique(indices) if i >= 0)], modalities)
    size = size_to_draw(queries, image_size)
    width, height = size[0] + 2 * _INSET, len(modalities) * (size[1] + 2) - 2 + 2 * _INSET
    step = width + _GAP
    top, row = MARGIN + 40, _HEAD + height + _CAPTION + 20
    total = MARGIN + _LABELS + step + _GAP + indices.shape[1] * step - _GAP + MARGIN
    canvas = Canvas(max(total, _LEGEND_WIDTH), top + len(queries) * row - 20 + MARGIN)
    canvas.legend(
        [(_symbol(True), "same identity"), (_symbol(False), "other identity"), (hatched((30, 20)), "no image")]
    )
    for q, query in enumerate(queries):
        x, y = MARGIN + _LABELS, top + q * row
        head, foot = y + _HEAD, y + _HEAD + height
        for m, name in enumerate(modalities):
            middle = head + _INSET + m * (size[1] + 2) + size[1] // 2
            canvas.text((MARGIN, middle), name.upper(), "lm", width=_LABELS - 4)
        canvas.text((x + width // 2, y + _HEAD // 2), "query", "mm", size=TEXT + 1)
        _draw_sample(canvas, (x, head, x + width, foot), query, size)
        canvas.frame((x, head, x + width, foot), BLACK, 2)
        x += step
        canvas.draw.line([(x - 1, y), (x - 1, foot + _CAPTION)], fill=LIGHT, width=2)
        x += _GAP
        for place, (index, correct) in enumerate(zip(indices[q], matches[q].astype(bool).tolist(), strict=True), 1):
            box, middle = (x, head, x + width, foot), x + width // 2
            if index < 0:
                canvas.text((middle, y + _HEAD // 2), str(place), "mm", GREY, size=TEXT + 1)
                canvas.frame(box, LIGHT, 1)
                canvas.text((middle, head + height // 2), "no entry", "mm", GREY)
            else:
                _draw_rank(canvas, middle, y + _HEAD // 2, str(place), correct)
                _draw_sample(canvas, box, gallery[index], size)
                canvas.frame(box, CORRECT if correct else WRONG, _FRAME, dashed=not correct)
            x += step
    return canvas.image


def _draw_sample(canvas: Canvas, box: tuple[int, int, int, int], sample: Sample, size: Size) -> None:
    """Stack the images of a sample in a box, identity and place below."""
    x, y, right, bottom = box
    for m, source in enumerate(sample.images):
        canvas.image.paste(draw_image(source, size), (x + _INSET, y + _INSET + m * (size[1] + 2)))
    place = [f"{label} {value}" for label, value in (("cam", sample.camid), ("scene", sample.sceneid)) if value >= 0]
    for line, (text, colour) in enumerate([(f"id {sample.pid}", BLACK), (", ".join(place), GREY)]):
        at = ((x + right) // 2, bottom + 6 + line * (TEXT + 3))
        canvas.text(at, text, "mt", colour, right - x + _GAP - 2)


def _draw_rank(canvas: Canvas, x: int, y: int, rank: str, correct: bool) -> None:
    """Centre a rank and its mark at (x, y)."""
    badge = mark(correct, 17)
    length = font(TEXT + 1).getlength(rank) + 6 + badge.width
    left = round(x - length / 2)
    canvas.text((left, y), rank, "lm", size=TEXT + 1)
    canvas.image.paste(badge, (round(left + length - badge.width), y - badge.height // 2), badge)


def _symbol(correct: bool) -> Image.Image:
    """Return the frame and the mark of an entry, for the legend."""
    canvas = Canvas(55, 20)
    canvas.frame((0, 0, 30, 20), CORRECT if correct else WRONG, 3, dashed=not correct)
    badge = mark(correct, 17)
    canvas.image.paste(badge, (38, 2), badge)
    return canvas.image
