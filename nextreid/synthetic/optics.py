"""Gaussian blur of small float images."""

import math

import numpy as np


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
