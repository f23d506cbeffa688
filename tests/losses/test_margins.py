"""Margins between modalities and identities against loops over pairs."""

import itertools

import pytest
import torch

from nextreid.losses import identity_margin, modality_margin


@pytest.mark.parametrize("holes", [False, True])
def test_margins_are_those_of_a_loop(holes):
    torch.manual_seed(2)
    parts, pid = torch.randn(7, 3, 5, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0, 4, 9, 0, 4, 9])
    present = torch.rand(7, 3) < 0.7 if holes else torch.ones(7, 3, dtype=torch.bool)
    unit = parts / parts.norm(dim=-1, keepdim=True)
    expected = 0.0
    for p in (0, 4, 9):
        centers = []
        for m in range(3):
            if mine := [unit[i, m] for i in range(7) if pid[i] == p and present[i, m]]:
                centers.append(torch.stack(mine).mean(0))
        gaps = [abs(0.8 - (a - b).square().sum()) for a, b in itertools.combinations(centers, 2)]
        expected = expected + (max(gaps) if gaps else 0)
    given = present if holes else None
    torch.testing.assert_close(modality_margin(parts, pid, 0.8, given), expected)
    pairs = []
    for p, q in itertools.combinations((0, 4, 9), 2):
        f, g = ([unit[i, m] for i in range(7) for m in range(3) if pid[i] == x and present[i, m]] for x in (p, q))
        if f and g:
            pairs.append(max(abs(0.6 - (a - b).abs().mean()) for a in f for b in g))
    found = identity_margin(parts, pid, 0.6, given)
    torch.testing.assert_close(found, torch.stack(pairs).mean())
    (found + modality_margin(parts, pid, 0.8, given)).backward()
    assert parts.grad.isfinite().all() and (not holes or parts.grad[~present].abs().sum() == 0)


def test_nothing_to_compare_is_zero():
    parts, pid = torch.randn(3, 1, 4, requires_grad=True), torch.zeros(3, dtype=torch.long)
    for loss in (modality_margin(parts, pid), identity_margin(parts, pid)):
        assert loss == 0 and loss.requires_grad
