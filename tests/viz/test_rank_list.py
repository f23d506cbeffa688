"""Rank lists: size, marks told apart without colour, missing images and entries, rejected input."""

import numpy as np
import pytest

from nextreid.viz import rank_list_image
from nextreid.viz.drawing import CORRECT, GREY, WRONG

MODALITIES = ("rgb", "nir", "tir")


def draw(make_sample, indices, matches, **kwargs):
    queries = [make_sample(pid=5, camid=q) for q in range(len(indices))]
    gallery = [make_sample(pid=p) for p in (5, 6, 7)]
    return rank_list_image(queries, gallery, np.array(indices), np.array(matches), MODALITIES, **kwargs)


def count(image, colour):
    return (np.asarray(image) == colour).all(axis=2).sum()


def test_size_grows_with_queries_entries_and_images(make_sample):
    narrow = draw(make_sample, [[0] * 5], [[True] * 5])
    wide = draw(make_sample, [[0] * 6], [[True] * 6])
    tall = draw(make_sample, [[0] * 5] * 2, [[True] * 5] * 2)
    large = draw(make_sample, [[0] * 5], [[True] * 5], image_size=288)
    assert narrow.mode == "RGB"
    assert wide.height == narrow.height and wide.width - narrow.width > 72
    assert tall.width == narrow.width and tall.height - narrow.height > 3 * 144
    assert large.width - narrow.width == 6 * (144 + 12 - 100) and large.height - narrow.height == 3 * 144


def test_correct_and_wrong_differ_without_colour(make_sample):
    """Turn one entry from correct to wrong: its head and its frame change in black and white, nothing else does."""
    correct, wrong = (
        np.asarray(draw(make_sample, [[0, 1]], [[value, False]]).convert("L")) < 150 for value in (True, False)
    )
    rows, columns = np.nonzero(correct != wrong)
    assert len(rows) > 400
    left, width, top = 24 + 40 + (100 + 12) + 12 + (100 - 84) // 2, 72 + 12, 24 + 40
    assert columns.min() >= left and columns.max() < left + width
    in_head = rows < top + 26
    assert in_head.sum() > 25
    inside = (columns >= left + 6) & (columns < left + width - 6) & (rows >= top + 32) & (rows < top + 32 + 3 * 146 - 2)
    assert not inside.any()


def test_colours(make_sample):
    both = draw(make_sample, [[0, 1]], [[True, False]])
    none = draw(make_sample, [[-1, -1]], [[False, False]])
    for colour in (CORRECT, WRONG):
        assert count(both, colour) - count(none, colour) > 500


def test_missing_image_and_missing_entry(make_sample):
    queries, gallery = [make_sample()], [make_sample(pid=2, missing=(1,)), make_sample(pid=2)]
    with_gap, whole = (
        np.asarray(rank_list_image(queries, gallery, np.array([[i, -1]]), np.zeros((1, 2), bool), MODALITIES))
        for i in (0, 1)
    )
    rows, columns = np.nonzero((with_gap != whole).any(axis=2))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (144, 72)


def test_captions_name_identity_and_camera(make_sample):
    images = [
        np.asarray(rank_list_image([make_sample(1, 0)], [entry], np.zeros((1, 1), int), np.ones((1, 1)), MODALITIES))
        for entry in (make_sample(1, 0), make_sample(2, 0), make_sample(1, 3))
    ]
    bottom = 24 + 40 + 26 + 12 + 3 * 146 - 2
    for other in images[1:]:
        rows = np.nonzero((other != images[0]).any(axis=(1, 2)))[0]
        assert len(rows) and rows.min() >= bottom


@pytest.mark.parametrize(
    ("indices", "matches", "message"),
    [
        ([[0, 3]], [[True, True]], r"indices must lie in \[-1, 3\).*from 0 to 3"),
        ([[0, -2]], [[True, True]], "from -2 to 0"),
        ([[0, 1]], [[True]], r"got \(1, 2\) and \(1, 1\) for 1 queries"),
        ([[]], [[]], "not empty"),
    ],
)
def test_bad_indices_are_rejected(make_sample, indices, matches, message):
    with pytest.raises(ValueError, match=message):
        draw(make_sample, indices, matches)


def test_modalities_must_fit(make_sample):
    with pytest.raises(ValueError, match=r"'000001_cam1.jpg' has 3 images but modalities are rgb, nir"):
        rank_list_image([make_sample()], [make_sample()], np.zeros((1, 1), int), np.ones((1, 1), bool), MODALITIES[:2])


@pytest.mark.parametrize(("query", "entry"), [(-1, 5), (5, -1), (-1, -1)])
def test_what_has_no_identity_is_drawn_neutrally(make_sample, query, entry):
    """Neither right nor wrong, whatever `matches` says, and the legend explains the grey frame."""
    images = [
        rank_list_image([make_sample(query)], [make_sample(entry)], np.zeros((1, 1), int), matches, MODALITIES)
        for matches in (np.ones((1, 1), bool), np.zeros((1, 1), bool))
    ]
    np.testing.assert_array_equal(*map(np.asarray, images))
    known = rank_list_image([make_sample(5)], [make_sample(5)], np.zeros((1, 1), int), np.ones((1, 1)), MODALITIES)
    body = [np.asarray(image)[64:] for image in (images[0], known)]
    assert not (body[0] == CORRECT).all(axis=2).any() and (body[1] == CORRECT).all(axis=2).any()
    assert count(images[0], GREY) > count(known, GREY)


def test_scores_titles_and_names_of_the_files_are_written(make_sample):
    one = ([make_sample(5)], [make_sample(5)], np.zeros((1, 1), int), np.ones((1, 1), bool), MODALITIES)
    plain = rank_list_image(*one)
    scored = [rank_list_image(*one, scores=np.array([[value]])) for value in (0.5, 0.75)]
    assert scored[0].height > plain.height and scored[0].size == scored[1].size
    assert (np.asarray(scored[0]) != np.asarray(scored[1])).any()
    assert rank_list_image(*one, titles=["worst query"]).height == plain.height + 24
    named = rank_list_image(*one, label_names={"camid": {0: "c0023"}})
    assert named.size == plain.size and (np.asarray(named) != np.asarray(plain)).any()
    with pytest.raises(ValueError, match=r"scores must have the shape of indices, \(1, 1\)"):
        rank_list_image(*one, scores=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="2 titles for 1 queries"):
        rank_list_image(*one, titles=["a", "b"])


def test_ten_entries_fit_a_page_of_1400_pixels(make_sample):
    assert draw(make_sample, [[0] * 10], [[True] * 10]).width <= 1400 - 2 * 40


def test_ignored_entries_take_no_rank(make_sample):
    """The entry behind an ignored one has its rank, mark and frame as if it were the first."""
    alone = np.asarray(draw(make_sample, [[0]], [[True]]))
    behind = np.asarray(draw(make_sample, [[1, 0]], [[False, True]], ignored=np.array([[True, False]])))
    step, left = 100 + 12, 24 + 40 + (100 + 12) + 12
    rows = slice(24 + 40, None)
    assert np.array_equal(behind[rows, left + step : left + 2 * step - 12], alone[rows, left : left + step - 12])
    assert count(draw(make_sample, [[0]], [[False]], ignored=np.array([[True]])), WRONG) < 400  # of the legend
    with pytest.raises(ValueError, match="ignored must have the shape"):
        draw(make_sample, [[0]], [[True]], ignored=np.array([True]))
