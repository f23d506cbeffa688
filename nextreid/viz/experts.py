"""What a model looks at: images with the patches that are kept, heat maps over them, sampled positions, gates."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from nextreid.data.sample import LabelNames, Sample

from .drawing import (
    BLACK,
    CORRECT,
    GREY,
    LIGHT,
    MARGIN,
    TEXT,
    WHITE,
    WRONG,
    Canvas,
    Size,
    check_modalities,
    describe_labels,
    draw_image,
    hatched,
    readable,
    size_to_draw,
)

_GAP = 10
_BETWEEN = 14  # further pixels between groups of columns
_BELOW = 22  # below an image: what is said of it
_LABELS = 44  # left of the images: names of the modalities
_HEAD = 44  # above the images: names of groups and columns
_CAPTION = 400  # right of the images: the caption of the modality
_CELL = (46, 30)  # of a panel's table
_ROW_NAME = 64
_VEIL = np.array([236, 239, 243], np.float32)
# dark violet to yellow through blue-green, evenly lighter
_SCALE = np.array([[60, 20, 90], [52, 78, 145], [32, 138, 140], [110, 196, 92], [250, 228, 60]], np.float32)


@dataclass(frozen=True)
class Column:
    """One image for each sample and modality.

    Attributes:
        group: What columns of one kind show together, written above them; heat maps of a group share their colours.
        title: Written above the column.
        form: ``"kept"``: patches without a positive value are veiled; ``"heat"``: colours; ``"points"``: arrows.
        values: ``(S, M, h, w)`` for a grid of h by w patches; of points ``(S, M, P, 4)``: x and y of each arrow's
            beginning and end, 0 to 1 from the left or upper edge of the image to the other.
        note: Written below an image, the mean of its values put into it: ``"{:.0%} kept"``; empty for nothing.
    """

    group: str
    title: str
    form: Literal["kept", "heat", "points"]
    values: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """A table of shares for each sample, right of its images.

    Attributes:
        title: Written above it.
        rows: H names.
        columns: C names; a ``+`` in one begins a line.
        values: ``(S, H, C)`` in [0, 1].
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray


