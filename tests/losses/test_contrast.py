"""The contrast across modalities against a plain loop, and as an option of the criterion."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.losses import Criterion, modality_contrast

PID = torch.tensor([4, 4, 9, 4, 9, 1])
PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.bool)


def parts(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 5, generator=generator, dtype=torch.float64).requires_grad_()


def loop(parts, pid, temperature, present):
    """The equation, one anchor and one pair of modalities at a time."""
    found, (count, modalities) = [], parts.shape[:2]
    unit = [[vector / vector.norm() for vector in row] for row in parts.detach()]
    for a in range(modalities):
        for b in range(modalities):
            for i in range(count):
                shown = [j for j in range(count) if present[j, b]]
                positives = [j for j in shown if pid[j] == pid[i]]
                if a == b or not present[i, a] or not positives:
                    continue
                score = {j: math.exp(float(unit[i][a] @ unit[j][b]) / temperature) for j in shown}
                found.append(-sum(math.log(score[p] / sum(score.values())) for p in positives) / len(positives))
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("present", [None, PRESENT])
def test_against_a_loop(present):
    given_parts, shown = parts(0), torch.ones(6, 3, dtype=torch.bool) if present is None else present
    found = modality_contrast(given_parts, PID, 0.3, present)
    assert found.item() == pytest.approx(loop(given_parts, PID, 0.3, shown))
    found.backward()
    assert given_parts.grad.isfinite().all() and not given_parts.grad[~shown].any()


@settings(max_examples=10, derandomize=True, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(6)), st.permutations(range(3)), st.floats(0.1, 9))
def test_order_and_length_do_not_matter(seed, rows, modalities, factor):
    given_parts = parts(seed).detach()
    moved = factor * given_parts[rows][:, modalities]
    there = PRESENT[rows][:, modalities]
    expected = modality_contrast(given_parts, PID, 0.2, PRESENT)
    torch.testing.assert_close(modality_contrast(moved, PID[rows], 0.2, there), expected)


def test_without_two_modalities_of_an_identity_it_is_zero_with_a_gradient():
    given_parts = parts(1)
    for present in (torch.tensor([True, False, False]).expand(6, 3), torch.zeros(6, 3, dtype=torch.bool)):
        loss = modality_contrast(given_parts, PID, 0.1, present)
        loss.backward()
        assert loss.item() == 0 and not given_parts.grad.any()


def test_the_criterion_weighs_it_and_takes_zero_parts_as_absent():
    given_parts = parts(2).float().detach().masked_fill(~PRESENT[..., None], 0)
    heads = [(torch.randn(6, 10), torch.randn(6, 4), None)]
    plain = Criterion()(heads, PID)
    found = Criterion(contrast_weight=0.5, contrast_temperature=0.2)(heads, PID, parts=given_parts)
    torch.testing.assert_close(found["contrast"], modality_contrast(given_parts, PID, 0.2, PRESENT))
    torch.testing.assert_close(found["total"], plain["total"] + 0.5 * found["contrast"])
    with pytest.raises(ValueError, match="needs the modalities' parts"):
        Criterion(contrast_weight=1.0)(heads, PID)
    with pytest.raises(ValueError, match="must not be named contrast"):
        Criterion()(heads, PID, {"contrast": torch.zeros(())})


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"M of at least 2.*\(6, 1, 5\)"):
        modality_contrast(parts(0)[:, :1], PID)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        modality_contrast(parts(0), PID, 0.0)
