"""Prototypes against loops over samples."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.losses import (
    center_loss,
    class_means,
    pairwise_contrast,
    prototype_loss,
    update_centers,
    update_prototypes,
)


def a_batch(seed, size=9, classes=4, dim=3):
    torch.manual_seed(seed)
    rows = torch.rand(size) < 0.7
    return (
        torch.randn(size, dim, dtype=torch.float64),
        torch.randint(classes, (size,)),
        rows,
        torch.randn(classes, dim, dtype=torch.float64),
    )


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 10_000), st.booleans())
def test_updates_are_those_of_a_loop(seed, all_rows):
    vectors, pid, rows, start = a_batch(seed)
    given = None if all_rows else rows
    taken = [i for i in range(len(pid)) if all_rows or rows[i]]
    means, centers, prototypes = torch.zeros_like(start), start.clone(), start.clone()
    for c in range(len(start)):
        if mine := [vectors[i] for i in taken if pid[i] == c]:
            means[c] = torch.stack(mine).mean(0)
            centers[c] = 0.2 * start[c] + 0.8 * means[c]
    for i in taken:
        moved = 0.1 * prototypes[pid[i]] + 0.9 * vectors[i] / vectors[i].norm()
        prototypes[pid[i]] = moved / moved.norm()
    torch.testing.assert_close(class_means(vectors, pid, len(start), given), means)
    for update, expected in ((update_centers, centers), (update_prototypes, prototypes)):
        ours = start.clone()
        update(ours, vectors, pid, rows=given)
        torch.testing.assert_close(ours, expected)


def test_losses_are_those_of_a_loop_and_leave_prototypes_alone():
    vectors, pid, rows, prototypes = a_batch(3)
    vectors.requires_grad_()
    prototypes.requires_grad_()
    entropies, squares = [], []
    for v, c, row in zip(vectors, pid, rows, strict=True):
        if row:
            logits = torch.stack([(v / v.norm()) @ p / 0.05 for p in prototypes])
            entropies.append(logits.exp().sum().log() - logits[c])
            squares.append((v - prototypes[c]).square().mean())
    for loss, each in ((prototype_loss, entropies), (center_loss, squares)):
        found = loss(vectors, prototypes, pid, rows=rows)
        torch.testing.assert_close(found, torch.stack(each).mean())
        found.backward()
        nothing = loss(vectors, prototypes, pid, rows=torch.zeros_like(rows))
        assert nothing == 0 and nothing.requires_grad
    assert prototypes.grad is None and vectors.grad.abs().sum() > 0


def test_contrast_is_that_of_a_loop():
    a, _, _, _ = a_batch(4, 5)
    b = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([True, False, True, True, False])
    kept = [0, 2, 3]
    expected = sum(
        torch.log(sum((a[i] @ b[j]).exp() for j in kept))
        + torch.log(sum((a[j] @ b[i]).exp() for j in kept))
        - 2 * a[i] @ b[i]
        for i in kept
    ) / len(kept)
    torch.testing.assert_close(pairwise_contrast(a, b, rows), expected)
    assert pairwise_contrast(a, b, torch.zeros(5, dtype=torch.bool)) == 0
