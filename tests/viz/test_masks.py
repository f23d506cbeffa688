"""Mask images: kept patches untouched, the others veiled, shares printed, rejected input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nextreid.viz import mask_image
from nextreid.viz.masks import _colour, _dim, _spread

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


def test_size(make_sample):
    def size(samples, experts, gamma=False, modalities=3):
        masks = np.ones((samples, experts, modalities, 4, 2))
        return mask_image([make_sample()] * samples, masks, MODALITIES, masks if gamma else None).size

    assert size(1, 9)[0] - size(1, 8)[0] == 80 + 10
    assert size(1, 9, gamma=True)[0] - size(1, 9)[0] == 9 * (80 + 10)
    assert size(2, 4)[1] - size(1, 4)[1] > 3 * 160


def test_a_mask_changes_its_own_column_and_row_only(make_sample):
    masks = np.ones((1, 6, 3, 4, 2), np.float32)
    before = np.asarray(mask_image([make_sample()], masks, MODALITIES))
    masks[0, 2, 1] = 0
    after = np.asarray(mask_image([make_sample()], torch.from_numpy(masks), MODALITIES))
    rows, columns = np.nonzero((before != after).any(axis=2))
    left, top = 24 + 44 + 3 * 90, 24 + 56 + 24 + 182
    assert left <= columns.min() and columns.max() < left + 80
    assert top <= rows.min() and top + 160 <= rows.max() < top + 182


def test_missing_image_shows_no_mask(make_sample):
    masks = np.ones((1, 2, 3, 4, 2))
    gamma = np.random.default_rng(0).random(masks.shape)
    gamma[:, :, 1] = 1e6
    sample = [make_sample(missing=(1,))]
    before = np.asarray(mask_image(sample, masks, MODALITIES, gamma))
    masks[:, :, 1], gamma[:, :, 1] = 0, -1e6
    np.testing.assert_array_equal(np.asarray(mask_image(sample, masks, MODALITIES, gamma)), before)


def test_bad_shapes_are_rejected(make_sample):
    masks = np.ones((1, 2, 3, 4, 2))
    with pytest.raises(ValueError, match=r"S = 2 samples and M = 3 modalities; got \(1, 2, 3, 4, 2\)"):
        mask_image([make_sample()] * 2, masks, MODALITIES)
    with pytest.raises(ValueError, match=r"masks must be .* got \(2, 3, 4, 2\)"):
        mask_image([make_sample()], masks[0], MODALITIES)
    with pytest.raises(ValueError, match="gamma must have the shape of masks"):
        mask_image([make_sample()], masks, MODALITIES, masks[:, :1])
    with pytest.raises(ValueError, match="has 3 images but modalities are rgb"):
        mask_image([make_sample()], masks[:, :, :1], MODALITIES[:1])


def test_captions_stand_beside_their_modality(make_sample):
    """Another caption of the second modality changes pixels right of the images, in that row alone."""
    masks = np.ones((1, 1, 3, 4, 2))
    captions = (("A man.",), ("A woman in a long coat. " * 9,), ())
    plain, long = (
        replace(make_sample(), captions=(captions[0], (text,), captions[2])) for text in ("A woman.", captions[1][0])
    )
    images = [np.asarray(mask_image([sample], masks, MODALITIES)) for sample in (plain, long)]
    rows, columns = np.nonzero((images[0] != images[1]).any(axis=2))
    top, row = 24 + 56 + 24, 160 + 22
    assert rows.min() >= top + row and rows.max() < top + 2 * row
    assert columns.min() >= 24 + 44 + 2 * (80 + 10) and columns.max() < images[1].shape[1] - 20
    assert images[0].shape[1] > mask_image([make_sample()], masks, MODALITIES).width