def expert_image(
    samples: Sequence[Sample],
    columns: Sequence[Column],
    modalities: Sequence[str],
    *,
    panels: Sequence[Panel] = (),
    label_names: LabelNames | None = None,
    image_size: int = 160,
) -> Image.Image:
    """Draw, for each sample and modality, the image, one image for each column, and the caption if there are any.

    Args:
        samples: S samples.
        columns: What to draw right of the images; those of a group follow each other.
        modalities: M names, in the order of the samples' images.
        panels: Tables right of all images.
        label_names: What the files call identities, cameras and scenes; see `ReIDDataset`.
        image_size: Longer side of one drawn image, in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: If shapes do not fit each other, there is nothing to draw, or it would be too large.
    """
    _check(samples, columns, panels, modalities)
    check_modalities(samples, modalities)
    size = size_to_draw(samples, image_size)
    groups = list(dict.fromkeys(column.group for column in columns))
    scales = {group: _bounds(samples, found) for group in groups if (found := _heat_of(columns, group))}

    row_height, step = size[1] + _BELOW, size[0] + _GAP
    block = 24 + len(modalities) * row_height + 14
    top, left = MARGIN + 40 + _HEAD, MARGIN + _LABELS
    places = [left + (c + 1) * step + (groups.index(column.group) + 1) * _BETWEEN for c, column in enumerate(columns)]
    right = (places[-1] if places else left) + step
    tables = []
    for panel in panels:
        tables.append(right + _BETWEEN)
        right += _BETWEEN + _ROW_NAME + len(panel.columns) * _CELL[0] + _GAP
    captioned = any(sample.captions for sample in samples)
    width = max(right + _GAP + _CAPTION if captioned else right - _GAP + MARGIN, 420 + 200 * len(scales))
    canvas = Canvas(width, top + len(samples) * block - 14 + MARGIN)
    canvas.text((left + size[0] // 2, top - 14), "image", "mm", width=step)
    for group in groups:
        own = [place for place, column in zip(places, columns, strict=True) if column.group == group]
        room = own[-1] + size[0] - own[0] + _BETWEEN
        canvas.text((own[0], top - 34), group, "lm", width=room)
        canvas.draw.line([(own[0], top - 24), (own[-1] + size[0], top - 24)], fill=GREY, width=1)
    for place, column in zip(places, columns, strict=True):
        canvas.text((place + size[0] // 2, top - 14), column.title, "mm", width=step)
    for place, panel in zip(tables, panels, strict=True):
        canvas.text((place, top - 14), panel.title, "lm", width=_ROW_NAME + len(panel.columns) * _CELL[0])
    if captioned:
        canvas.text((right + _GAP, top - 14), "caption", "lm")

    dark = False
    for s, sample in enumerate(samples):
        y = top + s * block
        canvas.draw.line([(MARGIN, y), (width - MARGIN, y)], fill=LIGHT, width=1)
        name = ", ".join(filter(None, (sample.key, *describe_labels(sample, label_names))))
        canvas.text((MARGIN, y + 12), name, "lm", GREY, width - 2 * MARGIN)
        for m, (modality, source) in enumerate(zip(modalities, sample.images, strict=True)):
            row = y + 24 + m * row_height
            canvas.text((MARGIN, row + size[1] // 2), modality.upper(), "lm", width=_LABELS - 4)
            image, was_dark = readable(draw_image(source, size))
            dark |= was_dark
            canvas.image.paste(image, (left, row))
            for place, column in zip(places, columns, strict=True):
                tile, note = image, "no image"
                if source is not None:
                    values = column.values[s, m]
                    tile, note = _tile(image, column, values, scales), column.note.format(float(values.mean()))
                canvas.image.paste(tile, (place, row))
                canvas.text((place + size[0] // 2, row + size[1] + 4), note, "mt", GREY, step, TEXT - 1)
            if captioned:
                caption = " ".join(sample.captions[m]) if sample.captions else ""
                shade, lines = BLACK if caption else GREY, size[1] // (TEXT + 3)
                at = right + _GAP, row + 2
                canvas.paragraph(at, caption or "none", "lt", _CAPTION - MARGIN, lines, shade)
        for place, panel in zip(tables, panels, strict=True):
            _draw_panel(canvas, (place, y + 28), panel, panel.values[s])
    missing = any(source is None for sample in samples for source in sample.images)
    _draw_legend(canvas, {column.form for column in columns}, missing, scales, dark)
    return canvas.image


def _check(
    samples: Sequence[Sample], columns: Sequence[Column], panels: Sequence[Panel], modalities: Sequence[str]
) -> None:
    if not samples or not (columns or panels):
        raise ValueError(f"there is nothing to draw: {len(samples)} samples, {len(columns)} columns")
    expected = len(samples), len(modalities)
    for column in columns:
        shape = column.values.shape
        if len(shape) != 4 or shape[:2] != expected or 0 in shape or (column.form == "points" and shape[3] != 4):
            last = "P, 4" if column.form == "points" else "h, w"
            raise ValueError(
                f"values of {column.group} {column.title} must be (S, M, {last}) with S = {expected[0]} samples and "
                f"M = {expected[1]} modalities; got {shape}"
            )
    for panel in panels:
        if panel.values.shape != (wanted := (len(samples), len(panel.rows), len(panel.columns))):
            raise ValueError(f"values of {panel.title} must be (S, H, C) = {wanted}; got {panel.values.shape}")


def _heat_of(columns: Sequence[Column], group: str) -> list[np.ndarray]:
    return [column.values for column in columns if column.group == group and column.form == "heat"]


def _bounds(samples: Sequence[Sample], values: Sequence[np.ndarray]) -> tuple[float, float]:
    """The smallest and the largest value over the images that exist."""
    present = np.array([[source is not None for source in sample.images] for sample in samples])
    shown = [found[present] for found in values]
    return min(float(found.min()) for found in shown), max(float(found.max()) for found in shown)


def _tile(
    image: Image.Image, column: Column, values: np.ndarray, scales: dict[str, tuple[float, float]]
) -> Image.Image:
    if column.form == "kept":
        return _dim(image, values > 0)
    if column.form == "points":
        return _arrows(image, values)
    low, high = scales[column.group]
    return _heat(image, (values - low) / max(high - low, 1e-12))


def _edges(length: int, patches: int) -> np.ndarray:
    """Return where patches begin and end along one axis: ``(patches + 1,)`` pixels."""
    return np.round(np.linspace(0, length, patches + 1)).astype(int)


def _spread(grid: np.ndarray, size: Size) -> np.ndarray:
    """Repeat the values of an ``(h, w)`` grid over ``(height, width)`` pixels."""
    rows, columns = _edges(size[1], grid.shape[0]), _edges(size[0], grid.shape[1])
    return np.repeat(np.repeat(grid, np.diff(rows), axis=0), np.diff(columns), axis=1)


def _dim(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Veil the patches outside `mask` ``(h, w)``, draw the grid, and outline what is kept."""
    pixels = np.asarray(image, np.float32)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    shown = np.where(_spread(mask, image.size)[..., None], pixels, 0.22 * grey + 0.78 * _VEIL)
    rows, columns = _edges(image.height, mask.shape[0]), _edges(image.width, mask.shape[1])
    shown[rows[1:-1]] = 0.7 * shown[rows[1:-1]] + 0.3 * 128
    shown[:, columns[1:-1]] = 0.7 * shown[:, columns[1:-1]] + 0.3 * 128
    result = Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(result)
    padded = np.pad(mask, 1)
    for i, j in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        y = min(rows[i], image.height - 1)
        draw.line([(columns[j], y), (columns[j + 1], y)], fill=CORRECT, width=2)
    for i, j in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        x = min(columns[j], image.width - 1)
        draw.line([(x, rows[i]), (x, rows[i + 1])], fill=CORRECT, width=2)
    return result


def _heat(image: Image.Image, scores: np.ndarray) -> Image.Image:
    """Lay the colours of `scores` ``(h, w)`` in [0, 1] over a grey image."""
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    return Image.fromarray((0.3 * grey + 0.7 * _colour(_spread(scores, image.size))).astype(np.uint8))


def _arrows(image: Image.Image, points: np.ndarray) -> Image.Image:
    """Draw arrows ``(P, 4)`` over a paler image: a ring where each begins, a disc where it ends."""
    paler = 0.55 * np.asarray(image, np.float32) + 0.45 * _VEIL
    shown = Image.fromarray(paler.astype(np.uint8))
    draw = ImageDraw.Draw(shown)
    for x, y, end_x, end_y in (points * np.tile(np.array(image.size) - 1, 2)).tolist():
        draw.line([(x, y), (end_x, end_y)], fill=BLACK, width=1)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline=BLACK, fill=WHITE)
        draw.ellipse((end_x - 3, end_y - 3, end_x + 3, end_y + 3), fill=WRONG, outline=WHITE)
    return shown


def _colour(values: np.ndarray) -> np.ndarray:
    """Map values in [0, 1] to colours, ``(..., 3)``."""
    stops = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(values, stops, channel) for channel in _SCALE.T], axis=-1)


def _draw_panel(canvas: Canvas, at: Size, panel: Panel, values: np.ndarray) -> None:
    """Draw a table of shares, each number on a shade of blue that darkens with it."""
    names = [name.split("+") for name in panel.columns]
    above = (TEXT + 1) * max(map(len, names)) + 4
    x, y = at[0] + _ROW_NAME, at[1] + above
    for c, words in enumerate(names):
        for line, word in enumerate(reversed(words)):
            place = x + c * _CELL[0] + _CELL[0] // 2, y - 6 - (TEXT + 1) * line
            canvas.text(place, word, "ms", GREY, _CELL[0], TEXT - 1)
    strongest = max(float(values.max()), 1e-12)
    for r, name in enumerate(panel.rows):
        middle = y + r * _CELL[1] + _CELL[1] // 2
        canvas.text((at[0], middle), name, "lm", width=_ROW_NAME - 4)
        for c in range(len(names)):
            share = float(values[r, c]) / strongest
            shade = tuple(round(255 + share * (dark - 255)) for dark in CORRECT)
            box = x + c * _CELL[0], y + r * _CELL[1]
            corner = box[0] + _CELL[0] - 2, box[1] + _CELL[1] - 2
            canvas.draw.rectangle((*box, *corner), fill=(shade[0], shade[1], shade[2]))
            ink = WHITE if share > 0.6 else BLACK
            canvas.text((box[0] + _CELL[0] // 2, middle - 1), f"{values[r, c]:.2f}", "mm", ink, size=TEXT - 1)


def _draw_legend(
    canvas: Canvas, forms: Collection[str], missing: bool, scales: dict[str, tuple[float, float]], dark: bool
) -> None:
    tile = Image.new("RGB", (32, 20), (96, 104, 116))
    entries = []
    if "kept" in forms:
        entries += [(_dim(tile, np.array([[True]])), "kept"), (_dim(tile, np.array([[False]])), "left out")]
    if "points" in forms:
        entries.append((_arrows(tile, np.array([[0.15, 0.5, 0.85, 0.5]])), "from the grid to where it is sampled"))
    if missing:
        entries.append((hatched((32, 20)), "no image"))
    x, y = canvas.legend(entries), MARGIN + 8
    bar = np.broadcast_to(_colour(np.linspace(0, 1, 80)), (14, 80, 3)).astype(np.uint8)
    for group, (low, high) in scales.items():
        x += canvas.text((x, y), f"{group} {low:.2g}", "lm") + 6
        canvas.image.paste(Image.fromarray(bar), (x, y - 7))
        x += 86 + canvas.text((x + 86, y), f"{high:.2g}", "lm") + 24
    if dark:
        canvas.text((x, y), "dark images are drawn brighter", "lm", GREY)
