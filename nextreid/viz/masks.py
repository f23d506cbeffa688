"""What the semantic experts sample: images with the patches that a mask leaves out dimmed."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from nextreid.data.sample import Sample

from .drawing import FAINT, INK, PAPER, RIGHT, RULE, Size, draw_image, fit_text, font, hatched, size_to_draw

_MARGIN = 24
_GAP = 10
_SHARE = 22  # below an image: the share kept
_LABELS = 44  # left of the images: names of the modalities
_TEXT = 13
_VEIL = np.array([236, 239, 243], np.float32)
# dark violet to yellow through blue-green, evenly lighter
_SCALE = np.array([[60, 20, 90], [52, 78, 145], [32, 138, 140], [110, 196, 92], [250, 228, 60]], np.float32)


def mask_image(
    samples: Sequence[Sample],
    masks: np.ndarray,
    modalities: Sequence[str],
    gamma: np.ndarray | None = None,
    *,
    image_size: int = 160,
) -> Image.Image:
    """Draw, for each sample and modality, the image and what each expert keeps of it.

    Args:
        samples: S samples.
        masks: ``(S, E_t, M, h, w)``; positive where an expert keeps the patch. E_t experts, a grid of h by w patches.
        modalities: M names, in the order of the samples' images.
        gamma: ``(S, E_t, M, h, w)`` scores from which the masks were cut (NEXT, equation 6); a second image per
            expert then shows them, all on one colour scale.
        image_size: Longer side of one drawn image, in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: If shapes do not fit each other, or there is nothing to draw.
    """
    masks = np.asarray(masks) > 0
    _check(samples, masks, modalities, gamma)
    size = size_to_draw(samples, image_size)
    scores = None if gamma is None else np.asarray(gamma, np.float32)
    low, high = _score_range(samples, scores) if scores is not None else (0.0, 0.0)

    experts = masks.shape[1]
    titles = ["image"]
    for e in range(experts):
        titles += [f"expert {e + 1}"] if scores is None else [f"expert {e + 1}", f"gamma {e + 1}"]
    row_height, column = size[1] + _SHARE, size[0] + _GAP
    block = 24 + len(modalities) * row_height + 14
    top = _MARGIN + 56
    width = max(_MARGIN + _LABELS + len(titles) * column - _GAP + _MARGIN, 560 if scores is not None else 420)
    canvas = Image.new("RGB", (width, top + len(samples) * block - 14 + _MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_legend(canvas, draw, (low, high) if scores is not None else None)
    for c, title in enumerate(titles):
        at = (_MARGIN + _LABELS + c * column + size[0] // 2, top - 16)
        draw.text(at, fit_text(title, _TEXT, column), INK, font(_TEXT), anchor="mm")

    for s, sample in enumerate(samples):
        y = top + s * block
        draw.line([(_MARGIN, y), (width - _MARGIN, y)], fill=RULE, width=1)
        name = f"{sample.key}   id {sample.pid}" + (f", cam {sample.camid}" if sample.camid >= 0 else "")
        draw.text((_MARGIN, y + 12), fit_text(name, _TEXT, width - 2 * _MARGIN), FAINT, font(_TEXT), anchor="lm")
        for m, modality in enumerate(modalities):
            row = y + 24 + m * row_height
            label = fit_text(modality.upper(), _TEXT, _LABELS - 4)
            draw.text((_MARGIN, row + size[1] // 2), label, INK, font(_TEXT), anchor="lm")
            source = sample.images[m]
            image = draw_image(source, size)
            canvas.paste(image, (_MARGIN + _LABELS, row))
            for e in range(experts):
                x = _MARGIN + _LABELS + (1 + e * (1 if scores is None else 2)) * column
                mask = masks[s, e, m]
                canvas.paste(image if source is None else _dim(image, mask), (x, row))
                share = "no image" if source is None else f"{mask.mean():.0%} kept"
                at = (x + size[0] // 2, row + size[1] + 4)
                draw.text(at, fit_text(share, _TEXT - 1, column), FAINT, font(_TEXT - 1), anchor="mt")
                if scores is not None:
                    shown = image if source is None else _heat(image, scores[s, e, m], low, high)
                    canvas.paste(shown, (x + column, row))
    return canvas


def _check(samples: Sequence[Sample], masks: np.ndarray, modalities: Sequence[str], gamma: np.ndarray | None) -> None:
    expected = (len(samples), len(modalities))
    if masks.ndim != 5 or (masks.shape[0], masks.shape[2]) != expected or 0 in masks.shape:
        raise ValueError(
            f"masks must be (S, E_t, M, h, w) with S = {expected[0]} samples and M = {expected[1]} modalities; "
            f"got {masks.shape}"
        )
    if gamma is not None and np.shape(gamma) != masks.shape:
        raise ValueError(f"gamma must have the shape of masks, {masks.shape}; got {np.shape(gamma)}")
    for sample in samples:
        if len(sample.images) != len(modalities):
            raise ValueError(
                f"sample {sample.key!r} has {len(sample.images)} images but modalities are {', '.join(modalities)}"
            )


def _score_range(samples: Sequence[Sample], scores: np.ndarray) -> tuple[float, float]:
    """Return the smallest and largest score of the images that exist."""
    present = np.array([[source is not None for source in sample.images] for sample in samples])
    shown = scores.transpose(0, 2, 1, 3, 4)[present]
    return float(shown.min()), float(shown.max())


def _edges(length: int, patches: int) -> np.ndarray:
    """Return where patches begin and end along one side: ``(patches + 1,)`` pixels."""
    return np.round(np.linspace(0, length, patches + 1)).astype(int)


def _spread(grid: np.ndarray, size: Size) -> np.ndarray:
    """Repeat the values of an ``(h, w)`` grid over ``(height, width)`` pixels."""
    rows, columns = _edges(size[1], grid.shape[0]), _edges(size[0], grid.shape[1])
    return np.repeat(np.repeat(grid, np.diff(rows), axis=0), np.diff(columns), axis=1)


def _dim(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Veil the patches outside `mask` ``(h, w)``, draw the grid, and outline what is kept."""
    pixels = np.asarray(image, np.float32)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    veiled = 0.22 * grey + 0.78 * _VEIL
    shown = np.where(_spread(mask, image.size)[..., None], pixels, veiled)
    rows, columns = _edges(image.height, mask.shape[0]), _edges(image.width, mask.shape[1])
    for line in rows[1:-1]:
        shown[line] = 0.7 * shown[line] + 0.3 * 128
    for line in columns[1:-1]:
        shown[:, line] = 0.7 * shown[:, line] + 0.3 * 128
    result = Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(result)
    padded = np.pad(mask, 1)
    for i, j in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        y = min(rows[i], image.height - 1)
        draw.line([(columns[j], y), (columns[j + 1], y)], fill=RIGHT, width=2)
    for i, j in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        x = min(columns[j], image.width - 1)
        draw.line([(x, rows[i]), (x, rows[i + 1])], fill=RIGHT, width=2)
    return result


