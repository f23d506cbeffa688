"""What a model looks at: kept patches untouched, the others veiled, one place for each value, rejected input."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nextreid.viz import Column, Panel, expert_image
from nextreid.viz.experts import _colour, _dim, _spread

MODALITIES = ("rgb", "nir", "tir")


def test_kept_patches_are_untouched_and_the_others_veiled():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    mask = np.array([[1, 0], [0, 1], [0, 0], [1, 1]], bool)
    shown = np.asarray(_dim(Image.fromarray(pixels), mask)).astype(int)
    for i in range(4):
        for j in range(2):
            inner = np.s_[16 * i + 3 : 16 * i + 13, 16 * j + 3 : 16 * j + 13]
            if mask[i, j]:
                np.testing.assert_array_equal(shown[inner], pixels[inner])
            else:
                assert shown[inner].min() >= 180 and np.ptp(shown[inner], axis=2).max() < 12


@pytest.mark.parametrize(("size", "grid"), [((32, 64), (4, 2)), ((33, 50), (7, 3)), ((20, 10), (2, 4))])
def test_spread_covers_every_pixel_in_order(size, grid):
    values = np.arange(grid[0] * grid[1]).reshape(grid)
    pixels = _spread(values, size)
    assert pixels.shape == (size[1], size[0])
    assert set(pixels.ravel()) == set(values.ravel())
    assert (np.diff(pixels, axis=0) >= 0).all() and (np.diff(pixels, axis=1) >= 0).all()


def test_colours_grow_lighter():
    lightness = _colour(np.linspace(0, 1, 50)) @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > 0).all()


def columns(values, form="kept", group="sampled"):
    """One column for each of E maps ``(S, E, M, h, w)``."""
    return [Column(group, f"{e + 1}", form, values[:, e]) for e in range(values.shape[1])]


def draw(samples, *groups, **rest):
    return np.asarray(expert_image(samples, [column for group in groups for column in group], MODALITIES, **rest))


def test_every_column_and_sample_has_a_place(make_sample):
    def size(samples, experts, heat=False):
        masks = np.ones((samples, experts, 3, 4, 2))
        groups = [columns(masks), *([columns(masks, "heat", "gamma")] if heat else [])]
        return draw([make_sample()] * samples, *groups).shape

    assert size(1, 9)[1] - size(1, 8)[1] == 80 + 10
    assert size(1, 9, heat=True)[1] - size(1, 9)[1] == 9 * (80 + 10) + 14
    assert size(2, 4)[0] - size(1, 4)[0] > 3 * 160


@pytest.mark.parametrize("form", ["kept", "heat", "points"])
def test_a_value_changes_its_own_column_and_row_only(form, make_sample):
    rng = np.random.default_rng(0)
    values = rng.random((1, 6, 3, 4, 4)) if form == "points" else np.ones((1, 6, 3, 4, 2))
    values[0, 0, 0, 0] = 0  # so that the scale of colours stays
    before = draw([make_sample()], columns(values.copy(), form))
    values[0, 2, 1] = 0.3 if form != "kept" else 0
    after = draw([make_sample()], columns(values, form))
    rows, found = np.nonzero((before != after).any(axis=2))
    left, top = 24 + 44 + 14 + 3 * 90, 24 + 84 + 24 + 182
    assert left <= found.min() and found.max() < left + 80
    assert top <= rows.min() and rows.max() < top + 182


def test_missing_image_shows_no_value(make_sample):
    kept = np.ones((1, 2, 3, 4, 2))
    heat = np.random.default_rng(0).random(kept.shape)
    heat[:, :, 1] = 1e6
    sample = [make_sample(missing=(1,))]
    before = draw(sample, columns(kept.copy()), columns(heat.copy(), "heat", "gamma"))
    kept[:, :, 1], heat[:, :, 1] = 0, -1e6
    np.testing.assert_array_equal(draw(sample, columns(kept), columns(heat, "heat", "gamma")), before)


def test_a_panel_stands_right_of_the_images_and_darkens_with_its_numbers(make_sample):
    gates = np.array([[[0.1, 0.9], [0.5, 0.5]]])
    panel = Panel("gates", ("head 1", "head 2"), ("rgb", "rgb+nir"), gates)
    both, one = draw([make_sample()], panels=[panel]), draw([make_sample()], columns(np.ones((1, 1, 3, 4, 2))))
    assert both.shape[0] == one.shape[0]
    changed = draw([make_sample()], panels=[Panel("gates", panel.rows, panel.columns, gates[:, :, ::-1])])
    rows, found = np.nonzero((both != changed).any(axis=2))
    assert found.min() >= 24 + 44 + 90 and np.ptp(rows) < 30  # the row of one head


def test_bad_shapes_are_rejected(make_sample):
    masks = np.ones((1, 2, 3, 4, 2))
    with pytest.raises(ValueError, match=r"S = 2 samples and M = 3 modalities; got \(1, 3, 4, 2\)"):
        draw([make_sample()] * 2, columns(masks))
    with pytest.raises(ValueError, match=r"must be \(S, M, P, 4\) .* got \(1, 3, 4, 2\)"):
        draw([make_sample()], columns(masks, "points"))
    with pytest.raises(ValueError, match="has 3 images but modalities are rgb"):
        expert_image([make_sample()], columns(masks[:, :, :1]), MODALITIES[:1])
    with pytest.raises(ValueError, match=r"values of gates must be .* = \(1, 1, 2\); got \(1, 2\)"):
        draw([make_sample()], panels=[Panel("gates", "a", "bc", np.ones((1, 2)))])
    with pytest.raises(ValueError, match="nothing to draw: 1 samples, 0 columns"):
        draw([make_sample()])


def test_captions_stand_beside_their_modality(make_sample):
    """Another caption of the second modality changes pixels right of the images, in that row alone."""
    masks = np.ones((1, 1, 3, 4, 2))
    captions = (("A man.",), ("A woman in a long coat. " * 9,), ())
    plain, long = (
        replace(make_sample(), captions=(captions[0], (text,), captions[2])) for text in ("A woman.", captions[1][0])
    )
    images = [draw([sample], columns(masks)) for sample in (plain, long)]
    rows, found = np.nonzero((images[0] != images[1]).any(axis=2))
    top, row = 24 + 84 + 24, 160 + 22
    assert rows.min() >= top + row and rows.max() < top + 2 * row
    assert found.min() >= 24 + 44 + 2 * (80 + 10) and found.max() < images[1].shape[1] - 20
    assert images[0].shape[1] > draw([make_sample()], columns(masks)).shape[1]
