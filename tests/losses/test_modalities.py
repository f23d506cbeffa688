"""HAMNet's and IEEE's losses against plain loops, and as options of the criterion."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.losses import Criterion, center_margin, score_coherence

PID = torch.tensor([4, 4, 9, 4, 9, 1])
ROWS = (
    None,
    torch.tensor([True, False, True, True, False, False]),
    torch.tensor([True, True, False, True, False, True]),
)


def vectors(seed, width=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, width, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def has(rows, m, i):
    return rows[m] is None or bool(rows[m][i])


def loop_coherence(logits, rows):
    total = 0.0
    for a, b in itertools.combinations(range(3), 2):
        cosines = [
            torch.dot(logits[a][i], logits[b][i]) / (logits[a][i].norm() * logits[b][i].norm())
            for i in range(6)
            if has(rows, a, i) and has(rows, b, i)
        ]
        total += sum(1 - cosine for cosine in cosines) / max(1, len(cosines))
    return total


def loop_centers(features, rows, margin):
    features, worst = [part.detach() for part in features], []
    for pid in PID.unique().tolist():
        centers = []
        for m in range(3):
            own = [features[m][i] for i in range(6) if PID[i] == pid and has(rows, m, i)]
            centers += [torch.stack(own).mean(0)] if own else []
        off = [abs(margin - float((a - b).square().sum())) for a, b in itertools.combinations(centers, 2)]
        worst += [max(off)] if off else []
    return sum(worst) / max(1, len(worst))


@pytest.mark.parametrize("rows", [(None, None, None), ROWS])
def test_against_loops(rows):
    parts = vectors(0)
    ours = score_coherence(parts, rows), center_margin(parts, PID, 2.5, rows)
    assert ours[0].item() == pytest.approx(loop_coherence(parts, rows).item())
    assert ours[1].item() == pytest.approx(loop_centers(parts, rows, 2.5))
    sum(ours).backward()
    for part, own in zip(parts, rows, strict=True):
        assert part.grad.isfinite().all() and (own is None or not part.grad[~own].any())


def test_authors_sum_is_two_identities_of_ours():
    """IEEE's code: equal shares of the batch in the order of the batch, a sum over identities, everything there."""
    pid, features = torch.tensor([0, 0, 0, 1, 1, 1]), vectors(1)
    theirs = 0.0
    for chunk in zip(*(part.chunk(2) for part in features), strict=True):
        centers = [part.mean(0) for part in chunk]
        theirs += max(abs(1 - (a - b).square().sum()) for a, b in itertools.combinations(centers, 2))
    torch.testing.assert_close(2 * center_margin(features, pid), theirs)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.permutations(range(6)), st.permutations(range(3)), st.floats(0.1, 10))
def test_order_means_nothing_and_a_score_is_a_direction(order, modalities, scale):
    parts, rows = vectors(2), [torch.ones(6, dtype=torch.bool) if row is None else row for row in ROWS]
    moved = [parts[m][order] for m in modalities]
    there = [rows[m][order] for m in modalities]
    torch.testing.assert_close(center_margin(moved, PID[order], 1.0, there), center_margin(parts, PID, 1.0, rows))
    scaled = [scale * part for part in moved]
    torch.testing.assert_close(score_coherence(scaled, there), score_coherence(parts, rows))


def test_nobody_with_two_modalities_is_zero():
    rows = [torch.tensor([i % 3 == m for i in range(6)]) for m in range(3)]
    parts = vectors(3)
    alone = torch.arange(6)
    total = score_coherence(parts, rows) + center_margin(parts, alone, 1.0, rows)
    total.backward()
    assert total == 0 and not parts[0].grad.any()


def test_options_of_the_criterion():
    logits, features = vectors(4, 10), vectors(5)
    heads = list(zip(logits, features, ROWS, strict=True))
    plain = Criterion()(heads, PID)
    parts = Criterion(coherence_weight=0.5, center_margin_weight=2.0, center_margin=3.0)(heads, PID)
    assert list(parts) == ["total", "identity", "triplet", "coherence", "center_margin"]
    torch.testing.assert_close(parts["center_margin"], center_margin(features, PID, 3.0, ROWS))
    torch.testing.assert_close(parts["total"], plain["total"] + 0.5 * parts["coherence"] + 2 * parts["center_margin"])
    with pytest.raises(ValueError, match=r"two modalities at least.*baseline_resnet50"):
        Criterion(coherence_weight=0.5)(heads[:1], PID)
    with pytest.raises(ValueError, match="margin must be at least 0"):
        center_margin(features, PID, -1.0)
