"""What the semantic experts sample: images with the patches that a mask leaves out dimmed."""

from collections.abc import Sequence

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
    Canvas,
    Size,
    check_modalities,
    describe_labels,
    draw_image,
    hatched,
    size_to_draw,
)

_GAP = 10
_BELOW = 22  # below an image: the fraction kept
_LABELS = 44  # left of the images: names of the modalities
_CAPTION = 400  # right of the images: the caption of the modality
_VEIL = np.array([236, 239, 243], np.float32)
# dark violet to yellow through blue-green, evenly lighter
_SCALE = np.array([[60, 20, 90], [52, 78, 145], [32, 138, 140], [110, 196, 92], [250, 228, 60]], np.float32)


def mask_image(
    samples: Sequence[Sample],
    masks: np.ndarray,
    modalities: Sequence[str],
    gamma: np.ndarray | None = None,
    *,
    label_names: LabelNames | None = None,
    image_size: int = 160,
) -> Image.Image:
    """Draw, for each sample and modality, the image, what each expert keeps of it, and the caption if there are any.

    Args:
        samples: S samples.
        masks: ``(S, E_t, M, h, w)``; positive where an expert keeps the patch. E_t experts, a grid of h by w patches.
        modalities: M names, in the order of the samples' images.
        gamma: ``(S, E_t, M, h, w)`` scores from which the masks were cut (NEXT, equation 6); a second image per
            expert then shows them, all on one colour scale.
        label_names: What the files call identities, cameras and scenes; see `ReIDDataset`.
        image_size: Longer side of one drawn image, in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: If shapes do not fit each other, or there is nothing to draw.
    """
    masks = np.asarray(masks) > 0
    if masks.ndim != 5 or (len(masks), masks.shape[2]) != (len(samples), len(modalities)) or 0 in masks.shape:
        raise ValueError(
            f"masks must be (S, E_t, M, h, w) with S = {len(samples)} samples and M = {len(modalities)} modalities; "
            f"got {masks.shape}"
        )
    if gamma is not None and np.shape(gamma) != masks.shape:
        raise ValueError(f"gamma must have the shape of masks, {masks.shape}; got {np.shape(gamma)}")
    check_modalities(samples, modalities)
    size = size_to_draw(samples, image_size)
    scores = None if gamma is None else _rescaled(samples, np.asarray(gamma, np.float32))

    titles = ["image"]
    for e in range(1, masks.shape[1] + 1):
        titles += [f"expert {e}"] if scores is None else [f"expert {e}", f"gamma {e}"]
    row_height, column = size[1] + _BELOW, size[0] + _GAP
    block = 24 + len(modalities) * row_height + 14
    top, left = MARGIN + 56, MARGIN + _LABELS
    text, captioned = left + len(titles) * column + _GAP, any(sample.captions for sample in samples)
    width = max(text + _CAPTION if captioned else text - 2 * _GAP + MARGIN, 420 if scores is None else 560)
    canvas = Canvas(width, top + len(samples) * block - 14 + MARGIN)
    _draw_legend(canvas, None if scores is None else scores[1:])
    for c, title in enumerate(titles):
        canvas.text((left + c * column + size[0] // 2, top - 16), title, "mm", width=column)
    if captioned:
        canvas.text((text, top - 16), "caption", "lm")

    for s, sample in enumerate(samples):
        y = top + s * block
        canvas.draw.line([(MARGIN, y), (width - MARGIN, y)], fill=LIGHT, width=1)
        name = ", ".join(filter(None, (sample.key, *describe_labels(sample, label_names))))
        canvas.text((MARGIN, y + 12), name, "lm", GREY, width - 2 * MARGIN)
        for m, (modality, source) in enumerate(zip(modalities, sample.images, strict=True)):
            row = y + 24 + m * row_height
            canvas.text((MARGIN, row + size[1] // 2), modality.upper(), "lm", width=_LABELS - 4)
            image = draw_image(source, size)
            drawn = [image]
            for e, mask in enumerate(masks[s, :, m]):
                x = left + len(drawn) * column + size[0] // 2
                kept = "no image" if source is None else f"{mask.mean():.0%} kept"
                canvas.text((x, row + size[1] + 4), kept, "mt", GREY, column, TEXT - 1)
                drawn.append(image if source is None else _dim(image, mask))
                if scores is not None:
                    drawn.append(image if source is None else _heat(image, scores[0][s, e, m]))
            if captioned:
                caption = " ".join(sample.captions[m]) if sample.captions else ""
                shade, lines = BLACK if caption else GREY, size[1] // (TEXT + 3)
                canvas.paragraph((text, row + 2), caption or "none", "lt", _CAPTION - MARGIN, lines, shade)
            for c, tile in enumerate(drawn):
                canvas.image.paste(tile, (left + c * column, row))
    return canvas.image


def _rescaled(samples: Sequence[Sample], scores: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return scores on a scale from the smallest, 0, to the largest, 1, of the images that exist; and these two."""
    present = np.array([[source is not None for source in sample.images] for sample in samples])
    shown = scores.transpose(0, 2, 1, 3, 4)[present]
    low, high = float(shown.min()), float(shown.max())
    return (scores - low) / max(high - low, 1e-12), low, high


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


def _colour(values: np.ndarray) -> np.ndarray:
    """Map values in [0, 1] to colours, ``(..., 3)``."""
    stops = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(values, stops, channel) for channel in _SCALE.T], axis=-1)


def _draw_legend(canvas: Canvas, bounds: tuple[float, float] | None) -> None:
    tile = Image.new("RGB", (32, 20), (96, 104, 116))
    entries = [(_dim(tile, np.array([[True]])), "kept"), (_dim(tile, np.array([[False]])), "left out")]
    x, y = canvas.legend([*entries, (hatched((32, 20)), "no image")]), MARGIN + 8
    if bounds is not None:
        x += canvas.text((x, y), f"gamma {bounds[0]:.2f}", "lm") + 6
        bar = np.broadcast_to(_colour(np.linspace(0, 1, 80)), (14, 80, 3))
        canvas.image.paste(Image.fromarray(bar.astype(np.uint8)), (x, y - 7))
        canvas.text((x + 86, y), f"{bounds[1]:.2f}", "lm")
