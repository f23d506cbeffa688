"""IDEA's aggregation against a loop over reference points and torch's own attention."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nextreid.layers import DeformableAggregation

B, M, D = 3, 3, 8
PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]]).bool()


def bilinear(grid, x, y):
    """Value of a map ``(H, W, D)`` at a position in patches, by the four patches around it."""
    rows, columns = grid.shape[:2]
    top, left = min(int(y), rows - 1), min(int(x), columns - 1)
    low, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    v, u = y - top, x - left
    upper, lower = (grid[row, left] * (1 - u) + grid[row, right] * u for row in (top, low))
    return upper * (1 - v) + lower * v


@pytest.mark.parametrize("present", [None, PRESENT])
@pytest.mark.parametrize(("grid", "kernel"), [((8, 4), (4, 4)), ((4, 8), (2, 2)), ((4, 2), (4, 2))])
def test_against_a_loop(grid, kernel, present):
    torch.manual_seed(0)
    rows, columns = grid
    block = DeformableAggregation(D, grid, M, kernel[0], offset_factor=0.5).double()
    with torch.no_grad():
        block.offset[4].weight.mul_(5)  # offsets that matter
    tokens = torch.randn(B, M, rows * columns, D).double()
    if present is not None:
        tokens = tokens * present[..., None, None]
    queries = torch.randn(B, 2 * M, D).double()
    found, offsets, positions = block(queries, tokens, present)
    points = [(size - k) // 2 + 1 for size, k in zip(grid, kernel, strict=True)]
    assert offsets.shape == (B, 2, *points) and positions.shape == (B, *points, 2)
    attention = block.attention
    theirs = nn.MultiheadAttention(D, 1, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.k_weight, attention.v_weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.q.bias, torch.ones(D), attention.v_bias]))
        theirs.out_proj.load_state_dict(attention.proj.state_dict())
    moved = 0
    for b in range(B):
        maps = tokens[b].view(M, rows, columns, D)
        net = block.offset.requires_grad_(False)(maps.permute(0, 3, 1, 2).flatten(0, 1)[None])[0]
        samples = []
        for m in range(M):
            for i in range(points[0]):
                for j in range(points[1]):
                    place = []
                    for axis, (step, size) in enumerate(((i, rows), (j, columns))):
                        reference = 2 * (2 * step + kernel[axis] // 2) / (size - 1) - 1
                        shift = torch.tanh(net[axis, i, j]) * 0.5 / max(points[axis] - 1, 1)
                        place.append(float((reference + shift).clamp(-1, 1)))
                    y, x = place
                    assert_close(positions[b, i, j], torch.tensor([x, y]).double(), rtol=1e-6, atol=1e-6)
                    moved += (-1 < x < 1) + (-1 < y < 1)
                    if present is None or present[b, m]:
                        samples.append(bilinear(maps[m], (x + 1) / 2 * (columns - 1), (y + 1) / 2 * (rows - 1)))
        keys = torch.stack(samples)[None]
        expected = queries[b] + theirs(queries[b][None], keys, keys)[0][0]
        assert_close(found[b], expected, rtol=1e-5, atol=1e-6)
    assert moved  # not all at the edge


def test_sizes_below_one_are_rejected():
    with pytest.raises(ValueError, match=r"sizes must be at least 1; got dim=8, grid_size=\(0, 4\)"):
        DeformableAggregation(D, (0, 4))
