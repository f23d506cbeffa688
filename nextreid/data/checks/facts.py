"""What one decoded image shows, in about a kilobyte: all that the checks of images look at."""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage

THUMB = 24  # side of the thumbnails
_FLAT = 2  # steps that JPEG may move a uniform grey by, and more
_HOT = 0.002  # share of pixels that may differ in a flat image: hot ones
_WINDOW = 256  # side of the part in the middle whose neighbouring pixels are compared
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # what Pillow weighs red, green and blue by
_LEAST = 16  # shorter sides say too little about noise


class ImageFacts(NamedTuple):
    """What one image showed."""

    size: tuple[int, int]  # width and height
    mode: str  # Pillow's name of its channels
    content: bytes  # hash of size and pixels
    flat: bool  # whether all pixels are alike, but for a few
    chroma: float  # mean difference between the highest and the lowest channel, 0 … 255: 0 is grey
    smoothness: float  # correlation of neighbouring pixels: 0 in noise, near 1 in photographs; NaN of tiny images
    thumb: np.ndarray  # (THUMB, THUMB) uint8, grey


def image_facts(image: PILImage.Image) -> ImageFacts:
    """Look at an image of 8 bits per channel."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    state = hashlib.blake2b(repr(rgb.size).encode(), digest_size=16)
    state.update(rgb.tobytes())
    small = np.asarray(rgb.resize((THUMB, THUMB), PILImage.Resampling.BOX, reducing_gap=2.0), dtype=np.float32)
    grey = rgb.convert("L")
    return ImageFacts(
        image.size,
        image.mode,
        state.digest(),
        _is_flat(rgb),
        float((small.max(axis=-1) - small.min(axis=-1)).mean()),
        _smoothness(grey),
        np.rint(small @ _LUMA).astype(np.uint8),
    )


def _is_flat(rgb: PILImage.Image) -> bool:
    """Return whether each channel keeps within `_FLAT` steps, but for a share `_HOT` of its pixels."""
    histogram = np.reshape(rgb.histogram(), (3, 256))
    within = np.lib.stride_tricks.sliding_window_view(histogram, _FLAT + 1, axis=1).sum(axis=-1).max(axis=-1)
    return bool((within >= (1 - _HOT) * rgb.width * rgb.height).all())


def _smoothness(grey: PILImage.Image) -> float:
    left, top = (max(0, (side - _WINDOW) // 2) for side in grey.size)
    middle = np.asarray(grey)[top : top + _WINDOW, left : left + _WINDOW].astype(np.float32)
    if min(middle.shape) < _LEAST:
        return float("nan")
    middle -= middle.mean()
    variance = float((middle**2).mean())
    if not variance:
        return 1.0
    across, down = (middle[:, 1:] * middle[:, :-1]).mean(), (middle[1:] * middle[:-1]).mean()
    return float(across + down) / (2 * variance)


def directions(thumbs: np.ndarray) -> np.ndarray:
    """Return thumbnails ``(n, h, w)`` as unit vectors without their mean, ``(n, h * w)``."""
    flat = thumbs.reshape(len(thumbs), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-6)
