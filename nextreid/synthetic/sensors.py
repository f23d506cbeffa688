"""Labels to light: an RGB, a near-infrared and a thermal camera looking at one scene."""

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from PIL import Image

from ..data.rng import seeded_rng
from .backdrop import blur, scatter, window
from .config import SyntheticConfig
from .figure import REGION_BITS, SHADES, SUPERSAMPLING, Regions
from .scene import Camera, Frame, Visit, make_camera

_DISPLAY_GAMMA = 2.2
_MOST_THINGS = 12
_OCCLUDER = (0.30, 0.36, 0.02)  # display grey, NIR, temperature above the surroundings

Material: TypeAlias = tuple[float, ...]
"""Display R, G, B, NIR reflectance and temperature of one region."""


def photograph(
    config: SyntheticConfig,
    labels: np.ndarray,
    table: np.ndarray,
    visit: Visit,
    frame: Frame,
    key: tuple[int, int, int],
    bystander: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the RGB, NIR and TIR image of one moment, each ``(H, W, 3)`` uint8, from labels and their `material_table`.

    What lies outside the silhouette depends on the camera, the visit and the frame alone: exposure and the thermal
    window are set by the light and the surroundings, never by what the crop holds. The noise streams are keyed by
    pid, camid and frame number (`key`). A `bystander`, labels and table, stands behind the person.
    """
    pid, camid, number = key
    camera = make_camera(config.kind, config.seed, camid)
    rng = seeded_rng(config.kind, config.seed, "background", pid, camid, number)
    place = window(config.kind, config.seed, camid, config.img_size, rng)
    if config.clutter:
        things = seeded_rng(config.kind, config.seed, "things", pid, camid, number)
        place = scatter(place, round(_MOST_THINGS * config.clutter), things)
    seen, cover = _develop(labels, table, config.extent, frame.shade, rng)
    scene = place * (1 - cover[..., None])
    if visit.night:  # the camera's own NIR lamp reaches the object, not what lies behind
        scene[..., 3] *= 0.45
    scene[..., 4] += visit.ambient * (1 - cover)
    if bystander is not None:
        folds = seeded_rng(config.kind, config.seed, "bystander's folds", pid, camid, number)
        other, veil = _develop(*bystander, config.extent, frame.shade, folds)
        scene = scene * (1 - veil[..., None]) + other * (1 - cover[..., None])
    scene += seen
    unit = config.extent / 128
    tall, wide = math.hypot(camera.blur, frame.defocus), math.hypot(camera.blur, frame.defocus, frame.motion)
    scene[..., :4] = blur(scene[..., :4], tall * unit, wide * unit)
    scene[..., 4:] = blur(scene[..., 4:], (0.5 + 0.5 * tall) * unit, (0.5 + 0.5 * wide) * unit)
    flare = _flare(frame, config.img_size)
    noise = [seeded_rng(config.kind, config.seed, "noise", pid, camid, number, name) for name in ("rgb", "nir", "tir")]
    return (
        _rgb(scene[..., :3], camera, visit, frame, flare, noise[0]),
        _nir(scene[..., 3], camera, visit, frame, flare, noise[1]),
        _tir(scene[..., 4], camera, noise[2]),
    )


def material_table(regions: Regions, materials: Mapping[str, Material], ambient: float) -> np.ndarray:
    """Return what the sensors see of each label, in surroundings of temperature `ambient`.

    ``(256, 6)`` float32: linear R, G, B, NIR reflectance, temperature and 1; zeros for the background.
    """
    grey, nir, warm = _OCCLUDER
    table = np.zeros((2**REGION_BITS, 6))
    for region, row in {**materials, "occluder": (grey, grey, grey * 1.05, nir, ambient + warm)}.items():
        table[regions.number[region]] = (*row, 1.0)
    table[:, :3] **= _DISPLAY_GAMMA
    table[:, 3] **= 1.6
    shades = np.array(SHADES)[:, None, None]
    shaded = np.repeat(table[None], 2 ** (8 - REGION_BITS), axis=0)
    shaded[: len(SHADES), :, :4] *= shades
    shaded[: len(SHADES), :, 4:5] *= shades**0.4
    return shaded.reshape(256, 6).astype(np.float32)


def _develop(
    labels: np.ndarray, table: np.ndarray, extent: int, shade: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Average the supersampled labels: ``(H, W, 5)`` values in relief, weighted by cover, and the cover ``(H, W)``."""
    step = SUPERSAMPLING
    total = sum(table[labels[dy::step, dx::step]] for dy in range(step) for dx in range(step))
    assert isinstance(total, np.ndarray)
    total *= np.float32(1 / step**2)
    seen, cover = total[..., :5], total[..., 5]
    seen[..., :4] *= _relief(cover, extent, shade, rng)[..., None]
    seen[..., 4] *= _warm_core(cover, extent, rng)
    return seen, cover


def _relief(cover: np.ndarray, extent: int, shade: float, rng: np.random.Generator) -> np.ndarray:
    """Round the flat silhouette: light from one side, dark rims, and folds or dents, ``(H, W)`` factors."""
    soft = blur(cover[..., None], extent / 26, extent / 26)[..., 0]
    side = np.zeros_like(soft)
    side[:, 1:-1] = soft[:, 2:] - soft[:, :-2]
    lit = 0.68 + 0.36 * soft - shade * 1.6 * (extent / 128) * side
    return lit * np.exp(0.10 * _folds(cover.shape, rng))


def _warm_core(cover: np.ndarray, extent: int, rng: np.random.Generator) -> np.ndarray:
    """Make limbs and rims a little cooler than the trunk, and surfaces uneven, ``(H, W)`` factors."""
    core = blur(cover[..., None], extent / 32, extent / 32)[..., 0]
    return (0.82 + 0.20 * core) * (1 + 0.05 * _folds(cover.shape, rng))


def _folds(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    coarse = rng.standard_normal((14, 8)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _flare(frame: Frame, img_size: tuple[int, int]) -> np.ndarray | None:
    """Return the stray light of a lamp, ``(H, W)``, or None."""
    if frame.flare is None:
        return None
    x, y, radius, strength = frame.flare
    height, width = img_size
    dy = (np.arange(height, dtype=np.float32)[:, None] - y * height) / (radius * height)
    dx = (np.arange(width, dtype=np.float32)[None] - x * width) / (radius * height)
    halo = np.exp(-(dx**2 + dy**2))
    streak = 0.5 * np.exp(-((dy * 6) ** 2) - (dx * 0.5) ** 2)
    return np.asarray(strength * (halo + streak), dtype=np.float32)


def _rgb(
    scene: np.ndarray, camera: Camera, visit: Visit, frame: Frame, flare: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    light = frame.light
    exposure = 0.9 / light**0.62  # the gain follows the dark only part of the way
    signal = scene * (light * visit.cast * camera.gain).astype(np.float32)
    grain = 0.5 * rng.standard_normal(scene.shape, dtype=np.float32)  # half in colour, most in lightness
    grain += 0.8 * rng.standard_normal((*scene.shape[:2], 1), dtype=np.float32)
    signal = signal + grain * camera.noise * np.sqrt(np.maximum(signal, 0) / 2500 + 1.2e-3**2)
    signal = signal * exposure
    dull = 0.6 * max(0.0, 1 - light / 0.3)  # colour fades with the light
    if dull:
        signal = (1 - dull) * signal + dull * signal.mean(2, keepdims=True)
    if flare is not None:
        signal = signal + flare[..., None] * np.array([1.0, 0.97, 0.88], dtype=np.float32)
    return _quantise(np.maximum(signal, 0) ** np.float32(1 / camera.gamma))


def _nir(
    scene: np.ndarray, camera: Camera, visit: Visit, frame: Frame, flare: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    height, width = scene.shape
    if visit.night:  # the camera's own lamp: bright in the middle
        dy = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        dx = np.linspace(-1, 1, width, dtype=np.float32)[None]
        signal = scene * (0.85 - 0.28 * (0.6 * dy**2 + 0.4 * dx**2))
    else:
        signal = scene * np.float32(0.5 + 0.5 * min(1.0, frame.light))
    signal = signal * np.float32(camera.nir_gain)
    grain = rng.standard_normal(scene.shape, dtype=np.float32)
    signal = signal + grain * camera.noise * np.sqrt(np.maximum(signal, 0) / 900 + 5e-3**2)
    if flare is not None:
        signal = signal + 0.8 * flare
    return _grey(np.maximum(signal, 0) ** np.float32(1 / camera.gamma))


def _tir(scene: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    grain = rng.standard_normal(scene.shape, dtype=np.float32)
    return _grey(scene * np.float32(camera.tir_gain) + np.float32(camera.tir_offset) + 0.012 * camera.noise * grain)


def _quantise(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(_quantise(image)[..., None], 3, axis=2)
