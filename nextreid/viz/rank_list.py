"""Rank lists: each query beside its nearest gallery entries, right and wrong told apart by colour and by shape."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from nextreid.data.sample import Sample

from .drawing import (
    FAINT,
    INK,
    PAPER,
    RIGHT,
    RULE,
    WRONG,
    Size,
    draw_image,
    fit_text,
    font,
    frame,
    hatched,
    mark,
    size_to_draw,
)

_MARGIN = 24
_FRAME = 4
_INSET = _FRAME + 2  # from the outer edge of a frame to the images
_GAP = 12  # between neighbouring cards
_HEAD = 26  # above a card: its rank and mark
_CAPTION = 36  # below a card: identity and camera
_LABELS = 40  # left of the queries: names of the modalities
_TEXT = 13
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
    """Draw one block per query: its modalities stacked, then its k nearest gallery entries.

    A right entry has a solid frame and a tick in a disc; a wrong one a dashed frame and a cross in a square.

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
    _check(queries, gallery, indices, matches, modalities)
    size = size_to_draw(queries, image_size)
    width, height = _card_size(size, len(modalities))
    step = width + _GAP
    top = _MARGIN + 40
    block = _HEAD + height + _CAPTION + 20
    total = _MARGIN + _LABELS + step + _GAP + indices.shape[1] * step - _GAP + _MARGIN
    canvas = Image.new("RGB", (max(total, _LEGEND_WIDTH), top + len(queries) * block - 20 + _MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_legend(canvas, draw)
    for q, query in enumerate(queries):
        y = top + q * block
        for m, name in enumerate(modalities):
            middle = y + _HEAD + _INSET + m * (size[1] + 2) + size[1] // 2
            draw.text((_MARGIN, middle), fit_text(name.upper(), _TEXT, _LABELS - 4), INK, font(_TEXT), anchor="lm")
        x = _MARGIN + _LABELS
        draw.text((x + width // 2, y + _HEAD // 2), "query", INK, font(_TEXT + 1), anchor="mm")
        _draw_card(canvas, draw, (x, y + _HEAD), query, size, len(modalities), None)
        x += step
        draw.line([(x - 1, y), (x - 1, y + _HEAD + height + _CAPTION)], fill=RULE, width=2)
        x += _GAP
        for place, index in enumerate(indices[q]):
            sample = gallery[index] if index >= 0 else None
            right = bool(matches[q, place]) if sample else None
            _draw_head(canvas, draw, x + width // 2, y + _HEAD // 2, str(place + 1), right)
            _draw_card(canvas, draw, (x, y + _HEAD), sample, size, len(modalities), right)
            x += step
    return canvas


def _check(
    queries: Sequence[Sample],
    gallery: Sequence[Sample],
    indices: np.ndarray,
    matches: np.ndarray,
    modalities: Sequence[str],
) -> None:
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
    for sample in [*queries, *(gallery[i] for i in np.unique(indices) if i >= 0)]:
        if len(sample.images) != len(modalities):
            raise ValueError(
                f"sample {sample.key!r} has {len(sample.images)} images but modalities are {', '.join(modalities)}"
            )


def _card_size(size: Size, num_modalities: int) -> Size:
    return size[0] + 2 * _INSET, num_modalities * (size[1] + 2) - 2 + 2 * _INSET


def _draw_card(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    sample: Sample | None,
    size: Size,
    num_modalities: int,
    right: bool | None,
) -> None:
    """Draw stacked images with frame and caption; `right` None is a query, `sample` None an empty place."""
    x, y = corner
    width, height = _card_size(size, num_modalities)
    box = (x, y, x + width, y + height)
    if sample is None:
        frame(draw, box, RULE, 1, dashed=False)
        draw.text((x + width // 2, y + height // 2), "no entry", FAINT, font(_TEXT), anchor="mm")
        return
    for m, source in enumerate(sample.images):
        canvas.paste(draw_image(source, size), (x + _INSET, y + _INSET + m * (size[1] + 2)))
    if right is None:
        frame(draw, box, INK, 2, dashed=False)
    else:
        frame(draw, box, RIGHT if right else WRONG, _FRAME, dashed=not right)
    place = [f"{label} {value}" for label, value in (("cam", sample.camid), ("scene", sample.sceneid)) if value >= 0]
    for line, text in enumerate((f"id {sample.pid}", ", ".join(place))):
        at = (x + width // 2, y + height + 6 + line * (_TEXT + 3))
        draw.text(at, fit_text(text, _TEXT, width + _GAP - 2), FAINT if line else INK, font(_TEXT), anchor="mt")


def _draw_head(canvas: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, text: str, right: bool | None) -> None:
    """Centre a rank and its mark at (x, y)."""
    if right is None:
        draw.text((x, y), text, FAINT, font(_TEXT + 1), anchor="mm")
        return
    badge = mark("right" if right else "wrong", 17)
    length = font(_TEXT + 1).getlength(text) + 6 + badge.width
    left = round(x - length / 2)
    draw.text((left, y), text, INK, font(_TEXT + 1), anchor="lm")
    canvas.paste(badge, (round(left + length - badge.width), y - badge.height // 2), badge)


def _draw_legend(canvas: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    y = _MARGIN + 8
    x = _MARGIN
    for kind, text in (("right", "same identity"), ("wrong", "other identity"), ("missing", "no image")):
        box = (x, y - 10, x + 30, y + 10)
        if kind == "missing":
            canvas.paste(hatched((30, 20)), box[:2])
            x += 38
        else:
            frame(draw, box, RIGHT if kind == "right" else WRONG, 3, dashed=kind == "wrong")
            badge = mark("right" if kind == "right" else "wrong", 17)
            canvas.paste(badge, (x + 38, y - 8), badge)
            x += 62
        draw.text((x, y), text, INK, font(_TEXT), anchor="lm")
        x += round(font(_TEXT).getlength(text)) + 26
