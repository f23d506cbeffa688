"""EDITOR's selection and fusion against its words: masks in the attention, zeros that stay, one sample at a time."""

import pytest
import torch
from torch.nn import functional as F

from nextreid import create_layer
from nextreid.layers.token_selection import attention_rollout, background_loss, count_bright

B, M, H, N, D = 2, 3, 2, 9, 8
PRESENT = torch.tensor([[True, True, True], [True, False, True]])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rollout_is_the_first_row_of_the_product_of_all_maps():
    maps = [draw(B, H, N, N, seed=i).softmax(-1) for i in range(4)]
    product = maps[3] @ maps[2] @ maps[1] @ maps[0]
    torch.testing.assert_close(attention_rollout(maps), product[..., 0, :])


def test_bright_pixels_are_counted_in_each_window():
    images = draw(B, M, 6, 8)
    for present in (None, PRESENT):
        found = count_bright(images.masked_fill(images > 2, torch.nan) if present is None else images, (3, 2), present)
        for b in range(B):
            rows = [m for m in range(M) if present is None or present[b, m]]
            mean = (images.masked_fill(images > 2, torch.nan) if present is None else images)[b, rows].mean(0)
            windows = [mean[2 * r : 2 * r + 2, 4 * c : 4 * c + 4] for r in range(3) for c in range(2)]
            assert found[b].tolist() == [int((window > 0).sum()) for window in windows]


@pytest.mark.parametrize("present", [None, PRESENT])
def test_selection(present):
    rollout, bright = draw(B, M, H, N), torch.tensor([[3, 5, 5, 1, 5, 0, 0, 0, 0], [0] * N])
    found = create_layer("TokenSelection", attention_keep=2, bright_keep=2)(rollout, bright, present)
    assert found.bright.nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 1]]  # the first ones among equals
    for b in range(B):
        for m in range(M):
            best = {n for h in range(H) for n in rollout[b, m, h].argsort()[-2:].tolist()}
            expected = best if present is None or present[b, m] else set()
            assert set(found.attention[b, m].nonzero()[:, 0].tolist()) == expected
    assert torch.equal(found.mask, found.attention.any(1) | found.bright)


def test_selection_is_bounded_and_rejects_nonsense():
    selection = create_layer("TokenSelection", attention_keep=2, bright_keep=10)
    assert selection.limit(3, 12, 128) == 82 and selection.limit(3, 12, 32) == 32
    assert selection(draw(B, M, H, 1), torch.ones(B, 1, dtype=torch.long)).mask.all()
    with pytest.raises(ValueError, match="attention_keep=0, bright_keep=0"):
        create_layer("TokenSelection", attention_keep=0, bright_keep=0)


def masked_block(block, x, mask):
    """EDITOR's block as it is written: tokens stay in place, masks are multiplied and filled in. ``x (T, D)``."""
    m = mask.to(x.dtype)[:, None]
    q, k, v = ((block.norm1(x) * m) @ block.attn.qkv.weight.mT).unflatten(-1, (3, H, -1)).permute(1, 2, 0, 3)
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~(mask[:, None] & mask), -65504)
    weights = logits.softmax(-1) * m
    x = x + (weights @ v).transpose(0, 1).flatten(1) @ block.attn.proj.weight.mT
    return x + F.gelu((block.norm2(x) * m) @ block.mlp.fc1.weight.mT) @ block.mlp.fc2.weight.mT


@pytest.mark.parametrize("limit", [None, 6])
@pytest.mark.parametrize("present", [None, PRESENT])
def test_fusion_is_that_of_masked_tokens_left_in_place(limit, present):
    torch.manual_seed(1)
    layer = create_layer("SelectedFusion", dim=D, num_heads=H).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    cls, tokens = draw(B, M, D), draw(B, M, N, D, seed=1)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    found = layer(cls, tokens, mask, present, limit)
    for b in range(B):
        full = torch.cat([torch.ones(1, dtype=torch.bool), mask[b]])
        x = torch.cat([cls[b, :, None], tokens[b]], 1) * full[:, None]
        own = torch.stack([masked_block(layer.blocks[m], x[m], full) for m in range(M)])
        rows = [m for m in range(M) if present is None or present[b, m]]
        joint = layer.norm(masked_block(layer.joint, own[rows].flatten(0, 1), full.repeat(len(rows))))
        joint = (joint * full.repeat(len(rows))[:, None]).unflatten(0, (len(rows), -1))
        mean = joint[:, 1:].sum(1) / mask[b].sum()
        reduced = [layer.reduce[m](torch.cat([joint[i, 0], mean[i]])) for i, m in enumerate(rows)]
        torch.testing.assert_close(found.reduced[b, rows], torch.stack(reduced))
        torch.testing.assert_close(found.cls[b, rows], joint[:, 0])
        torch.testing.assert_close(found.mean[b, rows], mean)
        torch.testing.assert_close(found.own[b, rows], own[rows, 0])
        assert not found.reduced[b, [m for m in range(M) if m not in rows]].any()


def test_background_loss():
    tokens, mask = draw(B, M, N, D), draw(B, N) > 0
    total = partial = 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        error = ((tokens[:, i] - tokens[:, j]) * ~mask[..., None]).square()
        total = total + error.mean()
        partial = partial + error[PRESENT[:, i] & PRESENT[:, j]].mean()
    torch.testing.assert_close(background_loss(tokens, mask), total)
    torch.testing.assert_close(background_loss(tokens, mask, PRESENT), partial)
    assert background_loss(tokens[:, :1], mask) == 0
