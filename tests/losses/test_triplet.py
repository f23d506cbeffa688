"""Batch-hard triplet loss against three nested loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.losses import batch_hard_triplet


def naive(embedding, pid, margin, rows=None):
    taking_part = [i for i in range(len(pid)) if rows is None or rows[i]]
    x, pid = [embedding[i].double().tolist() for i in taking_part], [pid[i] for i in taking_part]
    terms = []
    for a in range(len(x)):
        positive = [math.dist(x[a], x[p]) for p in range(len(x)) if p != a and pid[p] == pid[a]]
        negative = [math.dist(x[a], x[n]) for n in range(len(x)) if pid[n] != pid[a]]
        if positive and negative:
            gap = max(positive) - min(negative)
            terms.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return sum(terms) / max(len(terms), 1)


@settings(max_examples=40, deadline=None)
@given(
    pid=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    margin=st.none() | st.floats(0, 2),
    seed=st.integers(0, 1000),
    some=st.booleans(),
)
def test_equals_the_loops_for_any_batch(pid, margin, seed, some):
    """Any number of samples per identity, single samples and single identities included; all rows or some of them."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(len(pid), 5, generator=generator).requires_grad_()
    rows = torch.rand(len(pid), generator=generator) < 0.6 if some else None
    loss = batch_hard_triplet(embedding, torch.tensor(pid), margin, rows)
    assert loss.item() == pytest.approx(naive(embedding.detach(), pid, margin, rows), rel=1e-5, abs=1e-6)
    loss.backward()
    assert embedding.grad.isfinite().all()
    assert rows is None or (embedding.grad[~rows] == 0).all()


@pytest.mark.parametrize("margin", [None, 0.3])
def test_gradient(margin):
    embedding = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pid = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet(x, pid, margin), embedding)


@pytest.mark.parametrize("pid", [[4, 4, 4], [0, 1, 2], [7]], ids=["one identity", "no positives", "one sample"])
def test_no_triplet_gives_zero_on_the_graph(pid):
    embedding = torch.randn(len(pid), 4, requires_grad=True)
    loss = batch_hard_triplet(embedding, torch.tensor(pid))
    loss.backward()
    assert loss.item() == 0
    assert (embedding.grad == 0).all()


@pytest.mark.parametrize("margin", [None, 0.3])
def test_duplicates_have_a_finite_gradient(margin):
    embedding = torch.ones(4, 3).requires_grad_()
    loss = batch_hard_triplet(embedding, torch.tensor([0, 0, 1, 1]), margin)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) if margin is None else 0.3)
    assert embedding.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Squared lengths of 1e7 overflow float16; under autocast a product would be half precision as well."""
    generator = torch.Generator().manual_seed(1)
    pid = torch.tensor([0, 0, 1, 1, 2, 2])
    embedding = (100 * torch.randn(6, 1000, generator=generator)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_triplet(embedding, pid, margin=10.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive(embedding.detach(), pid.tolist(), 10.0), rel=1e-4)
    assert embedding.grad.isfinite().all()


def test_mining_survives_a_far_origin():
    """Embeddings that share a large constant: the hardest pairs are still found."""
    embedding = torch.randn(16, 8, generator=torch.Generator().manual_seed(2)) + 3000
    pid = torch.arange(4).repeat(4)
    assert float(batch_hard_triplet(embedding, pid)) == pytest.approx(naive(embedding, pid.tolist(), None), rel=1e-4)


def test_bad_input_is_rejected():
    with pytest.raises(ValueError, match=r"\(B, F\).*got \(4, 2, 3\) and \(4,\)"):
        batch_hard_triplet(torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"margin .* got -1"):
        batch_hard_triplet(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), -1)


def test_autocast_changes_nothing():
    """A bfloat16 product would pick other pairs among so many close ones."""
    embedding = torch.randn(256, 512, generator=torch.Generator().manual_seed(3))
    pid = torch.arange(2).repeat(128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_triplet(embedding, pid)
    assert loss.item() == batch_hard_triplet(embedding, pid).item()
