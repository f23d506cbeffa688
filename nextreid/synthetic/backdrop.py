"""The place that a camera looks at: one panorama per camera, from which every frame takes a window."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from ..data.rng import seeded_rng

_NUM_OBJECTS = 26


@lru_cache(maxsize=32)
def panorama(kind: str, seed: int, camid: int, img_size: tuple[int, int]) -> np.ndarray:
    """Build the surroundings of camera `camid` of persons or vehicles, for crops of `img_size` (height, width).

    Returns:
        ``(1.25 H, 6 W, 5)`` float32, not writable: linear reflectance in R, G, B and NIR, and temperature above
        the surroundings.
    """
    rng = seeded_rng(kind, seed, "panorama", camid)
    height, width = int(img_size[0] * 1.25), img_size[1] * 6
    place = np.empty((height, width, 5), dtype=np.float32)
    horizon = int(height * rng.uniform(0.42, 0.66))
    wall, floor = rng.uniform(0.10, 0.42), rng.uniform(0.12, 0.36)
    place[:horizon] = [*(wall * rng.uniform(0.92, 1.08, 3)), wall * rng.uniform(0.6, 1.3), 0.03]
    place[horizon:] = [*(floor * rng.uniform(0.93, 1.07, 3)), floor * rng.uniform(0.7, 1.3), 0.07]
    for _ in range(_NUM_OBJECTS):
        x, w = int(rng.integers(width)), int(img_size[1] * rng.uniform(0.10, 0.9))
        foot = horizon + int(height * rng.uniform(-0.12, 0.10))
        top = max(0, foot - int(height * rng.uniform(0.10, 0.6)))
        thing, grey, tint = rng.random(), rng.uniform(0.03, 0.55), rng.uniform(0.92, 1.08, 3)
        if thing < 0.4:  # leaves: dark green, bright in NIR
            leaves = np.array([0.06, 0.085, 0.045]) * rng.uniform(0.5, 1.6)
            tall = foot - top
            dy = (np.arange(height)[:, None] - (foot - tall / 2)) / max(1.0, tall / 2)
            dx = (np.arange(width)[None] - x) / max(1.0, w)
            place[dy**2 + dx**2 < 1] = [*leaves, rng.uniform(0.25, 0.45), 0.02]
            continue
        elif thing < 0.55:  # a post
            w, top = max(2, int(img_size[1] * 0.07)), 0
            color, nir, warm = grey * tint, grey, -0.02
        else:
            color, nir, warm = grey * tint, grey * rng.uniform(0.5, 1.5), rng.uniform(-0.05, 0.12)
        place[top:foot, x : x + w] = [*color, nir, warm]
    for line in rng.integers(horizon, height, 3):  # kerbs and joints of the ground
        place[line : line + max(1, height // 90), :, :4] *= rng.uniform(0.6, 1.5)
    coarse = rng.standard_normal((height // 6 + 1, width // 6 + 1)).astype(np.float32)
    texture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    place[..., :4] *= np.exp(0.08 * texture + 0.04 * rng.standard_normal((height, width)))[..., None]
    place[..., 4] += 0.012 * texture
    place = blur(place, img_size[0] / 160, img_size[0] / 160)
    place.setflags(write=False)
    return place


def blur(image: np.ndarray, tall: float, wide: float) -> np.ndarray:
    """Blur ``(H, W, C)`` with a sigma of `tall` and `wide` pixels, edges repeated; below 0.2 nothing happens."""
    for axis, sigma in ((0, tall), (1, wide)):
        radius = math.ceil(2.2 * sigma)
        if sigma < 0.2 or radius == 0:
            continue
        offsets = np.arange(-radius, radius + 1)
        kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = (kernel / kernel.sum()).astype(np.float32)
        pads = [(0, 0)] * image.ndim
        pads[axis] = (radius, radius)
        padded = np.pad(image, pads, mode="edge")
        size = image.shape[axis]
        image = sum(w * (padded[k : k + size] if axis == 0 else padded[:, k : k + size]) for k, w in enumerate(kernel))
    return image


def scatter(place: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of a window ``(H, W, 5)`` with things in it of the sizes and materials of garments or panels."""
    place = place.copy()
    height, width = place.shape[:2]
    for _ in range(count):
        tall, wide = int(height * rng.uniform(0.08, 0.3)), int(height * rng.uniform(0.06, 0.2))
        top, left = int(rng.integers(-tall // 2, height - tall // 2)), int(rng.integers(-wide // 2, width - wide // 2))
        color = rng.uniform(0.04, 0.9, 3) ** 2.2
        row = [*color, rng.uniform(0.08, 0.85) ** 1.6, rng.uniform(0.1, 0.5)]
        place[max(0, top) : top + tall, max(0, left) : left + wide] = row
    return place


def window(kind: str, seed: int, camid: int, img_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Cut a random window ``(H, W, 5)`` of the size of a crop out of a camera's panorama."""
    place = panorama(kind, seed, camid, img_size)
    height, width = img_size
    y = int(rng.integers(place.shape[0] - height + 1))
    x = int(rng.integers(place.shape[1] - width + 1))
    return place[y : y + height, x : x + width]