def _heat(image: Image.Image, scores: np.ndarray, low: float, high: float) -> Image.Image:
    """Lay the colours of `scores` ``(h, w)`` over a grey image."""
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    colours = _colour((_spread(scores, image.size) - low) / max(high - low, 1e-12))
    return Image.fromarray((0.3 * grey + 0.7 * colours).astype(np.uint8))


def _colour(share: np.ndarray) -> np.ndarray:
    """Map values in [0, 1] to colours, ``(..., 3)``."""
    stops = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(share, stops, channel) for channel in _SCALE.T], axis=-1)


def _draw_legend(canvas: Image.Image, draw: ImageDraw.ImageDraw, scores: tuple[float, float] | None) -> None:
    x, y = _MARGIN, _MARGIN + 8
    tile = Image.new("RGB", (32, 20), (96, 104, 116))
    entries = [(_dim(tile, np.array([[True]])), "kept"), (_dim(tile, np.array([[False]])), "left out")]
    for sign, text in [*entries, (hatched((32, 20)), "no image")]:
        canvas.paste(sign, (x, y - 10))
        draw.text((x + 40, y), text, INK, font(_TEXT), anchor="lm")
        x += 40 + round(font(_TEXT).getlength(text)) + 22
    if scores is not None:
        text = f"gamma {scores[0]:.2f}"
        draw.text((x, y), text, INK, font(_TEXT), anchor="lm")
        x += round(font(_TEXT).getlength(text)) + 6
        bar = np.broadcast_to(_colour(np.linspace(0, 1, 80)), (14, 80, 3))
        canvas.paste(Image.fromarray(bar.astype(np.uint8)), (x, y - 7))
        draw.text((x + 86, y), f"{scores[1]:.2f}", INK, font(_TEXT), anchor="lm")
