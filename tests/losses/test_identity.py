"""Identity loss against torch and against the equation."""

import pytest
import torch
from torch.nn import functional as F

from nextreid.losses import identity_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator), torch.randint(0, 5, (6,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_equals_torch(batch, smoothing):
    logits, pid = batch
    expected = F.cross_entropy(logits, pid, label_smoothing=smoothing)
    torch.testing.assert_close(identity_loss(logits, pid, smoothing), expected)


@pytest.mark.parametrize("rows", [None, [0, 2, 5], [3], []], ids=str)
def test_equals_the_equation_over_the_rows_that_take_part(batch, rows):
    logits, pid = batch
    taking_part = range(6) if rows is None else rows
    total = 0.0
    for b in taking_part:
        log_p = logits[b].double().log_softmax(0)
        target = torch.full((5,), 0.1 / 5, dtype=torch.float64)
        target[pid[b]] += 0.9
        total -= float((target * log_p).sum()) / len(taking_part)
    mask = None if rows is None else torch.tensor([b in rows for b in range(6)])
    assert float(identity_loss(logits, pid, rows=mask)) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(batch, dtype):
    logits, pid = batch
    logits = (logits * 5000).to(dtype).requires_grad_()
    loss = identity_loss(logits, pid)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()


def test_bad_input_is_rejected(batch):
    logits, pid = batch
    with pytest.raises(ValueError, match=r"class index in \[0, 5\).*to 258.*renumber"):
        identity_loss(logits, torch.tensor([0, 1, 258, 3, 4, 0]))
    with pytest.raises(ValueError, match=r"pid \(B,\); got \(6, 5\) and \(5,\)"):
        identity_loss(logits, pid[:5])
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\]; got 1.5"):
        identity_loss(logits, pid, 1.5)
