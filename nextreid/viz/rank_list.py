"""Rank lists: each query beside its nearest gallery entries, right and wrong distinguished by colour and by shape."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from nextreid.data.sample import LabelNames, Sample

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
    describe_labels,
    draw_image,
    font,
    hatched,
    mark,
    readable,
    size_to_draw,
)

_FRAME = 4
_INSET = _FRAME + 2  # from the outer edge of a frame to the images
_GAP = 12  # between neighbouring entries
_COLUMN = 100  # pixels at least, so that names below the images can be read
_TITLE = 24  # above a query: what is to be said of it
_HEAD = 26  # above an entry: its rank and mark
_NAME = 11  # text height of file names
_LINES = 3  # of a file name
_LABELS = 40  # left of the queries: names of the modalities
_LEGEND_WIDTH = 500


def rank_list_image(
    queries: Sequence[Sample],
    gallery: Sequence[Sample],
    indices: np.ndarray,
    matches: np.ndarray,
    modalities: Sequence[str],
    *,
    scores: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
    titles: Sequence[str] = (),
    label_names: LabelNames | None = None,
    image_size: int = 144,
) -> Image.Image:
    """Draw one row per query: its modalities stacked, then its k nearest gallery entries, names and labels below.

    A correct entry has a solid frame and a tick in a disc; a wrong one a dashed frame and a cross in a square. Where
    the identity of query or entry is unknown there is nothing to judge: a thin grey frame, and no mark. One that the
    protocol ignores has a dashed grey frame, and a dash for its rank. Dark images are drawn brighter, and it says so.

    Args:
        queries: Q samples.
        gallery: G samples.
        indices: ``(Q, k)`` gallery indices, nearest first; -1 where there is no entry (see `nextreid.retrieval.top_k`).
        matches: ``(Q, k)`` bool, whether an entry shows the query's identity.
        modalities: M names, in the order of the samples' images.
        scores: ``(Q, k)`` similarities to write below the entries; None leaves them out.
        ignored: ``(Q, k)`` bool, entries that the protocol ignores; they take no rank. None for none.
        titles: A line above each query; none at all by default.
        label_names: What the files call identities, cameras and scenes; see `ReIDDataset`.
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
    if scores is not None and np.shape(scores) != indices.shape:
        raise ValueError(f"scores must have the shape of indices, {indices.shape}; got {np.shape(scores)}")
    if ignored is not None and np.shape(ignored) != indices.shape:
        raise ValueError(f"ignored must have the shape of indices, {indices.shape}; got {np.shape(ignored)}")
    if titles and len(titles) != len(queries):
        raise ValueError(f"{len(titles)} titles for {len(queries)} queries: give one each, or none")
    check_modalities([*queries, *(gallery[i] for i in np.unique(indices) if i >= 0)], modalities)
    size = size_to_draw([*queries, *gallery], image_size)
    width, height = size[0] + 2 * _INSET, len(modalities) * (size[1] + 2) - 2 + 2 * _INSET
    column, title = max(width, _COLUMN), _TITLE if titles else 0
    step, caption = column + _GAP, _LINES * (_NAME + 3) + (2 if scores is None else 3) * (TEXT + 3) + 6
    top, row = MARGIN + 40, title + _HEAD + height + caption + 20
    total = MARGIN + _LABELS + step + _GAP + indices.shape[1] * step - _GAP + MARGIN
    canvas = Canvas(max(total, _LEGEND_WIDTH), top + len(queries) * row - 20 + MARGIN)
    judged = [
        [query.pid >= 0 and i >= 0 and gallery[i].pid >= 0 for i in indices[q]] for q, query in enumerate(queries)
    ]
    entries = [(_symbol(True), "same identity"), (_symbol(False), "other identity"), (hatched((30, 20)), "no image")]
    if any(i >= 0 and not known for q, line in enumerate(judged) for i, known in zip(indices[q], line, strict=True)):
        entries.append((_symbol(None), "identity unknown"))
    if ignored is not None and np.any(ignored):
        entries.append((_symbol(None, ignored=True), "ignored"))
    end, dark = canvas.legend(entries), False
    for q, query in enumerate(queries):
        x, y = MARGIN + _LABELS, top + q * row
        if titles:
            canvas.text((MARGIN, y + _TITLE // 2), titles[q], "lm", width=total - 2 * MARGIN, size=TEXT + 1)
        y += title
        head, foot = y + _HEAD, y + _HEAD + height
        for m, name in enumerate(modalities):
            middle = head + _INSET + m * (size[1] + 2) + size[1] // 2
            canvas.text((MARGIN, middle), name.upper(), "lm", width=_LABELS - 4)
        canvas.text((x + column // 2, y + _HEAD // 2), "query", "mm", size=TEXT + 1)
        box, was_dark = _draw_sample(canvas, (x, head, x + column, foot), query, size, label_names)
        dark |= was_dark
        canvas.frame(box, BLACK, 2)
        x += step
        canvas.draw.line([(x - 1, y), (x - 1, foot + caption)], fill=LIGHT, width=2)
        x += _GAP
        rank = 0
        for place, (index, known) in enumerate(zip(indices[q].tolist(), judged[q], strict=True)):
            outer, middle = (x, head, x + column, foot), x + column // 2
            out = ignored is not None and bool(ignored[q, place])
            rank += not out
            if index < 0:
                canvas.text((middle, y + _HEAD // 2), str(rank), "mm", GREY, size=TEXT + 1)
                canvas.frame((middle - width // 2, head, middle - width // 2 + width, foot), LIGHT, 1)
                canvas.text((middle, head + height // 2), "no entry", "mm", GREY)
            else:
                correct = bool(matches[q, place]) if known and not out else None
                _draw_rank(canvas, middle, y + _HEAD // 2, "-" if out else str(rank), correct)
                score = None if scores is None else float(scores[q, place])
                box, was_dark = _draw_sample(canvas, outer, gallery[index], size, label_names, score)
                dark |= was_dark
                _draw_frame(canvas, box, correct, out)
            x += step
    if dark:
        canvas.text((end, MARGIN + 8), "dark images are drawn brighter", "lm", GREY)
    return canvas.image


def _draw_sample(
    canvas: Canvas,
    outer: tuple[int, int, int, int],
    sample: Sample,
    size: Size,
    names: LabelNames | None,
    score: float | None = None,
) -> tuple[tuple[int, int, int, int], bool]:
    """Stack the images of a sample in the middle of a column, its name, labels and score below.

    Returns:
        Their box, and whether any image was dark.
    """
    x, y, right, bottom = outer
    middle, width = (x + right) // 2, size[0] + 2 * _INSET
    left = middle - width // 2
    dark = False
    for m, source in enumerate(sample.images):
        image, was_dark = readable(draw_image(source, size))
        canvas.image.paste(image, (left + _INSET, y + _INSET + m * (size[1] + 2)))
        dark |= was_dark
    identity, place = describe_labels(sample, names)
    at, widest = bottom + 6, right - x + _GAP - 4
    at += (_NAME + 3) * canvas.paragraph((middle, at), sample.key, "mt", widest, _LINES, GREY, _NAME)
    for text, colour in ((identity, BLACK), (place, GREY), ("" if score is None else f"{score:.3f}", BLACK)):
        if text:
            canvas.text((middle, at), text, "mt", colour, widest)
            at += TEXT + 3
    return (left, y, left + width, bottom), dark


def _draw_frame(canvas: Canvas, box: tuple[int, int, int, int], correct: bool | None, ignored: bool = False) -> None:
    """Frame an entry: right, wrong, not to be judged, or ignored."""
    if correct is None:
        canvas.frame(box, GREY, 2 if ignored else 1, dashed=ignored)
    else:
        canvas.frame(box, CORRECT if correct else WRONG, _FRAME, dashed=not correct)


def _draw_rank(canvas: Canvas, x: int, y: int, rank: str, correct: bool | None) -> None:
    """Centre a rank and its mark, if it has one, at (x, y)."""
    if correct is None:
        canvas.text((x, y), rank, "mm", size=TEXT + 1)
        return
    badge = mark(correct, 17)
    length = font(TEXT + 1).getlength(rank) + 6 + badge.width
    left = round(x - length / 2)
    canvas.text((left, y), rank, "lm", size=TEXT + 1)
    canvas.image.paste(badge, (round(left + length - badge.width), y - badge.height // 2), badge)


def _symbol(correct: bool | None, ignored: bool = False) -> Image.Image:
    """Return the frame and the mark of an entry, for the legend."""
    canvas = Canvas(30 if correct is None else 55, 20)
    _draw_frame(canvas, (0, 0, 30, 20), correct, ignored)
    if correct is not None:
        badge = mark(correct, 17)
        canvas.image.paste(badge, (38, 2), badge)
    return canvas.image
