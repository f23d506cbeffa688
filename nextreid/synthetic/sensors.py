"""Labels to light: an RGB, a near-infrared and a thermal camera looking at one scene."""

import math

import numpy as np
from PIL import Image

from ..data.rng import seeded_rng
from .backdrop import blur, scatter, window
from .config import PersonsConfig
from .figure import REGION, REGION_BITS, SHADES, SUPERSAMPLING
from .identity import MATERIALS, Body
from .scene import Camera, Frame, Visit, make_camera

_DISPLAY_GAMMA = 2.2
_MOST_THINGS = 12
_SKIN_HEAT, _HAIR_HEAT = 0.92, 0.66
# what belongs to the scene, not to the identity: display grey, NIR, temperature above the surroundings
_SCENE_MATERIALS = {"umbrella": (0.22, 0.40, 0.06), "held": (0.14, 0.35, 0.22), "occluder": (0.30, 0.36, 0.02)}


def photograph(
    config: PersonsConfig,
    body: Body,
    labels: np.ndarray,
    visit: Visit,
    frame: Frame,
    key: tuple[int, int, int],
    bystander: tuple[Body, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the RGB, NIR and TIR image of one moment, each ``(H, W, 3)`` uint8, from the labels of `draw_person`.

    What lies outside the silhouette depends on the camera, the visit and the frame alone: exposure and the thermal
    window are set by the light and the surroundings, never by what the crop holds. The noise streams are keyed by
    pid, camid and frame number (`key`). A `bystander`, body and labels, stands behind the person.
    """
    pid, camid, number = key
    camera = make_camera(config.seed, camid)
    person, cover = _develop(labels, material_table(body, visit.ambient))
    rng = seeded_rng("persons", config.seed, "background", pid, camid, number)
    place = window(config.seed, camid, config.img_size, rng)
    if config.clutter:
        things = seeded_rng("persons", config.seed, "things", pid, camid, number)
        place = scatter(place, round(_MOST_THINGS * config.clutter), things)
    person[..., :4] *= _relief(cover, frame.shade, rng)[..., None]
    person[..., 4] *= _warm_core(cover, rng)
    scene = place * (1 - cover[..., None])
    if visit.night:  # the camera's own NIR lamp reaches the person, not what lies behind
        scene[..., 3] *= 0.45
    scene[..., 4] += visit.ambient * (1 - cover)
    if bystander is not None:
        other, veil = _develop(bystander[1], material_table(bystander[0], visit.ambient))
        folds = seeded_rng("persons", config.seed, "bystander's folds", pid, camid, number)
        other[..., :4] *= _relief(veil, frame.shade, folds)[..., None]
        other[..., 4] *= _warm_core(veil, folds)
        scene = scene * (1 - veil[..., None]) + other * (1 - cover[..., None])
    scene += person
    unit = config.img_size[0] / 128
    tall, wide = math.hypot(camera.blur, frame.defocus), math.hypot(camera.blur, frame.defocus, frame.motion)
    scene[..., :4] = blur(scene[..., :4], tall * unit, wide * unit)
    scene[..., 4:] = blur(scene[..., 4:], (0.5 + 0.5 * tall) * unit, (0.5 + 0.5 * wide) * unit)
    flare = _flare(frame, config.img_size)
    noise = [seeded_rng("persons", config.seed, "noise", pid, camid, number, name) for name in ("rgb", "nir", "tir")]
    return (
        _rgb(scene[..., :3], camera, visit, frame, flare, noise[0]),
        _nir(scene[..., 3], camera, visit, frame, flare, noise[1]),
        _tir(scene[..., 4], camera, noise[2]),
    )


def material_table(body: Body, ambient: float) -> np.ndarray:
    """Return what the sensors see of each label, in surroundings of temperature `ambient`.

    ``(256, 6)`` float32: linear R, G, B, NIR reflectance, temperature and 1; zeros for the background.
    """
    rows = {
        **dict(zip(MATERIALS, np.column_stack([body.color, body.nir, body.heat]), strict=True)),
        "skin": (*body.skin, 0.50, _SKIN_HEAT),
        "features": (*(body.skin * 0.55), 0.30, _SKIN_HEAT - 0.06),
        "hair": (*body.hair, body.hair_nir, _HAIR_HEAT),
        "glasses": (0.10, 0.10, 0.12, 0.08, 0.50),
    }
    for region, (grey, nir, warm) in _SCENE_MATERIALS.items():
        rows[region] = (grey, grey, grey * 1.05, nir, ambient + warm)
    regions = np.zeros((2**REGION_BITS, 6))
    for region, row in rows.items():
        regions[REGION[region]] = (*row, 1.0)
    regions[:, :3] **= _DISPLAY_GAMMA
    regions[:, 3] **= 1.6
    shades = np.array(SHADES)[:, None, None]
    table = np.repeat(regions[None], 2 ** (8 - REGION_BITS), axis=0)
    table[: len(SHADES), :, :4] *= shades
    table[: len(SHADES), :, 4:5] *= shades**0.4
    return table.reshape(256, 6).astype(np.float32)


def _develop(labels: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the supersampled labels: ``(H, W, 5)`` values weighted by cover, and the cover ``(H, W)``."""
    step = SUPERSAMPLING
    total = sum(table[labels[dy::step, dx::step]] for dy in range(step) for dx in range(step))
    assert isinstance(total, np.ndarray)
    total *= np.float32(1 / step**2)
    return total[..., :5], total[..., 5]


def _relief(cover: np.ndarray, shade: float, rng: np.random.Generator) -> np.ndarray:
    """Round the flat silhouette: light from one side, dark rims, and folds of cloth, ``(H, W)`` factors."""
    height = cover.shape[0]
    soft = blur(cover[..., None], height / 26, height / 26)[..., 0]
    side = np.zeros_like(soft)
    side[:, 1:-1] = soft[:, 2:] - soft[:, :-2]
    lit = 0.68 + 0.36 * soft - shade * 1.6 * (height / 128) * side
    return lit * np.exp(0.10 * _folds(cover.shape, rng))


def _warm_core(cover: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make limbs and rims a little cooler than the trunk, and cloth uneven, ``(H, W)`` factors."""
    core = blur(cover[..., None], cover.shape[0] / 32, cover.shape[0] / 32)[..., 0]
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
