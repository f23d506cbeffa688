"""Keys against the order of the floats, and counting against counting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nextreid.retrieval import arithmetic
from nextreid.retrieval.arithmetic import PADDING, count_nearer, key_values, order_keys, product


@given(hnp.arrays(np.float32, (2, 12), elements=st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0])))
def test_keys_order_as_a_stable_argsort(values):
    keys = order_keys(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(np.argsort(keys, axis=1), np.argsort(values, axis=1, kind="stable"))
    np.testing.assert_array_equal(keys & 0xFFFFFFFF, np.broadcast_to(np.arange(12), (2, 12)))
    np.testing.assert_array_equal(key_values(keys), values)


def rows_of_values(kind, rng, rows, width):
    normal = rng.standard_normal((rows, width)).astype(np.float32)
    if kind == "outlier":
        normal[:, 0] = 1e6
    if kind == "tiny":
        normal *= np.float32(1e-38)
    if kind == "huge":
        normal *= np.float32(1e35)
    if kind == "mixed":
        normal[::2] = np.round(normal[::2])
    return {"ties": np.round(normal), "one value": np.zeros_like(normal)}.get(kind, normal)


@pytest.mark.parametrize("kind", ["normal", "ties", "one value", "outlier", "tiny", "huge", "mixed"])
@pytest.mark.parametrize("count", [count_nearer, arithmetic._count_on_device], ids=["numpy", "torch"])
@pytest.mark.parametrize(("rows", "width", "points"), [(5, 1000, 7), (3, 1, 1), (70, 40, 12), (600, 1500, 9)])
def test_counts_equal_comparing_everything(count, kind, rows, width, points):
    if rows == 600 and kind != "mixed":
        rows = 20
    rng = np.random.default_rng(rows)
    values = rows_of_values(kind, rng, rows, width)
    first_column = 40
    keys = order_keys(torch.from_numpy(values), first_column).numpy()
    inside = np.take_along_axis(keys, rng.integers(0, width, (rows, points)), axis=1)
    inside[:, 1::3] &= ~0xFFFFFFFF  # in front of every column, as for optimistic ties
    inside[:, 2::3] |= 0xFFFFFFFF  # behind every column
    if points > 3:  # points of other tiles: below and above all, and between
        inside[:, 3] = order_keys(torch.tensor([0.25]))[0]
    inside = np.sort(inside, axis=1)
    inside[rng.random(rows) < 0.2] = PADDING
    inside[::4, -1] = PADDING
    if points == 1:
        inside[1] = PADDING
    expected = (keys[:, None, :] < inside[:, :, None]).sum(axis=2)
    counted = count(torch.from_numpy(values), first_column, inside)
    real = inside != PADDING
    np.testing.assert_array_equal(counted[real], expected[real])


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 50), elements=st.floats(-2, 2, width=32) | st.sampled_from([0.5, -0.5, 0.0, -0.0])),
    st.integers(1, 20),
)
def test_counts_in_bins(values, points):
    keys = order_keys(torch.from_numpy(values)).numpy()
    marks = np.sort(keys[:, :points], axis=1)
    expected = (keys[:, None, :] < marks[:, :, None]).sum(axis=2)
    low, high = arithmetic._range(marks)
    np.testing.assert_array_equal(arithmetic._count_in_bins(values, 0, marks, low, high), expected)


@pytest.mark.parametrize("multiply", [product, arithmetic._product_on_device], ids=["numpy", "torch"])
def test_products_are_float32_under_autocast(multiply):
    rng = np.random.default_rng(1)
    query, gallery = (torch.from_numpy(rng.standard_normal((64, 300)).astype(np.float32)) for _ in range(2))
    out = torch.empty(64, 64)
    before = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        multiply(query, gallery, out)
    np.testing.assert_allclose(out, query.double() @ gallery.double().T, atol=1e-4)
    assert torch.get_float32_matmul_precision() == before
